"""Check, rebuild, copy and remove the ledgers of a home, without the node.

A copy is consistent also if the node runs while SQLite's backup API takes it. It has no keys,
so only the home that made it loads it, checked and made anew from its blocks.
Source: docs/tasks/ledger.md
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from chaindock import __version__
from chaindock.durable import storing, sync_folder
from chaindock.errors import ChaindockError, InvalidInput, NotFound, os_errors_as
from chaindock.ids import ChannelId, require_channel
from chaindock.ledger.database import (
    connect_reader,
    corrupt,
    mark,
    read_meta,
    remove_database,
    replace_database,
    translated,
)
from chaindock.ledger.packing import read_block
from chaindock.ledger.rebuild import rebuild_file, verify_all
from chaindock.lifecycle.targets import TargetState
from chaindock.node.home import LOADING, Home

_FORMAT: Final = 1
_MANIFEST: Final = "manifest.json"
_MANIFEST_MOST: Final = 1 << 20
"""Bytes; a longer manifest is refused."""
_TARGETS: Final = "desired.db"
_LEDGERS: Final = "ledgers/"


def dump(home: Home, target: Path) -> dict[str, Any]:
    """Write the ledgers of `home`, and what is deployed, to the new file `target`.

    Returns: the manifest: {"format", "version", "ledgers": {channel: height}}.
    Raises: NotFound: the home has no ledger. StorageError.
    """
    files = _require_ledgers(home)
    with (
        storing("cannot write the copy", target),
        tempfile.TemporaryDirectory("", f"{target.name}.", target.parent) as scratch,
    ):
        folder = Path(scratch)
        heights = {}
        for file in files:
            channel = require_channel(file.stem)
            heights[channel] = _copy(file, folder / file.name, channel)
        # After the ledgers: what was stopped holds for what the ledger defines.
        if home.desired.exists():
            _copy(home.desired, folder / _TARGETS)
        manifest = {"format": _FORMAT, "version": __version__, "ledgers": heights}
        (folder / _MANIFEST).write_text(json.dumps(manifest))
        names = {_MANIFEST: _MANIFEST, _TARGETS: _TARGETS}
        names |= {file.name: _LEDGERS + file.name for file in files}
        whole = folder / "whole"
        with whole.open("xb") as out:
            with tarfile.open(fileobj=out, mode="w") as tar:
                for name, inside in names.items():
                    if (folder / name).exists():
                        tar.add(folder / name, inside)
            out.flush()
            os.fsync(out.fileno())
        whole.chmod(0o600)
        whole.replace(target)
        sync_folder(target.parent)
    return manifest


def load(home: Home, source: Path) -> dict[str, Any]:
    """Replace the ledgers of `home` by those of a file that `dump` wrote for it.

    Returns: the manifest.
    Raises: NodeAlreadyRunning. InvalidInput, LedgerError: the file is no such copy, is
        damaged, or belongs to another home; nothing has changed then. StorageError.
    """
    require_readable(source)
    hint = "check the file, free space and permissions"
    with (
        home.locked(),
        storing("cannot load the copy", source, hint),
        tempfile.TemporaryDirectory(dir=home.root, prefix=LOADING) as scratch,
    ):
        folder = Path(scratch)
        manifest = _unpack(source, folder)
        for channel, height in manifest["ledgers"].items():
            file = folder / f"{channel}.db"
            _check(home, file, require_channel(channel), height)
        with _usable(folder / _TARGETS), TargetState(folder / _TARGETS):
            pass
        for channel in manifest["ledgers"]:
            path, marker = home.ledger(channel)
            replace_database(folder / path.name, path)
            mark(path, marker)
        replace_database(folder / _TARGETS, home.desired)
    return manifest


def require_readable(source: Path) -> None:
    """Check that a file can be opened. Raises: InvalidInput."""
    facts = {"hint": "check the path", "path": str(source)}
    with os_errors_as(InvalidInput, repr(str(source)), **facts):
        source.open("rb").close()


def reset(home: Home) -> list[str]:
    """Remove the ledgers of `home` and what is deployed; return their channels.

    Identities and keys stay. The next start makes new ledgers.

    Raises: NodeAlreadyRunning. StorageError.
    """
    with home.locked(), storing("cannot remove the ledgers of", home.root):
        files = _ledgers(home)
        for file in files:
            # Without the marker, a start after a crash here makes a new ledger.
            home.ledger(file.stem)[1].unlink(missing_ok=True)
            remove_database(file)
        remove_database(home.desired)
    return [file.stem for file in files]


def _ledgers(home: Home) -> list[Path]:
    return sorted(home.ledgers.glob("*.db"))


def _require_ledgers(home: Home) -> list[Path]:
    if not (files := _ledgers(home)):
        raise NotFound(
            f"home {str(home.root)!r} has no ledger",
            hint="start a node there: chaindock up -d",
        )
    return files


def _copy(source: Path, target: Path, channel: ChannelId | None = None) -> int:
    """Copy a database as of now; return the height of a ledger, else 0."""
    with (
        closing(connect_reader(source, channel)) as old,
        closing(sqlite3.connect(target)) as new,
    ):
        old.backup(new)
        new.execute("PRAGMA journal_mode=DELETE")  # one file, without a log beside it
        return int(read_meta(new, source, "height")) if channel else 0


def _unpack(source: Path, folder: Path) -> dict[str, Any]:
    """Write the members of the file to `folder`, and return the manifest."""
    try:
        with tarfile.open(source, "r:") as tar:
            members = {one.name: one for one in tar if one.isreg()}
            manifest = _manifest(tar, members.get(_MANIFEST), source)
            wanted = {_LEDGERS + f"{name}.db" for name in manifest["ledgers"]}
            for name in (*wanted, _TARGETS):
                if name in members:
                    _extract(tar, members[name], folder / name.removeprefix(_LEDGERS))
                elif name in wanted:
                    raise _no_copy(source, f"{name!r} is missing")
    except tarfile.TarError as error:
        raise _no_copy(source, str(error)) from error
    return manifest


def _manifest(
    tar: tarfile.TarFile, member: tarfile.TarInfo | None, source: Path
) -> dict[str, Any]:
    if member is None or member.size > _MANIFEST_MOST:
        raise _no_copy(source, f"{_MANIFEST!r} is missing or too large")
    file = tar.extractfile(member)
    try:
        manifest = json.loads(file.read() if file else b"")
        if (found := manifest["format"]) != _FORMAT:
            raise _no_copy(source, f"its format is {found}, expected {_FORMAT}")
        heights = dict(manifest["ledgers"])
        for channel in heights:
            require_channel(channel)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _no_copy(source, f"{_MANIFEST!r} cannot be read") from error
    if not heights:
        raise _no_copy(source, "it has no ledger")
    version = str(manifest.get("version"))
    return {"format": _FORMAT, "ledgers": heights, "version": version}


def _no_copy(source: Path, why: str) -> InvalidInput:
    return InvalidInput(
        f"{str(source)!r} is not a copy of a ledger: {why}",
        hint="make one with: chaindock dump FILE",
        path=str(source),
    )


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    file = tar.extractfile(member)
    if file is not None:
        with target.open("xb") as out:
            shutil.copyfileobj(file, out)
            out.flush()
            os.fsync(out.fileno())


def _check(home: Home, path: Path, channel: ChannelId, height: Any) -> None:
    """Check each block of a ledger and whose it is; make the rest anew from the blocks."""
    with _usable(path):
        found = rebuild_file(path, channel, whole=True)
        if found != height:
            raise corrupt(path, f"it has {found} blocks, expected {height}")
        with closing(connect_reader(path, channel)) as db:
            sql = "SELECT block FROM blocks WHERE number=0"
            (stored,) = db.execute(sql).fetchone()
            genesis = read_block(db.execute, path, 0, stored)
    if not any(ca in genesis for ca in _authorities(home)):
        raise InvalidInput(
            f"the copy of ledger {channel!r} belongs to another home: its organisation "
            "has another CA",
            hint="load the copy into the home that made it",
        )


@contextmanager
def _usable(path: Path) -> Iterator[None]:
    """Refuse a copy whose file `path` is refused. Raises: InvalidInput."""
    try:
        yield
    except ChaindockError as error:
        told = error.message.replace(str(path), path.stem)
        raise InvalidInput(
            f"the copy cannot be used: {told}",
            hint="load another copy; the ledger of this home is as it was",
        ) from error


def _authorities(home: Home) -> list[bytes]:
    found = []
    for path in home.organizations.rglob("ca/*-cert.pem"):
        with suppress(OSError):
            found.append(path.read_bytes())
    return found


# --- check and rebuild -----------------------------------------------------------------


def verify(home: Home) -> dict[str, int]:
    """Check each page and block of the ledgers; return their heights by channel.

    Raises: NotFound: the home has no ledger. LedgerCorrupt, LedgerError.
    """
    return {file.stem: _verify(file) for file in _require_ledgers(home)}


def _verify(path: Path) -> int:
    channel = require_channel(path.stem)
    with translated(path), closing(connect_reader(path, channel)) as db:
        db.execute("BEGIN")  # one state, also while blocks are committed
        (told,) = db.execute("PRAGMA integrity_check(1)").fetchone()
        if told != "ok":
            raise corrupt(path, str(told))
        return verify_all(db, path)


def rebuild(home: Home, warn: Callable[[str], None]) -> dict[str, int]:
    """Make the state of each ledger anew; return their heights by channel.

    `warn`: as for `rebuild_file`. Raises: NodeAlreadyRunning, NotFound, and as that does.
    """
    files = _require_ledgers(home)
    with home.locked():
        return {
            file.stem: rebuild_file(file, require_channel(file.stem), warn)
            for file in files
        }
