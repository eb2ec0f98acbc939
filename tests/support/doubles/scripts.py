"""Chaincode that is a shell script: what a conformance suite builds and runs.

Owns:    acts (what a script does), ScriptPlatform, ScriptPackages.
Not:     judging the outcome (conformance.py), playing acts without a shell (fakes.py).
Entry:   ScriptPackages.make, ScriptPlatform
Holds:   needs /bin/sh and nothing from a registry; `call` and `serve` also need one
         of perl, python3 (and bash for `call`).
Source:  platforms/base.py
"""

from __future__ import annotations

import asyncio
import gzip
import io
import itertools
import json
import shlex
import tarfile
from typing import TYPE_CHECKING

from chaindock.packaging.store import PackageStore
from chaindock.platforms.base import (
    BuildPlan,
    Connection,
    LaunchCommand,
    Platform,
    Selection,
    Step,
    Tool,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from chaindock.packaging.store import StoredPackage

PACKAGE_TYPE = "script"

Act = tuple[str, ...]
"""A verb and its words; made by the functions below, played in order."""


def say(text: str, stream: str = "stdout") -> Act:
    """Write one line."""
    return ("say", text, stream)


def flood(megabytes: int, width: int = 100) -> Act:
    """Write that many MB (10^6) to stdout, in lines of `width` bytes."""
    return ("flood", str(megabytes * 1_000_000 // width), "x" * (width - 1))


def leave(code: int) -> Act:
    """End with this exit code."""
    return ("leave", str(code))


def hang() -> Act:
    """Go on until SIGTERM, then end with exit code 0."""
    return ("hang",)


def ignore_term() -> Act:
    """Go on, whatever SIGTERM asks."""
    return ("ignore_term",)


def fork() -> Act:
    """Start a child that goes on by itself and keeps stdout and stderr open."""
    return ("fork",)


def call() -> Act:
    """Open a TCP connection to the peer."""
    return ("call",)


def serve() -> Act:
    """Take connections on the listen address, for ever."""
    return ("serve",)


_TRAPS = {"hang": "trap 'exit 0' TERM", "ignore_term": "trap '' TERM"}
_FOREVER = "while :; do sleep 1 & wait $!; done"
_CALL = """\
host=${1%:*} port=${1##*:}
if command -v bash >/dev/null; then bash -c "exec 3<>/dev/tcp/$host/$port"
elif command -v perl >/dev/null; then perl -MIO::Socket::INET \\
  -e 'IO::Socket::INET->new($ARGV[0]) or die $!' "$1"
else python3 -c 'import socket,sys
socket.create_connection((sys.argv[1],int(sys.argv[2])))' "$host" "$port"; fi"""
_SERVE = """\
host=${1%:*} port=${1##*:}
if command -v perl >/dev/null; then exec perl -MIO::Socket::INET -MIO::Socket::UNIX \\
  -e '$_=$ARGV[0];
  $s=s/^unix://?IO::Socket::UNIX->new(Local=>$_,Listen=>5)
  :IO::Socket::INET->new(LocalAddr=>$_,Listen=>5,ReuseAddr=>1);
  $s or die $!; while(1){$s->accept}' "$1"
else exec python3 -c 'import socket,sys
a,host,port=sys.argv[1:]
if host=="unix": s=socket.socket(socket.AF_UNIX); s.bind(a[5:]); s.listen()
else: s=socket.create_server((host,int(port)))
while True: s.accept()' "$1" "$host" "$port"; fi"""


def _shell(act: Act) -> str:
    verb, *words = act
    if verb == "say":
        line = f"printf '%s\\n' {shlex.quote(words[0])}"
        return f"{line} >&2" if words[1] == "stderr" else line
    return {
        "flood": f"yes {words[-1]} | head -n {words[0]}" if words else "",
        "leave": f"exit {words[0] if words else 0}",
        "hang": _FOREVER,
        "ignore_term": _FOREVER,
        "fork": f"( trap '' TERM; {_FOREVER} ) &",
        "call": _CALL,
        "serve": _SERVE,
    }[verb]


def _script(acts: Sequence[Act], *last: str) -> bytes:
    # First of all, so that whoever reads a line may count on it.
    traps = [_TRAPS[act[0]] for act in acts if act[0] in _TRAPS]
    return "\n".join(["set -e", *traps, *map(_shell, acts), *last, ""]).encode()


class ScriptPlatform(Platform):
    """Builds by copying, runs with /bin/sh; packages come from ScriptPackages."""

    name = "script"
    image_output = "/chaincode"
    tools: tuple[Tool, ...] = (Tool("sh", "install a shell"),)

    def recognise(self, source: Path) -> str | None:
        """Return "has main.sh" if it has."""
        return "has main.sh" if (source / "main.sh").is_file() else None

    def select(self, source: Path) -> Selection:
        """Not needed: ScriptPackages writes its packages itself."""
        raise NotImplementedError

    def plan(self, tree: Path, import_path: str) -> BuildPlan:
        """Return two steps (deps.sh, build.sh) and the launch of main.sh."""
        del import_path
        serves = (tree / "src" / "serves").is_file()
        address = "{listen}" if serves else "{peer}"
        cwd = "{input}/src"
        return BuildPlan(
            steps=(
                Step("dependencies", ("{tool:sh}", "deps.sh"), cwd),
                Step("compile", ("{tool:sh}", "build.sh", "{output}"), cwd),
            ),
            launch=LaunchCommand(
                argv=("{tool:sh}", "{output}/main.sh", address),
                cwd="{output}",
                connection=Connection.DIALLED if serves else Connection.CALLS_BACK,
                env={"SCRIPT_CCID": "{ccid}"},
            ),
        )


def platform_for_scripts(package_type: str) -> Platform:
    """Return ScriptPlatform: what suites hand to a controller as `platforms`."""
    del package_type
    return ScriptPlatform()


class ScriptPackages:
    """Makes packages of scripts and keeps them in a real PackageStore.

    Args:
        folder: made if missing; belongs to the caller.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._store = PackageStore(folder)
        self._count = itertools.count()

    async def make(
        self,
        *run: Act,
        build: Sequence[Act] = (),
        dependencies: Sequence[Act] = (),
        serves: bool = False,
        label: str | None = None,
        salt: str | None = None,
    ) -> StoredPackage:
        """Return a package that is already in the store.

        Args:
            run: what main.sh does.
            build: what build.sh does before it copies main.sh.
            dependencies: what deps.sh does.
            serves: the node dials it (else it calls back).
            label: None = a new one each time.
            salt: packages with equal acts and salt have equal code; None = a new one.
        """
        number = next(self._count)
        files = {
            "src/deps.sh": _script(dependencies),
            "src/build.sh": _script(build, 'cp main.sh salt "$1"/'),
            "src/main.sh": _script(run),
            "src/salt": (salt or f"salt {number}").encode(),
            "src/acts.json": json.dumps([dependencies, build, run]).encode(),
            **({"src/serves": b""} if serves else {}),
        }
        metadata = {"type": PACKAGE_TYPE, "path": "", "label": label or f"s{number}"}
        outer = {
            "metadata.json": json.dumps(metadata).encode(),
            "code.tar.gz": _tar_gz(files),
        }
        return await asyncio.to_thread(self._store.add, _tar_gz(outer))


def _tar_gz(files: Mapping[str, bytes]) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for name, data in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o100644
            tar.addfile(entry, io.BytesIO(data))
    return gzip.compress(raw.getvalue(), mtime=0)
