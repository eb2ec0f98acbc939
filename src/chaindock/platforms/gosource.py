"""What go.mod and Go files say, read without the go tool.

Source: docs/fabric/builds.md#go
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chaindock.errors import SourceInvalid

if TYPE_CHECKING:
    from chaindock.platforms.tree import Tree

# All of these take time in proportion to the text, whatever it is.
_LINE_COMMENT = re.compile(r"//[^\n]*")
_COMMENT = re.compile(r"//[^\n]*|/\*.*?(?:\*/|\Z)", re.DOTALL)
_PACKAGE = re.compile(r"^[ \t]*package[ \t]+(\w+)", re.MULTILINE)
_STRING = re.compile(r"[\"`]([^\"`\n]+)[\"`]")
_CONSTRAINT = re.compile(r"^//(?:go:build| ?\+build)[ \t]+(\w+)[ \t]*$", re.MULTILINE)
_PLATFORM_TAGS = frozenset(
    {"linux", "darwin", "unix", "amd64", "arm64", "cgo", "gc", "purego"}
)
_IMPORT_PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._~+@-]*(/[A-Za-z0-9._~+@-]+)*")


@dataclass(frozen=True)
class GoFile:
    """The head of one Go file."""

    package: str
    imports: tuple[str, ...]


def read_module(tree: Tree) -> tuple[str, list[str]]:
    """Return the path of go.mod, and replacing directories that lie outside of the module.

    Raises: SourceInvalid: it names no module.
    """
    text = tree.find_text("go.mod") or ""
    path = ""
    outside: list[str] = []
    block = ""
    for line in _LINE_COMMENT.sub("", text).splitlines():
        words = line.replace("(", " ( ").replace(")", " ) ").split()
        if words[:1] == [")"]:
            block = ""
        elif words[1:2] == ["("]:
            block = words[0]
        elif words:
            verb, rest = (block, words) if block else (words[0], words[1:])
            if verb == "module" and rest:
                path = rest[0].strip('"`')
            elif verb == "replace" and "=>" in rest:
                target = rest[rest.index("=>") + 1 :][:1]
                outside += [one for one in target if one.startswith(("../", "/"))]
    if not _IMPORT_PATH.fullmatch(path):
        raise SourceInvalid(
            "'go.mod' names no module",
            hint="begin it with: module example.com/chaincode",
            path="go.mod",
        )
    return path, outside


def is_import_path(path: str) -> bool:
    """Whether `path` can be given to the go tool as a package, and as nothing else."""
    rest = path.removeprefix("./")
    if path == ".":
        return True
    return bool(_IMPORT_PATH.fullmatch(rest)) and not {".", ".."} & {*rest.split("/")}


def read_go_file(tree: Tree, name: str) -> GoFile | None:
    """Return the head of a Go file; None for tests and files no build takes."""
    last = name.rpartition("/")[2]
    if last.endswith("_test.go") or last.startswith(("_", ".")):
        return None
    text = "\n" + tree.find_head(name)
    before, _, _ = text.partition("\npackage ")
    for tag in _CONSTRAINT.findall(before):
        if tag not in _PLATFORM_TAGS and not tag.startswith("go1"):
            return None
    text = _COMMENT.sub("", text)
    package = _PACKAGE.search(text)
    return GoFile(package[1] if package else "", tuple(_imports(text)))


def _imports(text: str) -> list[str]:
    found: list[str] = []
    inside = False
    for line in text.replace(";", "\n").splitlines():
        words = line.strip()
        if not inside and words.startswith("import"):
            words = words.removeprefix("import").lstrip()
            inside = words.startswith("(")
        elif not inside:
            continue
        found += _STRING.findall(words)
        inside = inside and ")" not in words
    return found


def go_files(tree: Tree, folder: str) -> list[GoFile]:
    """Return the Go files of one directory that a build takes."""
    names = (f"{folder}/{name}".lstrip("/") for name in tree.names(folder))
    read = (read_go_file(tree, name) for name in names if name.endswith(".go"))
    return [file for file in read if file is not None]


def is_main(tree: Tree, folder: str) -> bool:
    """Whether the directory holds a main package."""
    return any(file.package == "main" for file in go_files(tree, folder))


def main_packages(tree: Tree) -> list[str]:
    """Return the directories of all main packages of a module, sorted."""
    folders = {
        name.rpartition("/")[0]
        for name in tree.walk(lambda folder: _is_foreign(tree, folder))
        if name.endswith(".go")
    }
    return sorted(folder for folder in folders if is_main(tree, folder))


def _is_foreign(tree: Tree, folder: str) -> bool:
    last = folder.rpartition("/")[2]
    return (
        last.startswith((".", "_"))
        or last in {"vendor", "testdata", "node_modules"}
        or tree.has_file(f"{folder}/go.mod")
    )
