"""Finished builds on disk, addressed by what they were made of.

Owns:    `<root>/builds/<key>/`, the index to them, their number.
Not:     making them (build.py).
Entry:   Builds
Holds:   a build appears whole, by one rename, or not at all; one that may not have
         reached the disk before a power failure is not reused; one in use stays, also
         when another node of this user uses it.
Source:  launch.md §9 W38, W45; needs.md row 12

    builds/<key>/launch.json      how to start it, and what it is
    builds/<key>/output/          what the steps left in {output}
    builds/<key>/sealed           it has been flushed to disk
    builds/.tmp-<node id>-…/      one being made, or removed
    labels/<label>/<source>.json  from what is known without unpacking to the key;
                                  its time of change is its last use
    locks/<key>                   held shared by whoever uses the build, which includes
                                  the running chaincode itself (it inherits the lock)
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from chaindock.controllers.process.removal import remove_tree
from chaindock.errors import StartFailed
from chaindock.platforms.base import Connection, LaunchCommand

if TYPE_CHECKING:
    from collections.abc import Iterator

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_ABANDONED_S = 24 * 3600
"""A scratch directory of another node that old belongs to nobody any more."""


@dataclass(frozen=True)
class Build:
    """A finished build.

    Args:
        output: where its {output} lies.
        language: name of the platform.
        tools: names of the toolchain's programs.
    """

    key: str
    output: Path
    launch: LaunchCommand
    language: str
    tools: tuple[str, ...]


@dataclass(frozen=True)
class Entry:
    """What the index knows of a source: valid while `toolchain` is still the same."""

    key: str
    tools: tuple[str, ...]
    toolchain: str


class Builds:
    """The builds below `root`, which several nodes of one user may share."""

    def __init__(self, root: Path, node_id: str) -> None:
        self._builds, self._labels = root / "builds", root / "labels"
        self._locks = root / "locks"
        self._scratch_prefix = f".tmp-{node_id}-"

    def prepare(self) -> None:
        """Make the directories."""
        for folder in (self._builds, self._labels, self._locks):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def scratch(self) -> Path:
        """Return the name of a new directory to build in; `reap` finds it if left."""
        return self._builds / f"{self._scratch_prefix}{uuid.uuid4().hex[:12]}"

    def reap(self) -> None:
        """Remove what builds of a killed node left half made; blocks."""
        oldest = time.time() - _ABANDONED_S
        for path in self._builds.glob(".tmp-*"):
            with contextlib.suppress(FileNotFoundError):  # another node was quicker
                own = path.name.startswith(self._scratch_prefix)
                if own or path.stat().st_mtime < oldest:
                    remove_tree(path)

    @contextlib.contextmanager
    def claim(self, key: str) -> Iterator[int]:
        """Keep a build from being pruned inside the block.

        Yields the descriptor of the lock: a process that inherits it keeps the build
        for as long as it lives.

        Raises:
            StartFailed: somebody holds the lock alone. That is a node that prunes, for
                an instant; or a chaincode that turned the lock it inherited, which must
                not hold up the loop.
        """
        try:
            fd = self._lock(key, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StartFailed(
                f"build {key[:12]!r} is locked by another process",
                hint="end the chaincode that runs from it: chaindock stop NAME",
                retryable=True,
            ) from error
        try:
            yield fd
        finally:
            os.close(fd)

    def _lock(self, key: str, how: int) -> int:
        path = self._locks / key
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, how)
                if os.fstat(fd).st_ino == path.stat().st_ino:
                    return fd
            except FileNotFoundError:  # pruned between opening and locking it
                pass
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def find(self, key: str) -> Build | None:
        """Return the build `key` if it is there, whole and trusted."""
        folder = self._builds / key
        try:
            facts = json.loads((folder / "launch.json").read_text())
            launch = dict(facts["launch"])
            launch["argv"] = tuple(launch["argv"])
            launch["connection"] = Connection(launch["connection"])
            build = Build(
                key,
                folder / "output",
                LaunchCommand(**launch),
                facts["language"],
                tuple(facts["tools"]),
            )
            trusted = facts["boot"] == boot_id() or (folder / "sealed").exists()
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return build if trusted and build.output.is_dir() else None

    def place(self, scratch: Path, build: Build) -> Build:
        """Turn `scratch`, which holds `output/`, into the build; blocks.

        An equal build that appeared meanwhile is kept instead.
        """
        facts: dict[str, Any] = {
            "language": build.language,
            "tools": build.tools,
            "launch": asdict(build.launch),
            "boot": boot_id(),
        }
        whole = self.scratch()
        whole.mkdir(mode=0o700)
        try:
            (whole / "launch.json").write_text(json.dumps(facts, indent=1))
            (scratch / "output").rename(whole / "output")
            target = self._builds / build.key
            try:
                whole.rename(target)
            except OSError:
                if (existing := self.find(build.key)) is not None:
                    return existing
                target.rename(self.scratch())
                whole.rename(target)
        finally:
            self.reap_one(whole)
        return Build(
            build.key, target / "output", build.launch, build.language, build.tools
        )

    def reap_one(self, scratch: Path) -> None:
        """Remove one scratch directory, if it still exists; blocks."""
        if scratch.exists():
            remove_tree(scratch)

    def seal(self, key: str) -> None:
        """Flush everything to disk, then mark `key` as safe to reuse; blocks."""
        os.sync()
        with contextlib.suppress(FileNotFoundError):  # pruned meanwhile
            (self._builds / key / "sealed").touch()

    # --- index --------------------------------------------------------------------------

    def look_up(self, label: str, source: str) -> Entry | None:
        """Return what is known of a source, and note that it was used now."""
        path = self._index_path(label, source)
        try:
            facts = json.loads(path.read_text())
            entry = Entry(facts["key"], tuple(facts["tools"]), facts["toolchain"])
            os.utime(path)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return entry

    def remember(self, label: str, source: str, entry: Entry) -> None:
        """Write an index entry."""
        path = self._index_path(label, source)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        fresh = path.with_suffix(f".{uuid.uuid4().hex[:8]}")
        fresh.write_text(json.dumps(asdict(entry)))
        fresh.rename(path)

    def prune(self, label: str, keep: int) -> list[Path]:
        """Forget all but the newest `keep` builds of a label, but none in use.

        Quick; what it returns is out of the way already and remains to be deleted.
        """
        entries = sorted(
            self._index_path(label, "x").parent.glob("*.json"),
            key=lambda path: path.stat().st_mtime_ns,
        )
        spare = entries[: max(0, len(entries) - keep)]
        wanted = {_key_of(p) for p in self._labels.glob("*/*.json") if p not in spare}
        removed = []
        for path in spare:
            key = _key_of(path)
            if key is None or key in wanted:
                path.unlink(missing_ok=True)
            elif (trash := self._discard(key)) is not None:
                path.unlink(missing_ok=True)
                removed.append(trash)
        return removed

    def remove(self, label: str, source: str) -> Path | None:
        """Forget one entry of the index, and its build unless something else needs it.

        Quick; what it returns is out of the way already and remains to be deleted.
        """
        path = self._index_path(label, source)
        key = _key_of(path)
        others = (p for p in self._labels.glob("*/*.json") if p != path)
        trash = None
        if key is not None and all(_key_of(other) != key for other in others):
            trash = self._discard(key)
            if trash is None:  # in use; it stays in the index, to be pruned
                return None
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # others are in it
            path.parent.rmdir()
        return trash

    def _discard(self, key: str) -> Path | None:
        """Move a build out of the way; None = somebody uses it."""
        try:
            fd = self._lock(key, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        trash = self.scratch()
        try:
            with contextlib.suppress(FileNotFoundError):
                (self._builds / key).rename(trash)
            (self._locks / key).unlink(missing_ok=True)
        finally:
            os.close(fd)
        return trash

    def _index_path(self, label: str, source: str) -> Path:
        if len(label) > 100:
            label = hashlib.sha256(label.encode()).hexdigest()
        return self._labels / label / f"{source}.json"


def boot_id() -> str:
    """Return what differs between two starts of this machine."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return time.ctime(int(psutil.boot_time()))


def _key_of(path: Path) -> str | None:
    try:
        return str(json.loads(path.read_text())["key"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
