"""Mount a small file system, and fill it."""

from __future__ import annotations

import contextlib
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB = 1024 * 1024


@contextlib.contextmanager
def small_disk(folder: Path, size: int = 32 * MIB) -> Iterator[None]:
    """Mount a file system of `size` bytes at `folder`; skip the test without root."""
    folder.mkdir(parents=True, exist_ok=True)
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    options = f"size={size},mode=700"
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no small file system can be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(("umount", "--lazy", str(folder)), check=True)


@contextlib.contextmanager
def full(folder: Path, but: int = 0) -> Iterator[None]:
    """Fill the file system of `folder`, up to `but` bytes, while the block runs."""
    ballast = folder / "ballast"
    with ballast.open("ab", buffering=0) as file:
        for size in (MIB, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"\0" * size)
        file.truncate(file.tell() - but)
    try:
        yield
    finally:
        ballast.unlink()
