"""Go packages outside of modules: which of them a chaincode needs from its GOPATH.

A package that cannot be found is an error here, not in a build much later.
Source: docs/fabric/builds.md#go
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from chaindock.errors import SourceInvalid
from chaindock.platforms.base import Selection, SourceFile
from chaindock.platforms.gosource import go_files, is_main
from chaindock.platforms.tree import META_INF, Tree, collect, content_of

if TYPE_CHECKING:
    from pathlib import Path

_DROPPED = frozenset({"go.mod", "go.sum"})


def collect_gopath(source: Path) -> Selection:
    """Return the package in `source` and every package it imports from its GOPATH.

    Raises:
        SourceInvalid: no main package; `source` is in no GOPATH; an import is missing.
    """
    if not is_main(Tree(source, trusted=True), ""):
        raise SourceInvalid(
            f"no go.mod in {str(source)!r} or above it, and no main package in it",
            hint="run `go mod init` and `go mod tidy` there",
            path=str(source),
        )
    missing: list[str] = []
    for root in (folder for folder in source.parents if folder.name == "src"):
        found, missing = _needed(Tree(root, trusted=True), _below(root, source))
        if not missing:
            return _selection(root, source, found)
    why = f": {missing[0]!r} is not in its GOPATH" if missing else ""
    raise SourceInvalid(
        f"no go.mod in {str(source)!r} or above it{why}",
        hint="run `go mod init` and `go mod tidy` there",
        path=str(source),
    )


def _below(root: Path, folder: Path) -> str:
    return folder.relative_to(root).as_posix()


def _needed(tree: Tree, first: str) -> tuple[list[str], list[str]]:
    """Return the directories of all packages, and the imports that are nowhere."""
    seen, missing = {first}, []
    waiting = [first]
    while waiting:
        folder = waiting.pop()
        for _, file in go_files(tree, folder):
            for path in file.imports:
                found = _find(tree, folder, path)
                if found is None:
                    if "." in path.partition("/")[0]:
                        missing.append(path)
                elif found not in seen:
                    seen.add(found)
                    waiting.append(found)
    return sorted(seen), sorted(set(missing))


def _find(tree: Tree, importer: str, path: str) -> str | None:
    """Return where an import lies: vendored beside or above the importer, or as it is."""
    above = importer
    while above:
        if tree.has_folder(f"{above}/vendor/{path}"):
            return f"{above}/vendor/{path}"
        above = above.rpartition("/")[0]
    return path if tree.has_folder(path) else None


def _selection(root: Path, source: Path, folders: list[str]) -> Selection:
    files: list[SourceFile] = []
    tree, base = Tree(root, trusted=True), root.resolve()
    for folder in folders:
        files += [
            SourceFile(f"src/{folder}/{name}", content_of(base, root / folder / name))
            for name in tree.names(folder)
            if tree.has_file(f"{folder}/{name}") and name not in _DROPPED
        ]
    if (source / META_INF).is_dir():
        whole = collect(source, skip_folder=lambda _: False, skip_file=lambda _: False)
        files += [file for file in whole if file.name.startswith(f"{META_INF}/")]
    ordered = tuple(sorted(files, key=lambda file: file.name))
    return Selection(ordered, _below(root, source), "golang")
