"""Which file of a Python project starts the chaincode.

The first of these that exists counts:
    1. `entry` in `[tool.chaindock]` of pyproject.toml: a .py file, or a module name
    2. main.py, chaincode.py, app.py, server.py
    3. the only .py file beside them that starts the shim
    4. the same two in src/
    5. the only package, here or in src/, that has a __main__.py
Source: docs/fabric/builds.md#python
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from chaindock.errors import SourceInvalid

if TYPE_CHECKING:
    from chaindock.platforms.tree import Tree

_MANIFEST = "pyproject.toml"
_USUAL = ("main.py", "chaincode.py", "app.py", "server.py")
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_FILE = re.compile(r"[^-{}][^{}]*\.py")
"""Not an option of python, and no placeholder of a plan."""
_REQUIREMENT = re.compile(r"\s*[A-Za-z0-9][^{}]*\Z")
_SHIM = re.compile(r"\b(fabric_chaincode_python|fabric_shim|fabric_contract_api)\b")
_START = re.compile(r"(\.|\b)start\s*\(")
_DOTS = 1000
_HINT = 'name it in pyproject.toml: [tool.chaindock] entry = "contract.py"'


@dataclass(frozen=True)
class Project:
    """The parts of pyproject.toml that count here.

    Args:
        builds: it says how the project is built, so that pip can install it.
        dependencies: requirements of `[project]`.
        entry: of `[tool.chaindock]`; None when absent.
    """

    builds: bool
    dependencies: tuple[str, ...]
    entry: str | None


def find_project(tree: Tree) -> Project | None:
    """Return what pyproject.toml says; None when there is none.

    Raises:
        SourceInvalid: it is not TOML, or an entry is not text.
    """
    text = tree.find_text(_MANIFEST)
    if text is None:
        return None
    if any(line.count(".") > _DOTS for line in text.splitlines()):
        # The time that tomllib takes grows with the square of the parts of a key.
        raise SourceInvalid(
            f"source file {_MANIFEST!r} has a line with more than {_DOTS} dots",
            path=_MANIFEST,
        )
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise SourceInvalid(
            f"source file {_MANIFEST!r} is not TOML: {str(error)[:200]}", path=_MANIFEST
        ) from error
    dependencies = _table(document, "project").get("dependencies", [])
    if not isinstance(dependencies, list) or not all(
        isinstance(one, str) and _REQUIREMENT.match(one) for one in dependencies
    ):
        raise SourceInvalid(
            f"dependencies of [project] in {_MANIFEST!r}: expected a list of "
            "requirements",
            path=_MANIFEST,
        )
    entry = _table(_table(document, "tool"), "chaindock").get("entry")
    if entry is not None and not isinstance(entry, str):
        raise SourceInvalid(
            f"entry of [tool.chaindock] in {_MANIFEST!r}: expected text", path=_MANIFEST
        )
    return Project("build-system" in document, tuple(dependencies), entry)


def find_entry(tree: Tree, project: Project | None) -> tuple[str, ...]:
    """Return the arguments of python that start the chaincode.

    Raises:
        SourceInvalid: nothing, or several things, could be meant.
    """
    if project is not None and project.entry is not None:
        return _named(tree, project.entry)
    for folder in ("", "src/"):
        for name in _USUAL:
            if tree.has_file(folder + name):
                return (folder + name,)
        starters = _starters(tree, folder)
        if len(starters) == 1:
            return (starters[0],)
        if starters:
            raise _several("files that start the shim", starters)
    packages = [
        name
        for folder in ("", "src")
        for name in tree.names(folder)
        if _MODULE.fullmatch(name)
        and tree.has_file(f"{folder}/{name}/__main__.py".lstrip("/"))
    ]
    if len(packages) == 1:
        return ("-m", packages[0])
    if packages:
        raise _several("packages with a __main__.py", packages)
    raise SourceInvalid(
        "no Python file that starts the chaincode: looked for main.py, chaincode.py, "
        "app.py, server.py, a file that starts the shim, each also in src/, and a "
        "package with a __main__.py",
        hint=_HINT,
        path=str(tree.root),
    )


def _named(tree: Tree, entry: str) -> tuple[str, ...]:
    if _FILE.fullmatch(entry) and tree.has_file(entry):
        return (entry,)
    if _MODULE.fullmatch(entry) and not entry.endswith(".py"):
        path = entry.replace(".", "/")
        for folder in ("", "src/"):
            if tree.has_file(f"{folder}{path}.py") or tree.has_file(
                f"{folder}{path}/__main__.py"
            ):
                return ("-m", entry)
    raise SourceInvalid(
        f"entry {entry[:200]!r} of [tool.chaindock] in {_MANIFEST!r} is neither a .py file "
        "nor a module of the project",
        hint=_HINT,
        path=_MANIFEST,
    )


def _starters(tree: Tree, folder: str) -> list[str]:
    found: list[str] = []
    for name in tree.names(folder):
        if not _FILE.fullmatch(name):
            continue
        text = tree.find_head(folder + name)
        if _SHIM.search(text) and _START.search(text):
            found.append(folder + name)
    return found


def _several(what: str, found: list[str]) -> SourceInvalid:
    listed = ", ".join(repr(name) for name in found[:10])
    return SourceInvalid(
        f"several {what}: {listed}", hint=_HINT, path=found[0], found=found
    )


def _table(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = document.get(name)
    return value if isinstance(value, Mapping) else {}
