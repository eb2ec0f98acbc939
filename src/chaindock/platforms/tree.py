"""Look at source trees: the user's own, and unpacked ones that may be hostile.

A name never leads out of the root. In a tree that is not trusted no link is followed.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from chaindock.errors import SourceInvalid, os_errors_as

MAX_FILES = 20_000
MAX_TEXT = 1024 * 1024
META_INF = "META-INF"
_NEVER = re.compile(
    r"node_modules|__pycache__"
    r"|\.(git|hg|svn|venv|mypy_cache|pytest_cache|ruff_cache|tox|nox|nyc_output)"
)
"""Names of directories that are no source in any language."""


@dataclass(frozen=True)
class SourceFile:
    """One file to package: name inside code.tar.gz, and where it is on disk."""

    name: str
    path: Path


class Tree:
    """A directory, and what lies in it; `trusted`: the user's own, links are followed."""

    def __init__(self, root: Path, *, trusted: bool = False) -> None:
        self.root, self._trusted = root, trusted

    def has_file(self, name: str) -> bool:
        """Whether `name` is a regular file below the root."""
        return self._kind(name) == stat.S_IFREG

    def has_folder(self, name: str) -> bool:
        """Whether `name` is a directory below the root."""
        return self._kind(name) == stat.S_IFDIR

    def find_text(self, name: str) -> str | None:
        """Return the content of a file; None when there is no such regular file.

        Raises: SourceInvalid: larger than 1 MiB, not UTF-8, or not readable.
        """
        data = self._read(name, MAX_TEXT + 1)
        if data is None:
            return None
        if len(data) > MAX_TEXT:
            raise _invalid(name, f"is larger than {MAX_TEXT} bytes")
        try:
            return data.decode().removeprefix("\ufeff")  # some editors put it there
        except UnicodeDecodeError as error:
            raise _invalid(name, "is not UTF-8") from error

    def find_head(self, name: str, max_bytes: int = 128 * 1024) -> str:
        """Return how a file begins; "" = there is none. Raises: SourceInvalid."""
        return (self._read(name, max_bytes) or b"").decode(errors="replace")

    def find_json(self, name: str) -> dict[str, Any] | None:
        """Return a JSON object; None without a file. Raises: SourceInvalid: no object."""
        text = self.find_text(name)
        if text is None:
            return None
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise _invalid(name, f"is not JSON: {str(error)[:200]}") from error
        if not isinstance(document, dict):
            raise _invalid(name, "is not a JSON object")
        return document

    def names(self, folder: str = "") -> list[str]:
        """Return the names in a directory, sorted; [] when there is none."""
        path = self._locate(folder)
        if path is None or not self.has_folder(folder):
            return []
        try:
            return sorted(child.name for child in path.iterdir())[:MAX_FILES]
        except OSError:
            return []

    def walk(self, skip: Callable[[str], bool]) -> Iterator[str]:
        """Yield the names of all regular files, except below folders that `skip` names.

        At most 20 000 directories and files are looked at.
        """
        budget = MAX_FILES
        folders = [""]
        while folders:
            folder = folders.pop()
            for last in self.names(folder):
                budget -= 1
                if budget < 0:
                    return
                name = f"{folder}/{last}" if folder else last
                if self.has_folder(name):
                    if not skip(name) and not (self.root / name).is_symlink():
                        folders.append(name)
                elif self.has_file(name):
                    yield name

    def _read(self, name: str, max_bytes: int) -> bytes | None:
        path = self._locate(name)
        if path is None or not self.has_file(name):
            return None
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            number = os.open(path, flags if self._trusted else flags | os.O_NOFOLLOW)
            with os.fdopen(number, "rb") as file:
                return file.read(max_bytes)
        except OSError as error:
            raise _invalid(name, f"cannot be read: {error.strerror}") from error

    def _kind(self, name: str) -> int | None:
        path = self._locate(name)
        if path is None:
            return None
        try:
            found = path.stat() if self._trusted else path.lstat()
        except (OSError, ValueError):
            return None
        return stat.S_IFMT(found.st_mode)

    def _locate(self, name: str) -> Path | None:
        parts = [part for part in name.split("/") if part not in {"", "."}]
        if ".." in parts or "\0" in name or name.startswith("/"):
            return None
        path = self.root
        for part in parts[:-1]:
            path /= part
            if not self._trusted and path.is_symlink():
                return None
        return path / parts[-1] if parts else path


