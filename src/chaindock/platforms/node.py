"""Node chaincode: JavaScript, and TypeScript with its own build script.

Source: docs/fabric/builds.md#node
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from chaindock.errors import SourceInvalid
from chaindock.options import option
from chaindock.platforms.base import (
    BuildPlan,
    Connection,
    LaunchCommand,
    Platform,
    Selection,
    Step,
    Tool,
)
from chaindock.platforms.images import LanguageImages, LanguagePull
from chaindock.platforms.node_start import find_manifest, resolve_start
from chaindock.platforms.tree import Tree, collect

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from chaindock.platforms.base import SourceFile
    from chaindock.platforms.node_start import Manifest

_LOCKS = ("package-lock.json", "npm-shrinkwrap.json")
_SOURCES = (".ts", ".mts", ".cts", ".tsx")
_QUIET = ("--no-audit", "--no-fund")
_BUILD_ENV = {
    "npm_config_cache": "{cache:npm}",
    "npm_config_update_notifier": "false",
}
# Without a terminal npm is silent until its end, and silence is what ends a fetch.
_FETCH_ENV = {**_BUILD_ENV, "npm_config_loglevel": "http"}
_RUN_ENV = {
    "CORE_CHAINCODE_ID_NAME": "{ccid}",
    "npm_config_update_notifier": "false",
    "npm_config_logs_max": "0",
}
_MAY_MAKE_FILES = frozenset({"preinstall", "install", "postinstall", "prepare"})


@dataclass(frozen=True)
class NodeImages(LanguageImages):
    """The images of Node."""

    builder: str = option(
        "node:20-bookworm-slim",
        "chaincode.node.runtime",
        "Image in which Node chaincode is built.",
    )
    runtime: str = option(
        "",
        "chaindock.node.runtime",
        "Image in which Node chaincode runs; empty = chaincode.node.runtime.",
    )
    pull: LanguagePull = option(
        "default",
        "chaindock.node.pull",
        "When the images of Node are fetched; default = as chaindock.docker.pull.",
    )


class Node(Platform):
    """Packages with a package.json."""

    name = "node"
    title = "Node"
    images = NodeImages()
    package_types = ("node",)
    looks_for = ("package.json",)
    image_output = "/usr/local/src"
    build_variables = (
        r"NPM_TOKEN|(?i:npm_config_(?!cafile|cache|prefix|.*config|.*_dir)\w+)"
    )
    tools = (
        Tool("node", "install Node.js"),
        Tool("npm", "install npm (it comes with Node.js)"),
    )
    error_lines = (
        r"(Uncaught )?\w*Error\b(:| \[)|FATAL ERROR: |.*\berror TS\d+:"
        r"|npm (ERR!|error) (?!A complete log|Usage|Options|Run \"npm|code\b|errno\b|path\b|\[)\S"
    )
    retryable_output = (
        r"npm (err!|error) (code|errno) (econn\w+|etimedout|enotfound|eai_again|e429"
        r"|enetunreach|ehostunreach|epipe|err_socket_timeout|e5\d\d|enospc)"
        r"|npm (err!|error).*(network timeout|socket hang up|invalid response body)"
    )

    def recognise(self, source: Path) -> str | None:
        """Return "has package.json" and the like, else None."""
        tree = Tree(source, trusted=True)
        for name in ("package.json", "index.js"):
            if tree.has_file(name):
                return f"has {name}"
        return None

    def names_shim(self, source: Path) -> bool:
        """Whether package.json depends on a Fabric package."""
        manifest = find_manifest(Tree(source, trusted=True))
        return manifest is not None and manifest.shims

    def select(self, source: Path) -> Selection:
        """Return everything but installed packages and caches.

        Raises:
            SourceInvalid: it could not be built or started either.
        """
        _plan(Tree(source.resolve(), trusted=True))
        files = collect(source, skip_folder=lambda _: False, skip_file=lambda _: False)
        return Selection(files, "", "node", _stale_output(source, files))

    def plan(self, tree: Path, import_path: str) -> BuildPlan:  # noqa: ARG002
        """Return copy, npm install, and the build script when its result is missing.

        Raises:
            SourceInvalid: no package.json, or no usable start script.
        """
        return _plan(Tree(tree / "src"))


def _plan(source: Tree) -> BuildPlan:
    manifest = find_manifest(source)
    if manifest is None:
        raise SourceInvalid(
            "no package.json in the source directory",
            hint="run `npm init` there and add fabric-contract-api and fabric-shim",
            path="package.json",
        )
    start = resolve_start(manifest, source)
    builds = _must_build(manifest, source, start.entry)
    command = "ci" if any(source.has_file(name) for name in _LOCKS) else "install"
    copy = Step("dependencies", ("cp", "-R", "{input}/src/.", "{output}"), "{output}")
    scope = "--include=dev" if builds else "--omit=dev"
    steps = [copy, _npm("dependencies", command, scope, *_QUIET)]
    if builds:
        steps.append(_npm("compile", "run", "build"))
        steps.append(_npm("compile", "prune", "--omit=dev", *_QUIET))
    launch = LaunchCommand(
        argv=start.argv,
        cwd="{output}",
        connection=Connection.CALLS_BACK,
        env=_RUN_ENV,
    )
    return BuildPlan(tuple(steps), launch, ("npm",))


def _npm(phase: str, *arguments: str) -> Step:
    argv = ("{tool:npm}", *arguments)
    if phase == "compile":
        return Step("compile", argv, "{output}", _BUILD_ENV)
    return Step("dependencies", argv, "{output}", _FETCH_ENV)


def _must_build(manifest: Manifest, source: Tree, entry: str | None) -> bool:
    """Whether the file that is started has to be made by the package's build script."""
    if _has_module(source, entry or manifest.entry):
        return False
    if "build" in manifest.scripts:
        return entry is not None or source.has_file("tsconfig.json")
    if entry is None:
        return False
    if _MAY_MAKE_FILES & manifest.scripts.keys():
        return False
    raise SourceInvalid(
        f"the file {entry!r} that package.json starts is missing, and there is no build "
        "script that could make it",
        hint='add "build" to the scripts (for TypeScript: "build": "tsc")',
        path=entry,
    )


def _stale_output(source: Path, files: Sequence[SourceFile]) -> tuple[str, ...]:
    """Say so when what is started was built before its source was last changed."""
    tree = Tree(source.resolve(), trusted=True)
    manifest = find_manifest(tree)
    if manifest is None or "build" not in manifest.scripts:
        return ()
    entry = resolve_start(manifest, tree).entry or manifest.entry
    folder, _, rest = entry.removeprefix("./").partition("/")
    if not rest or folder == "src" or not _has_module(tree, entry):
        return ()
    built = [file for file in files if file.name.startswith(f"src/{folder}/")]
    written = [
        file
        for file in files
        if file.name.endswith(_SOURCES) or file.name.startswith("src/src/")
    ]
    written = [file for file in written if file not in built]
    newest = max(written, key=_changed, default=None)
    if newest is None or not built or _changed(newest) <= max(map(_changed, built)):
        return ()
    name = newest.name.removeprefix("src/")
    said = f"{folder}/ is older than {name} and is deployed as it is"
    return (f"{said}: run `npm run build` first, or remove {folder}/",)


def _changed(file: SourceFile) -> float:
    return file.path.stat().st_mtime


def _has_module(source: Tree, entry: str) -> bool:
    return any(
        source.has_file(entry + ending)
        for ending in ("", ".js", ".cjs", ".json", "/index.js")
    )
