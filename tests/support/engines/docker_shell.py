"""Chaincode that is any shell script, to look around in a container."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from typing import TYPE_CHECKING

from chaindock.container.attempt import Attempt
from chaindock.packaging.store import PackageStore
from support.doubles.backend import WatchedAttempt, built

if TYPE_CHECKING:
    from pathlib import Path

    from chaindock.container.contracts import Exit, PeerConnection
    from chaindock.packaging.store import StoredPackage
    from support.engines.docker_backend import DockerBackend


def shell_package(
    folder: Path, script: str, build: str = "", label: str = "shell"
) -> StoredPackage:
    """Return a package for ScriptPlatform; `script` gets the address as `$1`."""
    files = {
        "src/deps.sh": "set -e\n",
        "src/build.sh": f'set -e\n{build}\ncp main.sh "$1"/\n',
        "src/main.sh": script,
    }
    metadata = json.dumps({"type": "script", "path": "", "label": label})
    code = packed({name: text.encode() for name, text in files.items()})
    outer = packed({"metadata.json": metadata.encode(), "code.tar.gz": code})
    return PackageStore(folder).add(outer)


def packed(files: dict[str, bytes]) -> bytes:
    """Return a .tar.gz."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o100644
            tar.addfile(entry, io.BytesIO(data))
    return gzip.compress(raw.getvalue(), mtime=0)


async def run_shell(
    backend: DockerBackend, script: str, peer: PeerConnection | None = None
) -> tuple[list[str], Exit]:
    """Run a script as chaincode to its end; return what it wrote, and how it ended."""
    package = shell_package(backend.folder / "shell", script)
    instance = await built(await backend.builder(), package, Attempt(package.ccid))
    attempt = WatchedAttempt(package)
    async with backend.within():
        await instance.start(peer or backend.peer, attempt)
        result = await instance.wait()
        await instance.stop(0)
    return [line for _, line in attempt.lines], result
