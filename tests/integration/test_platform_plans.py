"""The plans of every language, run for real: source to a program that connects."""

from __future__ import annotations

import asyncio
import io
import os
import re
import shutil
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from chaindock.packaging.store import PackageStore
from chaindock.packaging.writer import package_directory
from chaindock.platforms.base import Connection
from chaindock.platforms.registry import platform_for
from support.need import need
from support.nodes.node import cache_folder
from support.trees import make

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    from chaindock.packaging.store import StoredPackage
    from chaindock.platforms.base import BuildPlan

FIXTURES = Path(__file__).parents[1] / "fixtures" / "platforms"
PLACEHOLDER = re.compile(r"\{(\w+)(?::([\w-]+))?\}")
TOOLS = {"go": "go", "node": "node", "npm": "npm", "python3": "python3"}
pytestmark = [pytest.mark.network, pytest.mark.slow, pytest.mark.timeout(420)]


class Places:
    """Values of the placeholders, for a build and a run in a directory."""

    def __init__(self, base: Path, caches: Path, address: str) -> None:
        self.base, self.caches = base, caches
        self.output = base / "output"
        self.values = {
            "input": str(base / "input"),
            "peer": address,
            "listen": address,
            "ccid": "tiny_1.0:" + "0" * 64,
        }

    def fill(self, text: str) -> str:
        def value(found: re.Match[str]) -> str:
            kind, name = found[1], found[2]
            if kind == "cache":
                folder = self.caches / name
                folder.mkdir(exist_ok=True)
                return str(folder)
            if kind == "tool":
                path = shutil.which(TOOLS[name])
                assert path is not None
                return path
            return {"output": str(self.output), **self.values}[kind]

        return PLACEHOLDER.sub(value, text)

    def environment(self, own: Mapping[str, str]) -> dict[str, str]:
        filled = {name: self.fill(value) for name, value in own.items()}
        return {**os.environ, **filled}  # noqa: TID251  # registries of this machine


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Downloads begin anew; what Go compiled of them is that of the nodes of all tests."""
    folder = tmp_path_factory.mktemp("caches")
    compiled = cache_folder() / "chaindock" / "toolchains" / "go-build"
    compiled.mkdir(parents=True, exist_ok=True)
    (folder / "go-build").symlink_to(compiled)
    yield folder
    for path in (folder, *folder.rglob("*")):  # Go makes its modules read-only
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
    shutil.rmtree(folder)


@pytest.fixture
async def listener() -> AsyncIterator[tuple[str, asyncio.Event]]:
    """An address that chaincode can dial, and whether one did."""
    dialled = asyncio.Event()

    async def take(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        dialled.set()
        writer.close()

    async with await asyncio.start_server(take, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        yield f"127.0.0.1:{port}", dialled


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


async def package(source: Path, base: Path) -> StoredPackage:
    file = base / "package.tar.gz"
    with file.open("wb") as out:
        await asyncio.to_thread(package_directory, source, out, "tiny_1.0")
    return await asyncio.to_thread(PackageStore(base / "store").add, file)


async def build(source: Path, places: Places) -> BuildPlan:
    stored = await package(source, places.base)
    await stored.unpack(places.base / "input")
    platform = platform_for(stored.package_type)
    plan = platform.plan(places.base / "input", stored.import_path)
    need(*(tool.name for tool in platform.tools))
    for step in plan.steps:
        cwd = Path(places.fill(step.cwd))
        cwd.mkdir(parents=True, exist_ok=True)
        places.output.mkdir(exist_ok=True)
        done = await asyncio.to_thread(
            subprocess.run,
            [places.fill(word) for word in step.argv],
            cwd=cwd,
            env=places.environment(step.env),
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, f"{step.argv}\n{done.stdout}\n{done.stderr}"
    # Where it is built is not where it runs: in an image, or in a store of builds.
    moved = places.base / "moved"
    places.output.rename(moved)
    places.output = moved
    shutil.rmtree(places.base / "input")
    return plan


async def start(plan: BuildPlan, places: Places) -> asyncio.subprocess.Process:
    launch = plan.launch
    argv = [places.fill(word) for word in launch.argv]
    assert shutil.which(argv[0]), f"{argv[0]} is no program"
    env = places.environment(launch.env) | {"CORE_PEER_TLS_ENABLED": "false"}
    return await asyncio.create_subprocess_exec(
        *argv,
        cwd=places.fill(launch.cwd),
        env=env,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


async def end(process: asyncio.subprocess.Process) -> str:
    if process.returncode is None:
        process.kill()
    output, _ = await process.communicate()
    return output.decode(errors="replace")


async def must_dial(plan: BuildPlan, places: Places, dialled: asyncio.Event) -> None:
    assert plan.launch.connection is Connection.CALLS_BACK
    process = await start(plan, places)
    try:
        async with asyncio.timeout(60):
            await dialled.wait()
    except TimeoutError:
        pytest.fail(f"it never dialled: {await end(process)}")
    finally:
        await end(process)


async def must_serve(plan: BuildPlan, places: Places) -> None:
    assert plan.launch.connection is Connection.DIALLED
    process = await start(plan, places)
    host, _, port = places.values["listen"].partition(":")
    try:
        async with asyncio.timeout(60):
            while True:
                try:
                    _, writer = await asyncio.open_connection(host, int(port))
                except ConnectionRefusedError:
                    if process.returncode is not None:
                        pytest.fail(f"it ended: {await end(process)}")
                    await asyncio.sleep(0.1)
                else:
                    writer.close()
                    return
    finally:
        await end(process)


@pytest.mark.golang
@pytest.mark.parametrize("kind", ["downloaded", "vendored", "gopath"])
async def test_go_program_dials_the_node(tmp_path, caches, listener, kind):
    need("go")
    address, dialled = listener
    places = Places(tmp_path / "work", caches, address)
    places.base.mkdir()
    source = tmp_path / "source"
    shutil.copytree(FIXTURES / "go", source)
    if kind != "downloaded":
        await asyncio.to_thread(
            subprocess.run,
            ["go", "mod", "vendor"],
            cwd=source,
            env=places.environment({"GOMODCACHE": "{cache:go-mod}"}),
            check=True,
            capture_output=True,
        )
    if kind == "gopath":
        below = tmp_path / "path" / "src" / "example.org" / "tiny"
        source.rename(below.parent.mkdir(parents=True) or below)
        for name in ("go.mod", "go.sum", "vendor/modules.txt"):
            (below / name).unlink()
        source = below / "cmd" / "tiny"
    await must_dial(await build(source, places), places, dialled)


@pytest.mark.golang
async def test_go_program_that_needs_c_is_built_with_it(tmp_path, caches, listener):
    need("go", "gcc")
    places = Places(tmp_path / "work", caches, "127.0.0.1:1")
    places.base.mkdir()
    make(
        tmp_path / "source",
        {
            "go.mod": "module example.org/c\n\ngo 1.22\n",
            "main.go": (
                'package main\n\n// static int seven(void) { return 7; }\nimport "C"\n\n'
                "func main() { println(C.seven()) }\n"
            ),
        },
    )
    process = await start(await build(tmp_path / "source", places), places)
    output, _ = await process.communicate()
    assert output == b"7\n"


@pytest.mark.nodejs
@pytest.mark.parametrize("name", ["node", "typescript"])
async def test_node_program_dials_the_node(tmp_path, caches, listener, name):
    need("node", "npm")
    address, dialled = listener
    places = Places(tmp_path, caches, address)
    plan = await build(FIXTURES / name, places)
    assert not (places.output / "node_modules" / "typescript").exists()
    await must_dial(plan, places, dialled)


@pytest.mark.nodejs
async def test_a_start_script_that_needs_a_shell_is_left_to_npm(
    tmp_path, caches, listener
):
    need("node", "npm")
    address, dialled = listener
    places = Places(tmp_path / "work", caches, address)
    places.base.mkdir()
    source = tmp_path / "source"
    shutil.copytree(FIXTURES / "node", source)
    text = (source / "package.json").read_text()
    (source / "package.json").write_text(
        text.replace("set -x && fabric", "LABEL='a b' fabric")
    )
    plan = await build(source, places)
    assert plan.launch.argv[0] == "{tool:npm}"
    await must_dial(plan, places, dialled)


@pytest.mark.parametrize("name", ["python", "python-project", "python-package"])
async def test_python_program_serves(tmp_path, caches, name):
    need("python3")
    places = Places(tmp_path / "work", caches, free_address())
    places.base.mkdir()
    source = tmp_path / "source"
    shutil.copytree(FIXTURES / name.replace("package", "project"), source)
    if name == "python-package":
        manifest = source / "pyproject.toml"
        manifest.write_text(
            '[build-system]\nrequires = ["hatchling"]\n'
            'build-backend = "hatchling.build"\n\n' + manifest.read_text()
        )
    await must_serve(await build(source, places), places)


@pytest.mark.parametrize(
    "source",
    sorted((FIXTURES.parent / "foreign").glob("*/")),
    ids=lambda path: path.name,
)
async def test_layouts_of_fabric_users_are_packaged_and_planned(tmp_path, source):
    if not source.is_dir():
        pytest.skip("a page about them")
    stored = await package(source, tmp_path)
    await stored.unpack(tmp_path / "input")
    platform = platform_for(stored.package_type)
    assert platform.plan(tmp_path / "input", stored.import_path).steps
    again = io.BytesIO()
    assert package_directory(source, again, "tiny_1.0").id == stored.ccid
