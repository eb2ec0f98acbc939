"""Finished builds on disk, addressed by what they were made of.

A build appears whole, by one rename, or not at all. A build that may not have reached the
disk before a power failure is not reused. A build in use stays, also when another node of
this user uses it.

    builds/<key>/launch.json    how to start it, and what it is
    builds/<key>/output/        what the steps left in {output}
    builds/<key>/sealed         it has been flushed to disk
    builds/.tmp-<node id>-…/    a build being made, or removed
    labels/<label>/<key>.json   which chaincodes have the build; its time of change is
                                the last use
    locks/<key>                 held shared by whoever uses the build, which includes the
                                running chaincode itself: without a sandbox it inherits
                                the lock, in a sandbox its node holds the lock
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import msgspec
import psutil

from chaindock.errors import StartFailed
from chaindock.platforms.base import LaunchCommand
from chaindock.processes.folders import remove_tree

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_ABANDONED_S = 24 * 3600
"""Seconds after which a scratch directory of another node is removed as abandoned."""
_MOST_OWNERS = 200
"""Of one build; the oldest are dropped, and the build may be removed before they are."""


@dataclass(frozen=True)
class Build:
    """A finished build: where its {output} lies, and the name of its platform."""

    key: str
    output: Path
    launch: LaunchCommand
    language: str


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
            StartFailed: a node that prunes holds the lock, for an instant; or a
                chaincode changed the lock that it inherited.
        """
        try:
            fd = self._lock(key, fcntl.LOCK_SH)
        except BlockingIOError as error:
            raise StartFailed(
                f"build {key[:12]!r} is locked by another process",
                hint="end the chaincode that runs from it: chaindock stop NAME",
                retryable=True,
            ) from error
        except PermissionError as error:
            raise StartFailed(
                f"the lock of build {key[:12]!r} cannot be opened: {error}",
                hint=f"chmod 600 {self._locks / key}",
            ) from error
        try:
            yield fd
        finally:
            os.close(fd)

    def _lock(self, key: str, how: int) -> int:
        """Return a locked descriptor. Raises: BlockingIOError; never waits."""
        path = self._locks / key
        # A chaincode inherits the shared one, and must not write to the file.
        access = os.O_RDONLY if how == fcntl.LOCK_SH else os.O_RDWR
        while True:
            fd = os.open(path, access | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, how | fcntl.LOCK_NB)
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
            launch = msgspec.convert(facts["launch"], LaunchCommand)
            build = Build(key, folder / "output", launch, facts["language"])
            trusted = facts["boot"] == boot_id() or (folder / "sealed").exists()
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return build if trusted and build.output.is_dir() else None

    def place(self, scratch: Path, build: Build) -> Build:
        """Turn `scratch`, with `output/`, into the build, or keep an equal one; blocks."""
        launch = asdict(build.launch)
        facts = {"language": build.language, "launch": launch, "boot": boot_id()}
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
            if whole.exists():
                remove_tree(whole)
        return replace(build, output=target / "output")

    def seal(self, key: str) -> None:
        """Flush the files of a build to disk, then mark it as safe to reuse; blocks."""
        folder = self._builds / key
        with contextlib.suppress(FileNotFoundError):  # pruned meanwhile
            for place, _, names in os.walk(folder, onerror=_raise):
                for name in [*names, "."]:
                    _flush(f"{place}/{name}")
            (folder / "sealed").touch()

    # --- index --------------------------------------------------------------------------

    def use(self, label: str, key: str, owner: str) -> None:
        """Note that `owner` has a build, and that it was used now."""
        path = self._folder(label) / f"{key}.json"
        owners = _owners(path)
        if owner in owners:
            os.utime(path)
            return
        path.parent.mkdir(mode=0o700, exist_ok=True)
        _write(path, [*owners, owner][-_MOST_OWNERS:])

    def prune(self, label: str, keep: int) -> list[Path]:
        """Forget all but the newest `keep` builds of a label, but none in use.

        Quick; what it returns is out of the way already and remains to be deleted.
        """
        found = self._folder(label).glob("*.json")
        entries = sorted(found, key=lambda path: path.stat().st_mtime_ns)
        trash = map(self._forget, entries[: max(0, len(entries) - keep)])
        return [path for path in trash if path is not None]

    def release(self, label: str, owner: str) -> list[Path]:
        """Note that `owner` has no build of `label`; as `prune` for what nobody has."""
        removed = []
        folder = self._folder(label)
        for path in folder.glob("*.json"):
            owners = _owners(path)
            if owner not in owners:
                continue
            owners.remove(owner)
            if owners:
                _write(path, owners)
            elif (trash := self._forget(path)) is not None:
                removed.append(trash)
        with contextlib.suppress(OSError):  # the label has other builds
            folder.rmdir()
        return removed

    def _forget(self, entry: Path) -> Path | None:
        """Drop an entry, and its build if no other label has that and nobody uses it."""
        key = entry.stem
        if any(path != entry for path in self._labels.glob(f"*/{key}.json")):
            entry.unlink(missing_ok=True)
            return None
        try:
            fd = self._lock(key, fcntl.LOCK_EX)
        except (BlockingIOError, PermissionError):
            return None
        trash = self.scratch()
        try:
            with contextlib.suppress(FileNotFoundError):
                (self._builds / key).rename(trash)
            (self._locks / key).unlink(missing_ok=True)
        finally:
            os.close(fd)
        entry.unlink(missing_ok=True)
        return trash

    def _folder(self, label: str) -> Path:
        short = len(label) <= 100
        name = label if short else hashlib.sha256(label.encode()).hexdigest()
        return self._labels / name


def _owners(entry: Path) -> list[str]:
    try:
        return [str(owner) for owner in json.loads(entry.read_text())]
    except (OSError, ValueError, TypeError):
        return []


def _write(entry: Path, owners: list[str]) -> None:
    fresh = entry.with_suffix(f".{uuid.uuid4().hex[:8]}")
    fresh.write_text(json.dumps(owners))
    fresh.rename(entry)


def _flush(path: str) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except PermissionError:
        return  # the build made it unreadable
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENXIO}:  # a link, a socket
            return
        raise
    try:
        with contextlib.suppress(OSError):  # a fifo, a device
            os.fsync(fd)
    finally:
        os.close(fd)


def _raise(error: OSError) -> None:
    raise error


def boot_id() -> str:
    """Return what differs between two starts of this machine."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return time.ctime(int(psutil.boot_time()))
