"""Files that are written whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from chaindock.durable import write_file


def test_a_full_disk_leaves_the_former_file_and_no_part(monkeypatch, tmp_path: Path):
    path = tmp_path / "node.json"
    write_file(path, b"former")

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_file(path, b"new")
    assert path.read_bytes() == b"former"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_left_is_gone_after_the_next_write(tmp_path):
    (tmp_path / ".node.json.new").write_bytes(b"a longer text than the next one")
    write_file(tmp_path / "node.json", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["node.json"]
    assert (tmp_path / "node.json").read_bytes() == b"new"