def collect(
    root: Path,
    *,
    skip_folders: str = "",
    skip_files: tuple[str, ...] = (),
    meta_folder: Path | None = None,
) -> tuple[SourceFile, ...]:
    """Return the files of `root`, named as in code.tar.gz and sorted by name.

    `skip_folders` is a pattern of names of directories, such as `*.egg-info`,
    `skip_files` are endings of names of files. `meta_folder` is the META-INF directory
    of the package, by default the one in `root`; its hidden files are left out.

    Raises:
        SourceInvalid: nothing to package, too much, a linked directory, a link that
            leaves `root`, something that is no file, a name that is not UTF-8.
    """
    root = root.resolve()
    meta_folder = (meta_folder or root / META_INF).resolve()
    files: list[SourceFile] = []
    folders = [root]
    while folders:
        for entry in _scan(folders.pop()):
            path, name = Path(entry.path), entry.name
            if entry.is_dir(follow_symlinks=False):
                if not (
                    _NEVER.fullmatch(name)
                    or fnmatchcase(name, skip_folders)
                    or Tree(path, trusted=True).has_file("pyvenv.cfg")
                ):
                    folders.append(path)
                continue
            in_meta = path.is_relative_to(meta_folder)
            if (
                name == ".DS_Store"
                or name.startswith("." if in_meta else ".#")
                or name.endswith(skip_files)
                or (entry.is_symlink() and _NEVER.fullmatch(name))
            ):
                continue
            base, prefix = (meta_folder, META_INF) if in_meta else (root, "src")
            packaged = f"{prefix}/{_text(path.relative_to(base))}"
            files.append(SourceFile(packaged, content_of(root, path)))
            if len(files) > MAX_FILES:
                raise SourceInvalid(
                    f"source directory {str(root)!r} holds more than {MAX_FILES} files",
                    hint="move what is not part of the chaincode out of the source "
                    "directory",
                    path=str(root),
                )
    if not files:
        raise SourceInvalid(f"no source files found in {str(root)!r}", path=str(root))
    return tuple(sorted(files, key=lambda file: file.name))


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    what = f"source directory {str(folder)!r}"
    refused = os_errors_as(SourceInvalid, what, path=str(folder))
    with refused, os.scandir(folder) as entries:
        return list(entries)


def content_of(root: Path, path: Path) -> Path:
    """Return where the content of a file is: itself, or what it links to.

    Raises: SourceInvalid: nowhere, outside of `root` (absolute, resolved), or no file.
    """
    try:
        target = path.resolve(strict=True)
        kind = stat.S_IFMT(target.stat().st_mode)
    except (OSError, RuntimeError) as error:
        raise _invalid(str(path), "is a link to nothing", "remove the link") from error
    if not target.is_relative_to(root):
        what = (
            f"links to {str(target)!r}, outside of the source directory {str(root)!r}"
        )
        raise _invalid(str(path), what, "copy the file into the source directory")
    if kind == stat.S_IFDIR:
        what = "is a link to a directory, which a package cannot hold"
        hint = "copy the directory, or move the link out of the source directory"
        raise _invalid(str(path), what, hint)
    if kind != stat.S_IFREG:
        hint = "move sockets, fifos and devices out of the source directory"
        raise _invalid(str(path), "is neither a file nor a directory", hint)
    return target


def _invalid(name: str, what: str, hint: str | None = None) -> SourceInvalid:
    return SourceInvalid(f"source file {name!r} {what}", hint=hint, path=name)


def _text(name: Path) -> str:
    # The bytes on disk, whatever encoding this process uses for file names.
    raw = os.fsencode(name)
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise SourceInvalid(
            f"the name of source file {raw!r} is not UTF-8",
            hint="rename the file",
            path=repr(raw),
        ) from error
