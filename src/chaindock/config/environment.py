"""The process environment, the home that a command means, and the YAML of core.yaml.

Every command imports this module, so nothing slow is imported here.
Source: docs/adr/0001-asyncio-one-process.md
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from shlex import quote
from typing import Any

from chaindock.errors import ConfigInvalid

HOME_VARIABLE = "CHAINDOCK_HOME"
FILE_NAME = "core.yaml"
_LARGEST = 1024 * 1024
"""Bytes; a larger file is refused."""
_MOST_LINKS = 40
_QUOTED = re.compile(r"""(['"])(?!<|\\)[^'"]{2,}\1""")
"""Text of the file in an error of the parser; not names of tokens or characters."""


def environment() -> dict[str, str]:
    """Return a copy of the environment as it is now."""
    return dict(os.environ)  # noqa: TID251  # this is the one place


def resolve_home(
    flag: str | Path | None = None, env: Mapping[str, str] | None = None
) -> Path:
    """Return the absolute home: `--home`, else CHAINDOCK_HOME, else ~/.chaindock.

    Raises: ConfigInvalid when there is no home directory to start from.
    """
    env = environment() if env is None else env
    named = flag or env.get(HOME_VARIABLE)
    try:
        if named:
            return Path(named).expanduser().absolute()
        return Path.home() / ".chaindock"
    except RuntimeError as error:
        raise ConfigInvalid(
            "there is no home directory for this user",
            hint=f"name a directory with --home DIR or {HOME_VARIABLE}",
            key="home",
        ) from error


def require_own(path: Path, *, but_folders: bool = False) -> None:
    """Refuse a file or directory that others can change or replace, as ssh does.

    It, all directories above and all links on the way must belong to the user or to
    root, and only the owner may write them. One above may be sticky, or be written by the
    owner's group of the same name, which holds the owner alone (umask 002). What does not
    exist is passed over, and with `but_folders` a directory.

    Raises: ConfigInvalid, with the command that corrects it.
    """
    places = list(dict.fromkeys(_on_the_way(path)))
    for place in () if but_folders and places[-1].is_dir() else reversed(places):
        try:
            about = place.lstat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise _unreadable(place, error) from error
        refused = 0o022
        if stat.S_ISLNK(about.st_mode):
            refused = 0  # its mode says nothing
        elif place != places[-1]:
            shared = about.st_mode & stat.S_ISVTX
            refused = 0 if shared else 0o002 if _is_private(about) else 0o022
        _require_own(place, about, refused)


def _on_the_way(path: Path) -> Iterator[Path]:
    """Yield the directories and links that lead to `path`, and last where it leads.

    Raises: ConfigInvalid when a link cannot be read, or there are too many.
    """
    here, links = Path("/"), 0
    left = list(reversed(path.absolute().parts))
    while left:
        name = left.pop()
        place = here.parent if name == ".." else here / name
        yield place
        try:
            if not place.is_symlink():
                here = place
                continue
            left += reversed(place.readlink().parts)
        except OSError as error:
            raise _unreadable(path, error) from error
        links += 1
        if links > _MOST_LINKS:
            circle = OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            raise _unreadable(path, circle) from circle


def _is_private(about: os.stat_result) -> bool:
    with contextlib.suppress(KeyError):
        owner = pwd.getpwuid(about.st_uid).pw_name
        return grp.getgrgid(about.st_gid).gr_name == owner
    return False


def _require_own(place: Path, about: os.stat_result, refused: int = 0o022) -> None:
    me, mode = os.geteuid(), stat.S_IMODE(about.st_mode)
    if about.st_uid not in {me, 0}:
        what, remedy = f"it belongs to user {about.st_uid}", f"chown {me}"
    elif mode & refused:
        what, remedy = "users other than its owner can write it", "chmod go-w"
    else:
        return
    sudo = "" if me in {0, about.st_uid} else "sudo "
    raise _refused(
        place,
        f"is not trusted: {what} (mode {mode:04o}, owner {about.st_uid}; expected "
        f"only user {me} to have write permission)",
        f"if you trust its content: {sudo}{remedy} {quote(str(place))}",
    )


def find_file(home: Path, folder: Path | None = None) -> Path | None:
    """Return the core.yaml to read: that of `folder`, else that of the home, if any.

    Not that of FABRIC_CFG_PATH, which a user sets for the `peer` command.

    Raises: ConfigInvalid when `folder` has none, or a directory cannot be read.
    """
    path = (folder or home).absolute() / FILE_NAME
    try:
        if path.is_file():
            return path
    except OSError as error:
        raise _unreadable(path, error) from error
    if folder:
        raise ConfigInvalid(
            f"there is no {FILE_NAME} in {str(folder)!r}",
            hint="name the directory of a core.yaml with --config DIR",
            key="config",
            origin="flag",
        )
    return None


def _unreadable(path: Path, error: OSError) -> ConfigInvalid:
    hint = "check its permissions and those of its directories"
    return _refused(path, f"cannot be read: {error.strerror}", hint)


def _refused(path: Path, why: str, hint: str | None = None) -> ConfigInvalid:
    return ConfigInvalid(f"{str(path)!r} {why}", hint=hint, key="", origin=str(path))


# --- YAML with the line of each key --------------------------------------------------


@contextlib.contextmanager
def compose(path: Path) -> Iterator[tuple[Any, Any]]:
    """Give a loader, and the root node of a file; None = it is empty.

    Raises: ConfigInvalid: others can change it, not readable, too large; not YAML, here
        or in the block.
    """
    import yaml  # noqa: PLC0415  # most homes have no file

    require_own(path.parent)
    require_own(path)
    try:
        with path.open("rb") as file:
            _require_own(path, os.fstat(file.fileno()))  # it may be another by now
            text = file.read(_LARGEST + 1)
        if len(text) > _LARGEST:
            raise _refused(path, f"is larger than {_LARGEST} bytes")
        # Not the one in C: deep nesting ends the process there.
        loader = yaml.SafeLoader(text)
        try:
            yield loader, loader.get_single_node()
        finally:
            loader.dispose()
    except OSError as error:
        raise _unreadable(path, error) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _refused(path, f"is not YAML: {_told(error)}") from error


def _told(error: Exception) -> str:
    """Return what is wrong and where, without the text: it may be a secret."""
    mark = getattr(error, "problem_mark", None)
    what = str(getattr(error, "problem", None) or error) if mark else str(error)
    told = _QUOTED.sub("…", " ".join(what.split()))
    return f"{told} in line {mark.line + 1}, column {mark.column + 1}" if mark else told


def is_mapping(node: Any) -> bool:
    """Whether a node has keys and values."""
    return getattr(node, "id", None) == "mapping"


def entries(loader: Any, node: Any) -> Iterator[tuple[str, Any, int]]:
    """Yield key, value node and line of the key; nothing if `node` is no mapping."""
    if is_mapping(node):
        loader.flatten_mapping(node)
        for key, value in node.value:
            yield str(key.value), value, key.start_mark.line + 1


def plain(loader: Any, node: Any) -> Any:
    """Return scalars as they are written: `007` and `1:30` stay text."""
    if node.id == "scalar":
        return None if node.tag.endswith(":null") else str(node.value)
    if node.id == "sequence":
        return [plain(loader, one) for one in node.value]
    return {name: plain(loader, one) or "" for name, one, _ in entries(loader, node)}
