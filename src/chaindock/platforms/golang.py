"""Go chaincode: modules, and packages below a GOPATH. Packaging needs no go tool.

Source: docs/fabric/builds.md#go
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import override

from chaindock.errors import SourceInvalid
from chaindock.options import option
from chaindock.platforms.base import (
    BuildPlan,
    Connection,
    LanguageImages,
    LaunchCommand,
    Platform,
    Selection,
    Step,
    Tool,
)
from chaindock.platforms.tree import META_INF, SourceFile, Tree, collect, content_of

_LAUNCH = LaunchCommand(
    argv=("{output}/chaincode", "-peer.address={peer}"),
    cwd="{output}",
    connection=Connection.CALLS_BACK,
    env={"CORE_CHAINCODE_ID_NAME": "{ccid}"},
)
_CACHES = {"GOCACHE": "{cache:go-build}", "GOMODCACHE": "{cache:go-mod}"}
_GOPATH = {"GO111MODULE": "off", "GOPATH": "{input}"}

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
class Images(LanguageImages):
    """The images of Go."""

    builder: str = option("golang:1.24-bookworm", "chaincode.builder")
    """Image in which Go chaincode is built."""
    runtime: str = option("debian:bookworm-slim", "chaincode.golang.runtime")
    """Image in which Go chaincode runs."""


class Golang(Platform):
    """Modules, packages of a module, and packages below a GOPATH."""

    name = "golang"
    title = "Go"
    images = Images()
    looks_for = ("go.mod", "*.go")
    shims = "hyperledger/fabric-(chaincode|contract-api)-go"
    image_output = "/usr/local/bin"
    build_variables = (
        "GOPROXY|GOSUMDB|GONOSUMDB|GOPRIVATE|GONOPROXY|GOINSECURE|GOFLAGS|GOTOOLCHAIN"
    )
    tools = (Tool("go", "install Go", version=("version",)),)
    error_lines = (
        r"\s*panic: |fatal error: |runtime: out of memory|goroutine stack exceeds"
        r"|\S+\.go:\d+:\d+: |go: (?!downloading|finding|extracting|added|upgraded)"
    )
    retryable_output = (
        r"dial tcp|no such host|temporary failure in name resolution|i/o timeout"
        r"|tls handshake timeout|connection (refused|reset|timed out)|unexpected eof"
        r"|http2: .*(goaway|timeout)|: (429|5\d\d) [a-z]|no space left"
    )

    @override
    def names_shim(self, source: Path) -> bool:
        return super().names_shim(_module_root(source) or source)

    def select(self, source: Path) -> Selection:
        """Return the whole module that `source` belongs to.

        Raises: SourceInvalid: no main package, or several; a replaced directory
        outside.
        """
        source = source.resolve()
        root = _module_root(source)
        if root is None:
            return _select_gopath(source)
        tree = Tree(root, trusted=True)
        module, outside = read_module(tree)
        if outside and not tree.has_file("vendor/modules.txt"):
            raise SourceInvalid(
                f"go.mod replaces a module by {outside[0]!r}, which lies outside "
                "of the module and so cannot be packaged",
                hint="run `go mod vendor` before packaging",
                path=str(root / "go.mod"),
            )
        folder = _main_folder(tree, source)
        beside_main = root / folder / META_INF
        files = collect(
            root,
            skip_folders=".*",
            meta_folder=beside_main if beside_main.is_dir() else source / META_INF,
        )
        path = f"{module}/{folder}" if folder else module
        return Selection(files, path, "golang")

    def plan(self, tree: Path, import_path: str) -> BuildPlan:
        """Return `go mod download`, if needed, and `go build`. Raises: SourceInvalid."""
        source = Tree(tree / "src")
        import_path = import_path or "."
        rest = import_path.removeprefix("./").split("/")
        inside = _IMPORT_PATH.fullmatch("/".join(rest)) and not {".", ".."} & {*rest}
        if not (import_path == "." or inside):  # or it would be an option, or outside
            raise SourceInvalid(
                f"the package's path {import_path!r} is not a Go import path",
                hint="package the chaincode again with `chaindock package`",
                path=import_path,
            )
        if source.has_file("go.mod"):
            folder, target = "", import_path
        elif source.has_file(f"{import_path}/go.mod"):
            folder, target = import_path, "."
        elif source.has_folder(import_path):
            env = _CACHES | _GOPATH | _cgo(source)
            step = Step("compile", _build(import_path), "{input}/src", env)
            return BuildPlan((step,), _LAUNCH, ("go-build", "go-mod"))
        else:
            raise SourceInvalid(
                f"the package holds neither src/go.mod nor src/{import_path}",
                hint="package the chaincode again with `chaindock package`",
                path=import_path,
            )
        return _module_plan(source, folder, target)


def _module_root(source: Path) -> Path | None:
    source = source.resolve()
    for folder in (source, *source.parents):
        if (folder / "go.mod").is_file():
            return folder
    return None


def _main_folder(tree: Tree, source: Path) -> str:
    """Return the directory of the main package, relative to the module."""
    here = "/".join(source.relative_to(tree.root.resolve()).parts)
    if "/." not in f"/{here}" and is_main(tree, here):
        return here
    found = [
        folder
        for folder in main_packages(tree)
        if not here or folder.startswith(f"{here}/")
    ]
    if len(found) == 1:
        return found[0]
    if not found:
        raise SourceInvalid(
            f"no main package in {str(source)!r}",
            hint="chaincode is `package main` with func main, in no hidden directory",
            path=str(source),
        )
    listed = ", ".join(repr(folder) for folder in found[:10])
    raise SourceInvalid(
        f"{str(source)!r} holds {len(found)} main packages: {listed}",
        hint=f"name the directory of one of them, e.g. {tree.root / found[0]}",
        path=str(source),
        packages=found,
    )


def _module_plan(source: Tree, folder: str, target: str) -> BuildPlan:
    cwd = "{input}/src/" + folder if folder else "{input}/src"
    base = f"{folder}/" if folder else ""
    env = _CACHES | _cgo(source)
    if not source.has_file(f"{base}go.work"):
        env["GOWORK"] = "off"  # else one above the build directory would count
    vendored = source.has_folder(f"{base}vendor")
    steps: list[Step] = []
    if not vendored:
        # Without -x it is silent until its end, and silence is what ends a fetch.
        download = ("{tool:go}", "mod", "download", "-x")
        steps.append(Step("dependencies", download, cwd, env))
    mode = "-mod=vendor" if vendored else "-mod=readonly"
    steps.append(Step("compile", _build(target, mode), cwd, env))
    return BuildPlan(tuple(steps), _LAUNCH, ("go-build", "go-mod"))


def _build(target: str, *mode: str) -> tuple[str, ...]:
    flags = ("-trimpath", "-buildvcs=false", *mode)
    return ("{tool:go}", "build", *flags, "-o", "{output}/chaincode", target)


def _cgo(source: Tree) -> dict[str, str]:
    """A static program, unless the chaincode's own code needs C."""
    for name in source.walk(lambda folder: folder.rpartition("/")[2] == "vendor"):
        if name.endswith(".go") and '"C"' in source.find_head(name):
            file = read_go_file(source, name)
            if file is not None and "C" in file.imports:
                return {}
    return {"CGO_ENABLED": "0"}


