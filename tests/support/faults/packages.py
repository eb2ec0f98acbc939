"""Packages of chaincode that fails: at its start, in its build, or on a call.

`misbehaves` packs one Go program (tests/fixtures/hostile/misbehaves), whose label says
how to start, so that all these packages share one build; `builds` packs a Node project
whose build runs a script of the test.
"""

from __future__ import annotations

import functools
import gzip
import io
import json
import tarfile
from pathlib import Path

from chaindock.packaging.writer import write_package
from chaindock.platforms.registry import recognise

SOURCE = Path(__file__).resolve().parents[2] / "fixtures" / "hostile" / "misbehaves"
_MANIFEST = {
    "name": "builds",
    "version": "1.0.0",
    "main": "dist/index.js",
    "scripts": {"build": "node build.js", "start": "node dist/index.js"},
}
HANG = "console.log('it begins'); setInterval(() => {}, 1000);\n"
TALKS = "setInterval(() => console.log('still at it'), 100);\n"
FAIL = "console.log('it begins'); console.error('no such thing'); process.exit(4);\n"
WORKS = (
    "const fs = require('fs'); fs.mkdirSync('dist');\n"
    "fs.writeFileSync('dist/index.js', 'process.exit(6);');\n"
)
"""The built chaincode exits at once."""


def flood(megabytes: int) -> str:
    """Return a build that prints `megabytes` (10^6 bytes) in lines of 1000, then fails."""
    return (
        "const lines = ('x'.repeat(999) + '\\n').repeat(1000);\n"
        f"for (let n = 0; n < {megabytes}; n++) require('fs').writeSync(1, lines);\n"
        "console.log('flood is over');\nprocess.exitCode = 4;\n"
    )


def leaves_behind(size: int) -> str:
    """Return a build that succeeds and leaves a file of `size` bytes."""
    return (
        f"{WORKS}const noise = require('crypto').randomBytes({size});\n"
        "fs.writeFileSync('dist/noise', noise);\n"
    )


def misbehaves(folder: Path, label: str) -> Path:
    """Return the package of this label, which begins with a mode of the program."""
    package = folder / f"{label}.tar.gz"
    if not package.exists():
        outer = {"metadata.json": _metadata(label), "code.tar.gz": _code()}
        package.write_bytes(_archive(outer))
    return package


def builds(folder: Path, label: str, script: str) -> Path:
    """Return a Node package, without dependencies, whose build runs `script`."""
    package = folder / f"{label}.tar.gz"
    source = folder / f"source of {label}"
    source.mkdir()
    (source / "package.json").write_text(json.dumps(_MANIFEST))
    (source / "build.js").write_text(f"// {label}\n{script}")
    (source / "tsconfig.json").write_text("{}")
    with package.open("wb") as out:
        write_package(recognise(source).select(source), label, out)
    return package


def _metadata(label: str) -> bytes:
    found = {"path": _import_path(), "type": "golang", "label": label}
    return json.dumps(found).encode()


@functools.cache
def _written() -> tuple[str, bytes]:
    out = io.BytesIO()
    selection = recognise(SOURCE).select(SOURCE)
    write_package(selection, "any", out)
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as tar:
        code = tar.extractfile("code.tar.gz")
        assert code is not None
        return selection.import_path, code.read()


def _import_path() -> str:
    return _written()[0]


def _code() -> bytes:
    return _written()[1]


def _archive(files: dict[str, bytes]) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return gzip.compress(raw.getvalue(), mtime=0)
