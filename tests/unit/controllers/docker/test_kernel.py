"""What the kernel's log says about a container counts, and nothing else in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from chaindock.controllers.docker import sandbox
from chaindock.controllers.docker.sandbox import killed_for_memory

if TYPE_CHECKING:
    from pathlib import Path

ID = "a4aa1a804c170b271e6c8de2a3c9dde7"
LINE = f"6,1,2,-;oom-kill:constraint=CONSTRAINT_MEMCG,oom_memcg=/x/libpod-{ID},pid=5\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (LINE, True),
        (f"6,1,2,-;something else\n{LINE}", True),
        (LINE.replace(ID, "0" * 32), False),
        (f"6,1,2,-;libpod-{ID} started\n", False),
        ("", False),
    ],
)
async def test_only_a_kill_that_names_the_container_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: bool
):
    (tmp_path / "kmsg").write_text(text)
    monkeypatch.setattr(sandbox, "KERNEL_LOG", str(tmp_path / "kmsg"))
    assert await killed_for_memory(ID) is expected


async def test_a_log_that_may_not_be_read_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sandbox, "KERNEL_LOG", str(tmp_path / "none"))
    assert not await killed_for_memory(ID)