# --- packages below a GOPATH


def _select_gopath(source: Path) -> Selection:
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
        found, missing = _needed(
            Tree(root, trusted=True), source.relative_to(root).as_posix()
        )
        if not missing:
            return _gopath_selection(root, source, found)
    why = f": {missing[0]!r} is not in its GOPATH" if missing else ""
    raise SourceInvalid(
        f"no go.mod in {str(source)!r} or above it{why}",
        hint="run `go mod init` and `go mod tidy` there",
        path=str(source),
    )


def _needed(tree: Tree, first: str) -> tuple[list[str], list[str]]:
    """Return the directories of all packages, and the imports that are nowhere."""
    seen, missing = {first}, []
    waiting = [first]
    while waiting:
        folder = waiting.pop()
        for file in go_files(tree, folder):
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


def _gopath_selection(root: Path, source: Path, folders: list[str]) -> Selection:
    files: list[SourceFile] = []
    tree, base = Tree(root, trusted=True), root.resolve()
    for folder in folders:
        files += [
            SourceFile(f"src/{folder}/{name}", content_of(base, root / folder / name))
            for name in tree.names(folder)
            if tree.has_file(f"{folder}/{name}") and name not in {"go.mod", "go.sum"}
        ]
    if (source / META_INF).is_dir():
        files += [
            file for file in collect(source) if file.name.startswith(f"{META_INF}/")
        ]
    ordered = tuple(sorted(files, key=lambda file: file.name))
    return Selection(ordered, source.relative_to(root).as_posix(), "golang")


# --- what go.mod and Go files say


@dataclass(frozen=True)
class GoFile:
    """The head of one Go file."""

    package: str
    imports: tuple[str, ...]


def read_module(tree: Tree) -> tuple[str, list[str]]:
    """Return the module's path, and replacements outside of it. Raises: SourceInvalid."""
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
