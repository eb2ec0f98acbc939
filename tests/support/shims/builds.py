"""Programs of the fixtures in each language, built once per source.

Results are kept under `$XDG_CACHE_HOME/chaindock-test/builds`, by the hash of the
source directory.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from support.need import need
from support.nodes.node import cache_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
SOURCES = FIXTURES / "conformance"
PATIENCE_S = 600
JAVA = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")
"""Options of `java` for programs that run for seconds: half of the processor time."""
JAVAC = tuple(f"-J{one}" for one in JAVA)


def go_program(source: Path = SOURCES / "go") -> Path:
    """Return the binary of the Go program in `source`."""
    need("go")

    def build(source: Path, into: Path) -> None:
        _go_build(source, into / "program")

    return _kept("go", build, source) / "program"


def old_go_program() -> Path:
    """Return a binary with the shim and the contract API of the generation before."""
    return go_program(FIXTURES / "foreign" / "go-old")


def java_classes(source: Path = SOURCES / "java") -> Path:
    """Return the directory with the Java classes and, in `lib`, the jars they need."""
    need("java", "javac", "mvn")

    def build(source: Path, into: Path) -> None:
        shutil.copytree(source, into, dirs_exist_ok=True)
        jars = into / "lib"
        copy = ("dependency:copy-dependencies", f"-DoutputDirectory={jars}")
        _run("mvn", "-q", "-B", *copy, cwd=into)
        files = map(str, sorted((into / "src" / "main" / "java").glob("*.java")))
        _run("javac", "-cp", f"{jars}/*", "-d", str(into), *files, cwd=into)

    return _kept("java", build, source)


def node_project(source: Path = SOURCES / "node") -> Path:
    """Return a copy of a Node project with its dependencies installed."""
    need("node", "npm")

    def build(source: Path, into: Path) -> None:
        shutil.copytree(source, into, dirs_exist_ok=True)
        flags = ("--no-audit", "--no-fund", "--omit=dev", "--ignore-scripts")
        _run("npm", "ci", *flags, cwd=into)

    return _kept("node", build, source)


def python_environment() -> Path:
    """Return the directory with the Python sources and `env/bin/python`."""

    def build(source: Path, into: Path) -> None:
        shutil.copytree(source, into, dirs_exist_ok=True)
        _run(sys.executable, "-m", "venv", str(into / "env"), cwd=into)
        python = str(into / "env" / "bin" / "python")
        flags = ("--quiet", "--disable-pip-version-check")
        _run(python, "-m", "pip", "install", *flags, "-r", "requirements.txt", cwd=into)

    return _kept("python", build, SOURCES / "python")


def _kept(language: str, build: Callable[[Path, Path], None], source: Path) -> Path:
    digest = hashlib.sha256(sys.version.encode())
    for path in sorted(source.rglob("*")):
        if path.is_file() and "node_modules" not in path.parts:
            digest.update(str(path.relative_to(source)).encode() + path.read_bytes())
    home = os.environ.get("XDG_CACHE_HOME")  # noqa: TID251  # tests have no config
    cache = Path(home) if home else Path.home() / ".cache"
    result = (
        cache / "chaindock-test" / "builds" / f"{language}-{digest.hexdigest()[:20]}"
    )
    done = result / ".done"
    if not done.exists():
        result.parent.mkdir(parents=True, exist_ok=True)
        # Virtual environments cannot be moved: build in place, mark when complete.
        with result.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # other workers want the same build
            if not done.exists():
                shutil.rmtree(result, ignore_errors=True)
                result.mkdir()
                build(source, result)
                done.touch()
    return result


def _go_build(source: Path, program: Path) -> None:
    """Compile as nodes of the tests do, with their caches: gRPC is compiled once."""
    caches = cache_folder() / "chaindock" / "toolchains"
    env = {
        "GOCACHE": str(caches / "go-build"),
        "GOMODCACHE": str(caches / "go-mod"),
        "CGO_ENABLED": "0",
    }
    flags = ("-trimpath", "-buildvcs=false")
    _run("go", "build", *flags, "-o", str(program), ".", cwd=source, env=env)


def _run(*argv: str, cwd: Path, env: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(
        argv,
        cwd=cwd,
        env={**os.environ, **(env or {})},  # noqa: TID251  # tests have no config
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    if done.returncode != 0:
        raise AssertionError(f"{argv} ended with {done.returncode}:\n{done.stderr}")
