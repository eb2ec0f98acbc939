"""Node chaincode: JavaScript, and TypeScript with its own build script.

A start script is run without npm only when a shell would make the same program and
arguments of it. Everything else is left to npm.
Source: docs/fabric/builds.md#node; package.json as npm 7 to 11 read it
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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
from chaindock.platforms.tree import SourceFile, Tree, collect

_LOCKS = ("package-lock.json", "npm-shrinkwrap.json")
_QUIET = ("--no-audit", "--no-fund")
_BUILD_ENV = {"npm_config_cache": "{cache:npm}", "npm_config_update_notifier": "false"}
# Without a terminal npm is silent until its end, and silence is what ends a fetch.
_FETCH_ENV = {**_BUILD_ENV, "npm_config_loglevel": "http"}
_RUN_ENV = {
    "CORE_CHAINCODE_ID_NAME": "{ccid}",
    "npm_config_update_notifier": "false",
    "npm_config_logs_max": "0",
}
_MANIFEST = "package.json"
_CLI = "fabric-chaincode-node"
_CLI_FILE = "node_modules/fabric-shim/cli.js"
_PLAIN_WORD = re.compile(r"[A-Za-z0-9_@%+:,./=-]+")
_TRACE = re.compile(r"\A\s*set\s+-[a-z]+\s*(?:&&|;)\s*")
_VALUE_FLAGS = frozenset({"-r", "--require", "--import", "--loader"})
_ADVICE = '"start": "fabric-chaincode-node start"'
_MAY_MAKE_FILES = frozenset({"preinstall", "install", "postinstall", "prepare"})


@dataclass(frozen=True)
class Images(LanguageImages):
    """The images of Node."""

    builder: str = option("node:20-bookworm-slim", "chaincode.node.runtime")
    """Image in which Node chaincode is built."""
    runtime: str = option("", "chaindock.node.runtime")
    """Image in which Node chaincode runs; empty = chaincode.node.runtime."""


class Node(Platform):
    """Packages with a package.json."""

    name = "node"
    title = "Node"
    images = Images()
    looks_for = ("package.json",)
    hints = ("index.js",)
    shims = r'"fabric-(shim(-api)?|contract-api)"\s*:'
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

    def select(self, source: Path) -> Selection:
        """Return all but installed packages and caches. Raises: SourceInvalid."""
        tree = Tree(source.resolve(), trusted=True)
        _plan(tree)
        files = collect(source)
        return Selection(files, "", "node", _stale_output(tree, files))

    def plan(self, tree: Path, import_path: str) -> BuildPlan:  # noqa: ARG002
        """Return copy, npm install, and perhaps a build. Raises: SourceInvalid."""
        return _plan(Tree(tree / "src"))


def _plan(source: Tree) -> BuildPlan:
    manifest = _read_manifest(source)
    argv, entry = _resolve_start(manifest, source)
    builds = _must_build(manifest, source, entry)
    command = "ci" if any(source.has_file(name) for name in _LOCKS) else "install"
    copy = Step("dependencies", ("cp", "-R", "{input}/src/.", "{output}"), "{output}")
    scope = "--include=dev" if builds else "--omit=dev"
    steps = [copy, _npm("dependencies", command, scope, *_QUIET)]
    if builds:
        steps.append(_npm("compile", "run", "build"))
        steps.append(_npm("compile", "prune", "--omit=dev", *_QUIET))
    argv = (*argv, "--peer.address", "{peer}")
    launch = LaunchCommand(argv, "{output}", Connection.CALLS_BACK, _RUN_ENV)
    return BuildPlan(tuple(steps), launch, ("npm",))


def _npm(phase: Literal["dependencies", "compile"], *arguments: str) -> Step:
    env = _FETCH_ENV if phase == "dependencies" else _BUILD_ENV
    return Step(phase, ("{tool:npm}", *arguments), "{output}", env)


def _must_build(manifest: Manifest, source: Tree, entry: str | None) -> bool:
    """Whether the file that is started has to be made by the package's build script."""
    if _has_module(source, entry or manifest.entry):
        return False
    if "build" in manifest.scripts:
        return entry is not None or source.has_file("tsconfig.json")
    if entry is None or _MAY_MAKE_FILES & manifest.scripts.keys():
        return False
    raise SourceInvalid(
        f"the file {entry!r} that package.json starts is missing, and there is no build "
        "script that could make it",
        hint='add "build" to the scripts (for TypeScript: "build": "tsc")',
        path=entry,
    )


