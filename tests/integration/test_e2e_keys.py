"""The private key of a run is with that run, and nowhere else, and goes with it."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import socket
import tarfile
from functools import partial
from typing import TYPE_CHECKING

import psutil
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from chaindock.controllers.docker.engine import Engine
from support.nodes.node import BACKENDS, DOCKER, FIXTURES, PROCESS, Node, started
from support.nodes.remains import ask, inspect

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.slow,
    pytest.mark.nodejs,
    pytest.mark.network,
    pytest.mark.timeout(600),
]
NAME = "notes"
TLS_FOLDER = "/etc/hyperledger/fabric"
SILENCE_S = 60.0


@pytest.fixture(scope="module", params=BACKENDS)
def node(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Node]:
    with started(request.param, tmp_path_factory.mktemp("node")) as node:
        node.deploy(FIXTURES / "foreign" / "node-shim", NAME)
        yield node


def container_of(node: Node) -> str:
    line = node.ps(NAME)
    assert line is not None
    found: str = line["details"]["container"]
    return found


def key_files(node: Node) -> dict[str, bytes]:
    """Return the files with the key of the run, by their places."""
    if node.backend == PROCESS:
        places = node.home.glob("process/runs/*/*/tls/client*.key")
        return {str(path): path.read_bytes() for path in places}
    packed = ask(lambda engine: archive(engine, container_of(node)))
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        files = {entry.name: tar.extractfile(entry) for entry in tar}
    return {
        name: file.read()
        for name, file in files.items()
        if file is not None and name.endswith(".key")
    }


async def archive(engine: Engine, container: str) -> bytes:
    parts = [
        part async for part in engine.get_archive(container, TLS_FOLDER, SILENCE_S)
    ]
    return b"".join(parts)


async def layers(engine: Engine, image: str) -> bytes:
    """Return the image as a tar of its layers, which are not compressed."""
    found = engine.stream("GET", f"images/{image}/get", SILENCE_S)
    return b"".join([part async for part in found])


def traces(node: Node) -> list[bytes]:
    """Return what shows the key, in every form in which it exists."""
    files = key_files(node)
    (pem,) = [data for name, data in files.items() if name.endswith("client_pem.key")]
    key = serialization.load_pem_private_key(pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    secret = key.private_numbers().private_value.to_bytes(32, "big")
    body = pem.splitlines()[1]
    return [body[10:50], base64.b64encode(pem)[60:120], secret, secret.hex().encode()]


def seen(found: list[bytes], data: bytes | str) -> bool:
    raw = data.encode() if isinstance(data, str) else data
    return any(trace in raw for trace in found)


def files_with(found: list[bytes], *folders: Path) -> set[str]:
    return {
        str(path)
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink() and seen(found, path.read_bytes())
    }


def test_the_stream_of_a_run_says_what_guards_it(node: Node):
    line = node.ps(NAME)
    assert line is not None
    assert line["details"]["stream"] == "mutual TLS"
    assert "stream: mutual TLS" in node.cli("ps").out.decode().replace("\n", " ")


def test_the_key_is_in_the_files_of_the_run_alone(node: Node):
    found, holders = traces(node), set(key_files(node))
    assert len(holders) == 2
    held = files_with(found, node.home, node.temp)
    assert held == (holders if node.backend == PROCESS else set())


def test_no_program_and_no_environment_shows_it(node: Node):
    found = traces(node)
    for process in psutil.process_iter():
        try:
            told = [*process.cmdline(), *process.environ().values()]
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        assert not seen(found, "\n".join(told)), process


def test_no_answer_of_the_node_shows_it(node: Node):
    found = traces(node)
    node.invoke(NAME, "put", "n1", "text")
    for words in (("ps",), ("status",), ("config", "show"), ("logs", NAME)):
        result = node.cli("--json", *words, code=None)
        assert not seen(found, result.out), words
        assert not seen(found, result.err), words
    assert not seen(found, (node.home / "node.log").read_bytes())


@pytest.mark.parametrize("node", [DOCKER], indirect=True)
def test_the_engine_shows_it_nowhere(node: Node):
    found, container = traces(node), inspect(container_of(node))
    image = container["Image"]
    volumes = [one["Name"] for one in container["Mounts"] if one["Type"] == "volume"]
    assert len(volumes) == 1
    assert not seen(found, json.dumps(container))
    for path in (
        f"images/{image}/json",
        f"images/{image}/history",
        f"containers/{container['Id']}/top",
        f"volumes/{volumes[0]}",
    ):
        told = ask(partial(Engine.call, method="GET", path=path))
        assert not seen(found, json.dumps(told)), path
    assert not seen(found, ask(partial(layers, image=image)))


def test_after_the_run_it_is_gone(node: Node):
    """The last test of this module's node, which it stops."""
    found = traces(node)
    volumes = node.remains.anonymous_volumes()
    node.cli("stop", NAME)
    assert files_with(found, node.home, node.temp) == set()
    assert node.remains.volumes(volumes) == []
    node.cli("start", NAME)
    assert not set(traces(node)) & set(found), "each attempt has a key of its own"


def test_strangers_neither_get_in_nor_fill_the_log(node: Node):
    before = (node.home / "node.log").stat().st_size
    address = node.ask("status")["endpoints"]["chaincode"]
    if address == "no port yet":
        return  # contracts in sandboxes need none, so there is none for strangers
    host, _, port = address.rpartition(":")
    for _ in range(300):
        with socket.create_connection((host, int(port)), timeout=10) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\nHost: node\r\n\r\n")
            with contextlib.suppress(ConnectionResetError):
                assert stranger.recv(1) == b""
    node.invoke(NAME, "put", "n2", "text")
    assert (node.home / "node.log").stat().st_size - before < 20_000


def test_keys_of_the_node_are_not_written(node: Node):
    """Those on disk belong to the organisation, and to the run."""
    held = files_with([b"PRIVATE KEY-----"], node.home, node.temp)
    known = ("/organizations/", "/tls/client_pem.key")
    assert [path for path in held if not any(part in path for part in known)] == []
