"""What `npm start` of a package would run, without npm when that is possible.

A script is run without npm only when a shell would make the same program and arguments of
it. Everything else is left to npm.
Source: docs/fabric/builds.md#node; package.json as npm 7 to 11 read it
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from chaindock.errors import SourceInvalid

if TYPE_CHECKING:
    from chaindock.platforms.tree import Tree

_MANIFEST = "package.json"
_CLI = "fabric-chaincode-node"
_CLI_FILE = "node_modules/fabric-shim/cli.js"
_PLAIN_WORD = re.compile(r"[A-Za-z0-9_@%+:,./=-]+")
_TRACE = re.compile(r"\s*set\s+-[a-z]+\s*(?:&&|;)\s*")
_VALUE_FLAGS = frozenset({"-r", "--require", "--import", "--loader"})
_ADVICE = '"start": "fabric-chaincode-node start"'


@dataclass(frozen=True)
class Manifest:
    """The parts of package.json that count here.

    Args:
        main: as written; None when absent.
        scripts: name to command.
        dependencies: names of what is installed at run time.
        shims: it depends on a Fabric package.
    """

    main: str | None
    scripts: Mapping[str, str]
    dependencies: frozenset[str]
    shims: bool

    @property
    def entry(self) -> str:
        """The file that `require` of the package loads."""
        return self.main or "index.js"


@dataclass(frozen=True)
class Start:
    """How the program is started.

    Args:
        argv: with placeholders, the peer's address included.
        entry: the JavaScript file that must be there; None when npm is to find out.
    """

    argv: tuple[str, ...]
    entry: str | None


def find_manifest(tree: Tree) -> Manifest | None:
    """Return what package.json says; None when there is none.

    Raises:
        SourceInvalid: it is not a JSON object.
    """
    document = tree.find_json(_MANIFEST)
    if document is None:
        return None
    main = document.get("main")
    dependencies = _strings(document.get("dependencies"))
    return Manifest(
        main=main if isinstance(main, str) and main else None,
        scripts=_strings(document.get("scripts")),
        dependencies=frozenset(dependencies),
        shims=any(
            name in dependencies
            for name in ("fabric-shim", "fabric-contract-api", "fabric-shim-api")
        ),
    )


def resolve_start(manifest: Manifest, tree: Tree) -> Start:
    """Return what starts the chaincode.

    Raises:
        SourceInvalid: there is no start script, it starts a server, or the chaincode
            command would refuse this package.
    """
    script = manifest.scripts.get("start")
    if not script or not script.strip():
        if tree.has_file("server.js"):  # npm's own default
            return _dialling("{tool:node}", "server.js", entry="server.js")
        raise SourceInvalid(
            "package.json has no start script",
            hint=f"add to its scripts: {_ADVICE}",
            path=_MANIFEST,
        )
    command = _TRACE.sub("", script, count=1) if _TRACE.match(script) else script
    words = command.split()
    _refuse_server(words, script)
    if words[:2] == [_CLI, "start"]:
        _require_main(manifest, words)
    hooks = {"prestart", "poststart"} & manifest.scripts.keys()
    if hooks or not all(_PLAIN_WORD.fullmatch(word) for word in words):
        return _through_npm()
    return _direct(words, manifest) or _through_npm()


def _direct(words: list[str], manifest: Manifest) -> Start | None:
    program, arguments = words[0], words[1:]
    if program == _CLI and "fabric-shim" in manifest.dependencies:
        return _dialling("{tool:node}", _CLI_FILE, *arguments, entry=manifest.main)
    if program == "node" and (entry := _script_of(arguments)) is not None:
        return _dialling("{tool:node}", *arguments, entry=entry)
    return None


def _script_of(arguments: list[str]) -> str | None:
    """Return the file that node runs, given its arguments."""
    takes_value = False
    for word in arguments:
        if takes_value:
            takes_value = False
        elif word in _VALUE_FLAGS:
            takes_value = True
        elif not word.startswith("-"):
            return word
        elif word in {"-e", "--eval", "-p", "--print", "-"}:
            return None
    return None


def _through_npm() -> Start:
    return _dialling("{tool:npm}", "start", "--", entry=None)


def _dialling(*argv: str, entry: str | None) -> Start:
    return Start((*argv, "--peer.address", "{peer}"), entry)


def _refuse_server(words: list[str], script: str) -> None:
    if _CLI in words and words[words.index(_CLI) + 1 :][:1] == ["server"]:
        raise SourceInvalid(
            f"the start script {script[:200]!r} of package.json starts a server that "
            "nobody dials; chaincode that is launched dials back",
            hint=f"the same contract runs with {_ADVICE}; keep the server under "
            "another name, e.g. start:server",
            path=_MANIFEST,
        )


def _require_main(manifest: Manifest, words: list[str]) -> None:
    if manifest.main is None and not any("module-path" in word for word in words):
        raise SourceInvalid(
            "package.json has no main entry, which fabric-chaincode-node requires",
            hint='add "main": "index.js" (the file that exports the contracts)',
            path=_MANIFEST,
        )


def _strings(value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping):
        return {}
    return {key: text for key, text in value.items() if isinstance(text, str)}
