"""Numbered folders for engines that belong to one test, and cleaning them up.

A number is held by a lock on a file for as long as its user lives. Whoever takes a number
removes what a killed test run left there.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from support.need import missing

if TYPE_CHECKING:
    from collections.abc import Iterator

SLOTS = 16
CLEAN = "clean"
"""A file in the folder of an engine that was ended in order."""


def cache() -> Path:
    """The folder of everything the tests keep between runs (as scripts/engine.py)."""
    base = os.environ.get("XDG_CACHE_HOME")  # noqa: TID251  # tests have no config
    return Path(base or Path("~/.cache").expanduser()) / "chaindock-test"


@dataclass(frozen=True)
class Pool:
    """What slot `number` has for itself: a sixteenth of 10.213.0.0/16, and user ids."""

    number: int

    @property
    def bridge(self) -> str:
        """Address and prefix of a default bridge."""
        return f"10.213.{16 * self.number}.1/24"

    @property
    def nets(self) -> str:
        """CIDR of the networks that are made."""
        return f"10.213.{16 * self.number + 8}.0/21"

    @property
    def ids(self) -> range:
        """User ids that are nobody's on this machine."""
        first = 1_700_000_000 + 2 * 65536 * self.number
        return range(first, first + 2 * 65536)

    def has(self, address: str) -> bool:
        """Whether an address is one of these."""
        parts = address.split(".")
        return parts[:2] == ["10", "213"] and int(parts[2]) // 16 == self.number


def sweep(folder: Path, pool: Pool) -> None:
    """Remove what is left of an engine that is gone: processes, mounts, bridges."""
    end_processes(folder, pool.ids)
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    for line in reversed(mounts):
        where = line.split()[1].encode().decode("unicode_escape")
        if where.startswith(f"{folder}/"):
            subprocess.run(["umount", "-l", where], check=False, capture_output=True)
    remove_links(folder, pool)
    shutil.rmtree(folder, ignore_errors=True)


def end_processes(folder: Path, ids: range = range(0)) -> None:
    """Kill what has the folder in its arguments or one of the user ids, and wait."""
    left = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.uids().real in ids or any(
                str(folder) in word for word in process.cmdline()
            ):
                left += [process, *process.children(recursive=True)]
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    deadline = time.monotonic() + 10
    while any(_lives(process) for process in left) and time.monotonic() < deadline:
        time.sleep(0.02)


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def remove_links(folder: Path, pool: Pool) -> None:
    """Remove the bridges of an engine: with addresses of `pool`, or in its records."""
    records = folder / "data/network/files/local-kv.db"
    known = records.read_bytes() if records.exists() else b""
    ids = {name.decode() for name in re.findall(rb"[0-9a-f]{64}", known)}
    for name, addresses in psutil.net_if_addrs().items():
        if any(pool.has(one.address) for one in addresses) or (
            name.startswith("br-") and any(i.startswith(name[3:]) for i in ids)
        ):
            subprocess.run(
                ["ip", "link", "delete", name], check=False, capture_output=True
            )


@contextlib.contextmanager
def slot(kind: str) -> Iterator[tuple[Path, Pool]]:
    """Give a number of our own: (folder, addresses and ids).

    The folder is empty, or what an engine of this kind left that ended in order.
    """
    root = cache() / "own"
    root.mkdir(parents=True, exist_ok=True)
    # First those whose engine has images and caches already.
    cold = [not (root / f"{kind}-{one}" / CLEAN).exists() for one in range(SLOTS)]
    for number in sorted(range(SLOTS), key=cold.__getitem__):
        with (root / f"{number}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue
            folder, pool = root / f"{kind}-{number}", Pool(number)
            if not (folder / CLEAN).exists():
                sweep(folder, pool)
                folder.mkdir()
            (folder / CLEAN).unlink(missing_ok=True)
            yield folder, pool
            return
    missing(f"all {SLOTS} folders of own engines are in use: {root}")
