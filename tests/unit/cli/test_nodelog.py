"""The log of a detached node: complete lines, and never more than two files."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from chaindock.cli.nodelog import NodeLog, open_log
from chaindock.errors import NodeError

if TYPE_CHECKING:
    from pathlib import Path


def test_a_full_log_becomes_the_former_one(tmp_path: Path) -> None:
    path = tmp_path / "node.log"
    with open_log(tmp_path) as file, open_log(tmp_path) as other:
        log = NodeLog(path, (file.fileno(), other.fileno()), max_bytes=1000)
        for number in range(100):
            log.write(f"line {number:4}\n")
        os.write(other.fileno(), b"from elsewhere\n")
    kept = [path.stat().st_size, (tmp_path / "node.log.1").stat().st_size]
    assert max(kept) <= 1100
    assert sorted(one.name for one in tmp_path.iterdir()) == ["node.log", "node.log.1"]
    assert path.read_text().endswith("from elsewhere\n")
    lines = [*(tmp_path / "node.log.1").read_text().splitlines()]
    lines += path.read_text().splitlines()
    assert lines[-2] == "line   99"
    assert lines[:-1] == [f"line {n:4}" for n in range(101 - len(lines), 100)]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_log_that_somebody_moved_is_written_on(tmp_path: Path) -> None:
    path = tmp_path / "node.log"
    with open_log(tmp_path) as file:
        path.rename(tmp_path / "mine")
        path.write_text("not ours")
        log = NodeLog(path, (file.fileno(),), max_bytes=10)
        log.write("more than ten bytes\n")
        log.write("more than ten bytes\n")
    assert path.read_text() == "not ours"
    assert (tmp_path / "mine").read_text() == "more than ten bytes\n" * 2


def test_a_log_that_somebody_removed_is_written_on(tmp_path: Path) -> None:
    path = tmp_path / "node.log"
    with open_log(tmp_path) as file:
        path.unlink()
        log = NodeLog(path, (file.fileno(),), max_bytes=10)
        for _ in range(2):
            assert log.write("more than ten bytes\n") == 20


def test_a_home_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")
    with pytest.raises(NodeError, match="home"):
        open_log(tmp_path / "home")
