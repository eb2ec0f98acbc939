"""Find core.yaml and read its YAML with the line of each key."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chaindock.errors import ConfigInvalid

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

FILE_NAME = "core.yaml"
FOLDER_VARIABLE = "FABRIC_CFG_PATH"
_LARGEST = 1024 * 1024
"""Bytes; a larger file is refused."""
_QUOTED = re.compile(r"""(['"])(?!<|\\)[^'"]{2,}\1""")
"""Text of the file in an error of the parser; not names of tokens or characters."""


def find_file(home: Path, env: Mapping[str, str]) -> Path | None:
    """Return the core.yaml to read: in FABRIC_CFG_PATH, else in the home.

    Raises: ConfigInvalid when FABRIC_CFG_PATH names a directory without one, or a
        directory cannot be read.
    """
    if folder := env.get(FOLDER_VARIABLE):
        path = Path(folder).absolute() / FILE_NAME
        if not _is_file(path):
            raise ConfigInvalid(
                f"there is no {FILE_NAME} in {folder!r}",
                hint=f"correct {FOLDER_VARIABLE}, or unset it",
                key=FOLDER_VARIABLE,
                origin=f"env {FOLDER_VARIABLE}",
            )
        return path
    path = home / FILE_NAME
    return path if _is_file(path) else None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> ConfigInvalid:
    return ConfigInvalid(
        f"{str(path)!r} cannot be read: {error.strerror}",
        hint="check its permissions and those of its directories",
        key="",
        origin=str(path),
    )


@contextlib.contextmanager
def compose(path: Path) -> Iterator[tuple[Any, Any]]:
    """Give a loader, and the root node of a file; None = it is empty.

    Raises: ConfigInvalid: not readable, too large, not YAML, here or in the block.
    """
    import yaml  # noqa: PLC0415  # most homes have no file

    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST + 1)
        if len(text) > _LARGEST:
            raise ConfigInvalid(
                f"{str(path)!r} is larger than {_LARGEST} bytes",
                key="",
                origin=str(path),
            )
        # Not the one in C: deep nesting ends the process there.
        loader = yaml.SafeLoader(text)
        try:
            yield loader, loader.get_single_node()
        finally:
            loader.dispose()
    except OSError as error:
        raise _unreadable(path, error) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigInvalid(
            f"{str(path)!r} is not YAML: {_told(error)}",
            key="",
            origin=str(path),
        ) from error


def _told(error: Exception) -> str:
    """Return what is wrong and where, without the text: it may be a secret."""
    mark = getattr(error, "problem_mark", None)
    what = str(getattr(error, "problem", None) or error) if mark else str(error)
    told = _QUOTED.sub("…", " ".join(what.split()))
    return f"{told} in line {mark.line + 1}, column {mark.column + 1}" if mark else told


def plain(loader: Any, node: Any) -> Any:
    """Return scalars as they are written: `007` and `1:30` stay text."""
    import yaml  # noqa: PLC0415

    if isinstance(node, yaml.ScalarNode):
        return None if node.tag.endswith(":null") else str(node.value)
    if isinstance(node, yaml.SequenceNode):
        return [plain(loader, one) for one in node.value]
    loader.flatten_mapping(node)
    return {str(key.value): plain(loader, one) or "" for key, one in node.value}