def _stale_output(tree: Tree, files: Sequence[SourceFile]) -> tuple[str, ...]:
    """Say so when what is started was built before its source was last changed."""
    manifest = _read_manifest(tree)
    entry = _resolve_start(manifest, tree)[1] or manifest.entry
    folder, _, rest = entry.removeprefix("./").partition("/")
    if "build" not in manifest.scripts or not rest or folder == "src":
        return ()
    built = [file for file in files if file.name.startswith(f"src/{folder}/")]
    written = [
        file
        for file in files
        if file not in built and re.match(r"src/src/|.*\.([mc]?ts|tsx)\Z", file.name)
    ]
    newest = max(written, key=_changed, default=None)
    if newest is None or not built or not _has_module(tree, entry):
        return ()
    if _changed(newest) <= max(map(_changed, built)):
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


# --- what `npm start` would run


@dataclass(frozen=True)
class Manifest:
    """The parts of package.json that count here; `main` is None when absent."""

    main: str | None
    scripts: Mapping[str, str]
    dependencies: frozenset[str]

    @property
    def entry(self) -> str:
        """The file that `require` of the package loads."""
        return self.main or "index.js"


def _read_manifest(tree: Tree) -> Manifest:
    """Return what package.json says. Raises: SourceInvalid: none, or no JSON object."""
    document = tree.find_json(_MANIFEST)
    if document is None:
        hint = "run `npm init` there and add fabric-contract-api and fabric-shim"
        raise _invalid("no package.json in the source directory", hint)
    main = document.get("main")
    return Manifest(
        main=main if isinstance(main, str) and main else None,
        scripts=_strings(document.get("scripts")),
        dependencies=frozenset(_strings(document.get("dependencies"))),
    )


def _resolve_start(
    manifest: Manifest, tree: Tree
) -> tuple[tuple[str, ...], str | None]:
    """Return the arguments that start the chaincode, and the file that they start.

    The file is None when npm is to find out.

    Raises:
        SourceInvalid: there is no start script, it starts a server, or the chaincode
            command would refuse this package.
    """
    script = manifest.scripts.get("start", "")
    words = _TRACE.sub("", script).split()
    if not words:
        if tree.has_file("server.js") and not script.strip():  # npm's own default
            return ("{tool:node}", "server.js"), "server.js"
        hint = f"add to its scripts: {_ADVICE}"
        raise _invalid("package.json has no start script", hint)
    _refuse(words, script, manifest.main)
    hooks = {"prestart", "poststart"} & manifest.scripts.keys()
    if not hooks and all(_PLAIN_WORD.fullmatch(word) for word in words):
        program, *arguments = words
        if program == _CLI and "fabric-shim" in manifest.dependencies:
            return ("{tool:node}", _CLI_FILE, *arguments), manifest.main
        if program == "node" and (entry := _script_of(arguments)) is not None:
            return ("{tool:node}", *arguments), entry
    return ("{tool:npm}", "start", "--"), None


def _script_of(arguments: list[str]) -> str | None:
    words = iter(arguments)
    for word in words:
        if word in _VALUE_FLAGS:
            next(words, None)
        elif not word.startswith("-"):
            return word
        elif word in {"-e", "--eval", "-p", "--print", "-"}:
            return None
    return None


def _refuse(words: list[str], script: str, main: str | None) -> None:
    """Refuse a script that starts a server, or one that fabric-chaincode-node refuses."""
    if _CLI in words and words[words.index(_CLI) + 1 :][:1] == ["server"]:
        raise _invalid(
            f"the start script {script[:200]!r} of package.json starts a server that "
            "nobody dials; chaincode that is launched dials back",
            f"the same contract runs with {_ADVICE}; keep the server under another name, "
            "e.g. start:server",
        )
    starts_main = words[:2] == [_CLI, "start"] and "module-path" not in script
    if starts_main and main is None:
        raise _invalid(
            "package.json has no main entry, which fabric-chaincode-node requires",
            'add "main": "index.js" (the file that exports the contracts)',
        )


def _invalid(what: str, hint: str) -> SourceInvalid:
    return SourceInvalid(what, hint=hint, path=_MANIFEST)


def _strings(value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping):
        return {}
    return {key: text for key, text in value.items() if isinstance(text, str)}
