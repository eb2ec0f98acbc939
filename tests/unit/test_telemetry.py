"""What a log line holds, and what becomes of one that cannot be written."""

from __future__ import annotations

import errno
import io
import json
import os
from typing import TYPE_CHECKING

import pytest
import structlog

from chaindock import telemetry

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = "-----BEGIN PRIVATE KEY-----\nMIGH\n-----END PRIVATE KEY-----"


class Full(io.StringIO):
    full = True

    def write(self, text: str) -> int:
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(text)


@pytest.fixture(autouse=True)
def _configured_as_before() -> Iterator[None]:
    before = structlog.get_config()
    yield
    structlog.configure(**before)


def logged(*, json: bool = False, **facts: object) -> str:
    """Return what a line with these facts looks like."""
    stream = io.StringIO()
    telemetry.configure(stream=stream, json=json)
    telemetry.get_logger("test").error("it happened", **facts)
    return stream.getvalue()


def test_a_full_disk_fails_nobody_who_logs() -> None:
    stream = Full()
    telemetry.configure(stream=stream)
    telemetry.get_logger("test").info("lost")
    stream.full = False
    telemetry.get_logger("test").info("kept")
    assert "kept" in stream.getvalue()
    assert "lost" not in stream.getvalue()


@pytest.mark.parametrize("as_json", [False, True])
def test_a_trace_does_not_tell_what_the_variables_hold(as_json: bool) -> None:
    def fails(transient: dict[str, bytes]) -> None:
        raise ValueError(f"{len(transient)} values, {KEY}")

    with pytest.raises(ValueError, match="1 values") as caught:
        fails({"price": b"f" * 9})
    line = logged(json=as_json, exc_info=caught.value)
    assert "in fails" in line
    assert "ValueError: 1 values, [private key]" in line
    assert "f" * 9 not in line


@pytest.mark.parametrize("as_json", [False, True])
def test_secrets_are_scrubbed_wherever_they_are(as_json: bool) -> None:
    line = logged(json=as_json, token="t0p", inner={"password": "t0p", "x": [KEY]})
    assert "t0p" not in line
    assert "MIGH" not in line


def test_what_chaincode_made_up_cannot_move_the_cursor() -> None:
    line = logged(ccid="a\x1b[2Jb\x9b31mc\rd", reason="x\ny")
    assert not {"\x1b", "\x9b", "\r"} & set(line)
    assert line.count("\n") == 1


def test_what_chaincode_made_up_is_cut() -> None:
    line = json.loads(logged(json=True, reason="begin" + "x" * 10_000_000 + "end"))
    assert len(line["reason"]) < 10_000
    assert line["reason"].startswith("begin")
    assert line["reason"].endswith("end")
