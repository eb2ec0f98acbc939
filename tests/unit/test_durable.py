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
