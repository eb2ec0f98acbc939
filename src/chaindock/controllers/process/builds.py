"""Finished builds on disk, addressed by what they were made of.

Owns:    `<root>/builds/<key>/`, the index to them, their number.
Not:     making them (build.py).
Entry:   Builds
Holds:   a build appears whole, by one rename, or not at all; one that may not have
         reached the disk before a power failure is not reused; one in use stays.
Source:  launch.md §9 W38, W45; needs.md row 12

    builds/<key>/launch.json      how to start it, and what it is
    builds/<key>/output/          what the steps left in {output}
    builds/<key>/sealed           it has been flushed to disk
    builds/.tmp-<node id>-…/      one being made, or removed
    labels/<label>/<source>.json  from what is known without unpacking to the key;
                                  its time of change is its last use
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
import uuid
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from chaindock.controllers.process.child import remove_tree
from chaindock.platforms.base import Connection, LaunchCommand

if TYPE_CHECKING:
    from collections.abc import Iterator

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


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
    """The builds below `root` of one node."""

    def __init__(self, root: Path, node_id: str) -> None:
        self._builds, self._labels = root / "builds", root / "labels"
        self._scratch_prefix = f".tmp-{node_id}-"
        self._claims: Counter[str] = Counter()

    def prepare(self) -> None:
        """Make the directories."""
        for folder in (self._builds, self._labels):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def scratch(self) -> Path:
        """Return the name of a new directory to build in; `reap` finds it if left."""
        return self._builds / f"{self._scratch_prefix}{uuid.uuid4().hex[:12]}"

    def reap(self) -> None:
        """Remove what builds of a killed node left half made; blocks."""
        for path in self._builds.glob(self._scratch_prefix + "*"):
            remove_tree(path)

    @contextlib.contextmanager
    def claim(self, key: str) -> Iterator[None]:
        """Keep a build from being pruned inside the block."""
        self._claims[key] += 1
        try:
            yield
        finally:
            self._claims[key] -= 1

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

    def prune(self, label: str, keep: int, in_use: set[str]) -> list[Path]:
        """Forget all but the newest `keep` builds of a label.

        Quick; what it returns is out of the way already and remains to be deleted.
        """
        entries = sorted(
            self._index_path(label, "x").parent.glob("*.json"),
            key=lambda path: path.stat().st_mtime_ns,
        )
        for path in entries[: max(0, len(entries) - keep)]:
            if _key_of(path) not in in_use:
                path.unlink(missing_ok=True)
        wanted = {_key_of(path) for path in self._labels.glob("*/*.json")} | in_use
        wanted |= {key for key, count in self._claims.items() if count}
        removed = []
        for folder in self._builds.iterdir():
            if folder.name not in wanted and not folder.name.startswith("."):
                trash = self.scratch()
                folder.rename(trash)
                removed.append(trash)
        return removed

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
