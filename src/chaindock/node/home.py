"""The home directory of a node: its paths, and the lock of the process that serves it.

One process serves a home at a time. The lock ends with the process, however it ends.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Final

import psutil

from chaindock.config.environment import require_own
from chaindock.durable import storing, sync_folder, write_file
from chaindock.errors import NodeAlreadyRunning, NodeError, StorageError, os_errors_as
from chaindock.ids import ChannelId, require_channel
from chaindock.ledger.database import REBUILT, remove_database

_REMOVED: Final = ".removed"
"""Ending of the marker of a ledger that is about to be removed."""
LOADING: Final = ".load-"
_NEXT_START: Final = "check the permissions; the next start of the node tries again"
_DEAD_HOLD_S: Final = 2.0
_LOOK_S: Final = 0.02


class Home:
    """Paths below the home directory.

    `organizations` has CA, certificates and keys, `output` what builds and chaincode
    wrote, `ledgers` the ledger file of each channel, `desired` which chaincodes should
    run, `connections` what clients need to connect, `programs` what programs show that
    a user starts by hand (chaincode.mode: dev).
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.packages = root / "packages"
        self.organizations = root / "organizations"
        self.output = root / "output"
        self.ledgers = root / "ledgers"
        self.desired = root / "desired.db"
        self.connections = root / "connections"
        self.programs = root / "dev"

    def prepare(self) -> None:
        """Make the directories, readable by the owner only.

        Raises: NodeError when the place cannot be written; ConfigInvalid when others can
            write it, too.
        """
        with self._writing():
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            require_own(self.root)
            for path in (self.packages, self.output, self.ledgers):
                path.mkdir(mode=0o700, exist_ok=True)
            sync_folder(self.root.parent)
            sync_folder(self.root)

    def ledger(self, channel: str) -> tuple[Path, Path]:
        """Return the ledger file of a channel, and the marker that says it was made."""
        marker = self.organizations / f"{channel}.ledger"
        return self.ledgers / f"{channel}.db", marker

    def channels(self) -> list[ChannelId]:
        """Return the channels whose ledgers were made, by name.

        Removes what a crash left of a channel that was to be removed. Raises: StorageError.
        """
        for path in self.organizations.glob(f"*{_REMOVED}"):
            self._remove_ledger(path.stem)
        found = (path.stem for path in self.organizations.glob("*.ledger"))
        return [require_channel(name) for name in sorted(found)]

    def require_no_ledger(self, name: ChannelId) -> None:
        """Refuse to make a channel where a file would be taken for its ledger.

        Ends a removal that could not be ended before. Raises: StorageError.
        """
        self.channels()
        path, marker = self.ledger(name)
        if path.exists() and not marker.exists():
            raise StorageError(
                f"{str(path)!r} is in the place of a ledger of channel {name!r}, which "
                "this node does not have; nothing was made or changed",
                hint="move the file away; to have that ledger again instead, make the "
                f"empty file {str(marker)!r} while the node is down",
                channel=name,
            )

    def remove_channel(self, name: ChannelId) -> None:
        """Remove the ledger of a channel that nothing has open. Raises: StorageError."""
        _, marker = self.ledger(name)
        with storing("cannot remove", marker, _NEXT_START):
            with suppress(FileNotFoundError):  # it was not made to its end
                marker.replace(marker.with_suffix(_REMOVED))
            sync_folder(marker.parent)
        self._remove_ledger(name)

    def _remove_ledger(self, name: str) -> None:
        path, marker = self.ledger(name)
        with storing("cannot remove", path, _NEXT_START):
            remove_database(path)
            marker.with_suffix(_REMOVED).unlink(missing_ok=True)

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
        with self._writing():
            write_file(path, json.dumps({"node_id": node_id}).encode())
        return node_id

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the home; the file names the process that holds it.

        Raises: NodeAlreadyRunning. NodeError when the file cannot be written.
        """
        path = self.root / "node.lock"
        with self._writing():
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._take(fd)
            with self._writing():  # what a crash left has copies of private data
                for folder in self.root.glob(f"{LOADING}*"):
                    shutil.rmtree(folder, ignore_errors=True)
                for file in self.ledgers.glob(f"*{REBUILT}"):
                    remove_database(file)
            try:
                yield
            finally:
                os.ftruncate(fd, 0)
        finally:
            os.close(fd)

    def _take(self, fd: int) -> None:
        try:
            _lock(fd)
        except OSError as error:
            pid = _holder(fd) or "unknown"
            raise NodeAlreadyRunning(
                f"home {str(self.root)!r} is served by process {pid}",
                hint="stop it with `chaindock down`, or use another --home",
                home=str(self.root),
                pid=pid,
            ) from error
        with self._writing():
            os.ftruncate(fd, 0)
            os.write(fd, f"{os.getpid()}\n".encode())

    def _writing(self) -> AbstractContextManager[None]:
        return os_errors_as(
            NodeError,
            f"home {str(self.root)!r}",
            "written",
            hint="check free space and permissions, or choose another one with "
            "--home DIR or CHAINDOCK_HOME",
            home=str(self.root),
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
