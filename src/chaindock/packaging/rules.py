"""The rules that every archive entry follows, and the bounds of an archive.

A name that passes these rules stays inside any directory it is joined to, on
case-insensitive and on normalising file systems, too.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from chaindock.errors import PackageInvalid
from chaindock.options import option
from chaindock.values import MIB, Bytes, Count

CHUNK = 64 * 1024
_SHOWN = 120
_OCCURS_ONCE = "a name occurs once, whatever its case"
_ONE_KIND = "a name is a file or a directory, not both"
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_DRIVE = re.compile(r"[A-Za-z]:")


@dataclass(frozen=True)
class Limits:
    """How large a package may be; a larger one is refused while it is read."""

    package_bytes: Bytes = option(100 * MIB, "chaindock.package.size")
    """Largest package file."""
    unpacked_bytes: Bytes = option(512 * MIB, "chaindock.package.unpacked")
    """Largest size of each of a package's two archives, decompressed."""
    files: Count = option(20_000, "chaindock.package.files")
    """Largest number of entries in an archive, implied directories included."""
    ratio: int = 200
    """Decompressed to compressed size, once `ratio_from_bytes` came out."""
    ratio_from_bytes: int = 16 * MIB
    """Up to this size any ratio is allowed."""
    metadata_bytes: int = 64 * 1024
    """Bytes of metadata.json."""
    index_bytes: int = MIB
    """Bytes of one file under META-INF."""
    name_bytes: int = 512
    """Bytes of a name in UTF-8."""
    depth: int = 64
    """Path elements of a name."""


def broken(
    entry: str | bytes, rule: str, found: str = "", *, hint: str | None = None
) -> PackageInvalid:
    """Return the error for an entry, or an archive, that breaks a rule.

    `rule` is what should hold, the same text for every breach; `found` is there instead.
    """
    if isinstance(entry, bytes):
        entry = entry.decode(errors="replace")
    shown = entry if len(entry) <= _SHOWN else entry[:_SHOWN] + "…"
    shown = shown or "(no name)"
    message = f"package entry {shown!r} is refused: {rule}"
    if found:
        message += f"; found {found}"
    return PackageInvalid(message, hint=hint, entry=shown, rule=rule)


class Names:
    """The names of one archive so far; refuses any two that cannot lie side by side.

    Names count as equal when they differ only in case or in Unicode normalisation.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._files: set[str] = set()
        self._folders: dict[str, str] = {}

    def add_file(self, name: str) -> None:
        """Take a regular file. Raises: PackageInvalid: bad name, clash, or too many."""
        self._check(name)
        self._add_folders(name, name.rpartition("/")[0])
        key = _key(name)
        if key in self._files:
            raise broken(name, _OCCURS_ONCE)
        if key in self._folders:
            raise broken(name, _ONE_KIND)
        self._files.add(key)
        self._check_count(name)

    def add_folder(self, name: str) -> None:
        """Take a directory, also a second time. Raises: PackageInvalid, as `add_file`."""
        self._check(name)
        self._add_folders(name, name)

    def _check(self, name: str) -> None:
        limits, parts = self._limits, name.split("/")
        if len(name.encode()) > limits.name_bytes:
            raise broken(name, f"a name has at most {limits.name_bytes} bytes")
        if _CONTROL.search(name):
            raise broken(name, "a name has no NUL and no control characters")
        if "\\" in name:
            raise broken(name, "a name has no backslash")
        if name.startswith("/") or _DRIVE.match(name):
            raise broken(name, "a name is relative")
        if ".." in parts:
            raise broken(name, "a name has no '..'")
        if "" in parts or "." in parts:
            hint = "name the files when making the archive, do not archive '.'"
            rule = "a name has no empty path elements and no './'"
            raise broken(name, rule, hint=hint)
        if len(parts) > limits.depth:
            raise broken(name, f"a name has at most {limits.depth} path elements")
        if any(len(part.encode()) > 255 for part in parts):
            raise broken(name, "a path element has at most 255 bytes")

    def _add_folders(self, entry: str, folder: str) -> None:
        while folder:
            key = _key(folder)
            if key in self._files:
                raise broken(entry, _ONE_KIND)
            known = self._folders.get(key)
            if known == folder:
                return
            if known is not None:
                raise broken(entry, _OCCURS_ONCE, f"{known!r} too")
            self._folders[key] = folder
            self._check_count(entry)
            folder = folder.rpartition("/")[0]

    def _check_count(self, entry: str) -> None:
        if len(self._files) + len(self._folders) > self._limits.files:
            raise broken(entry, f"an archive has at most {self._limits.files} entries")


def _key(name: str) -> str:
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())
