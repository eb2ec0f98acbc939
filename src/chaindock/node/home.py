"""The home directory of a node: its paths, and the lock of the process that serves it.

One process serves a home at a time. The lock ends with the process, however it ends.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

import psutil

from chaindock.durable import sync_folder, write_file
from chaindock.errors import NodeAlreadyRunning, NodeError

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

_DEAD_HOLD_S: Final = 2.0
_LOOK_S: Final = 0.02


@dataclass(frozen=True)
class Home:
    """Paths below the home directory."""

    root: Path

    @property
    def packages(self) -> Path:
        """Installed packages."""
        return self.root / "packages"

    @property
    def organizations(self) -> Path:
        """CA, certificates and keys."""
        return self.root / "organizations"

    @property
    def output(self) -> Path:
        """What builds and chaincode wrote."""
        return self.root / "output"

    @property
    def desired(self) -> Path:
        """Which chaincodes should run."""
        return self.root / "desired.db"

    @property
    def programs(self) -> Path:
        """What programs show that a user starts by hand (chaincode.mode: dev)."""
        return self.root / "dev"

    def ledger(self, channel: str) -> Path:
        """Return the ledger file of a channel."""
        return self.root / "ledgers" / f"{channel}.db"

    def prepare(self) -> None:
        """Make the directories, readable by the owner only.

        Raises: NodeError when the place cannot be written.
        """
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            for path in (self.packages, self.output):
                path.mkdir(mode=0o700, exist_ok=True)
            (self.root / "ledgers").mkdir(mode=0o700, exist_ok=True)
            sync_folder(self.root.parent)
            self.sync()
        except OSError as error:
            raise _not_written(self, error) from error

    def sync(self) -> None:
        """Make files that were made in the home outlast a power failure."""
        sync_folder(self.root)

    def node_id(self) -> str:
        """Return the id that labels everything this node starts; made once."""
        path = self.root / "node.json"
        try:
            return str(json.loads(path.read_text())["node_id"])
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, TypeError) as error:
            raise NodeError(
                f"{str(path)!r} does not hold a node id",
                hint="restore it; without it the node cannot recognise its own objects",
            ) from error
        node_id = secrets.token_hex(6)
        try:
            write_file(path, json.dumps({"node_id": node_id}).encode())
        except OSError as error:
            raise _not_written(self, error) from error
        return node_id


def _not_written(home: Home, error: OSError) -> NodeError:
    return NodeError(
        f"home {str(home.root)!r} cannot be written: {error.strerror}",
        hint="check free space and permissions, or choose another one with --home DIR "
        "or CHAINDOCK_HOME",
        home=str(home.root),
    )


def _lock(fd: int) -> None:
    """Lock a file. Raises: OSError when a living process holds it.

    A node that was killed while it started a program lives on in that program for a
    moment, until it has become another one.
    """
    end = time.monotonic() + _DEAD_HOLD_S
    while True:
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if _lives(_holder(fd)) or time.monotonic() > end:
                raise
        time.sleep(_LOOK_S)


def _holder(fd: int) -> str:
    return os.pread(fd, 32, 0).decode(errors="replace").strip()


def _lives(pid: str) -> bool:
    try:
        return psutil.Process(int(pid)).status() != psutil.STATUS_ZOMBIE
    except (ValueError, psutil.Error):
        return False


class HomeLock:
    """Held while a node serves a home; the file names the process that holds it."""

    def __init__(self, home: Home) -> None:
        self._path = home.root / "node.lock"
        self._home = home
        self._fd: int | None = None

    def __enter__(self) -> Self:
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _not_written(self._home, error) from error
        try:
            _lock(fd)
        except OSError as error:
            pid = _holder(fd) or "unknown"
            os.close(fd)
            raise NodeAlreadyRunning(
                f"home {str(self._home.root)!r} is served by process {pid}",
                hint="stop it with `chaindock down`, or use another --home",
                home=str(self._home.root),
                pid=pid,
            ) from error
        try:
            os.ftruncate(fd, 0)
            os.write(fd, f"{os.getpid()}\n".encode())
        except OSError as error:
            os.close(fd)
            raise _not_written(self._home, error) from error
        self._fd = fd
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._fd is not None:
            os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = None
