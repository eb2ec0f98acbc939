"""Mutual TLS with the real shims: every encoding that they read, both directions."""

from __future__ import annotations

import base64
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest

from chaindock.container.contracts import DialTls
from chaindock.errors import LaunchFailed
from chaindock.identity.ca import TlsAuthority
from support.shims.builds import go_program, java_classes, node_project, old_go_program
from support.shims.stream_node import CCID
from support.shims.world import Program, ShimWorld

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [pytest.mark.network, pytest.mark.slow, pytest.mark.timeout(300)]

PEM = frozenset({"CORE_TLS_CLIENT_KEY_FILE", "CORE_TLS_CLIENT_CERT_FILE"})
BASE64 = frozenset({"CORE_TLS_CLIENT_KEY_PATH", "CORE_TLS_CLIENT_CERT_PATH"})
NOTHING: frozenset[str] = frozenset()
NAME = "conformance.org1.example.com"


@dataclass(frozen=True)
class Shim:
    """A real chaincode, and the functions of it that write and read."""

    program: Program
    write: str = "put"
    read: str = "get"


async def works(shim: Shim, folder: Path, authority: TlsAuthority) -> None:
    """Check that it registers, writes and reads."""
    async with ShimWorld(shim.program, folder, authority=authority) as world:
        await world.value(shim.write, "k", "v", commit=True)
        assert await world.value(shim.read, "k") == b"v"


# --- chaincode that dials the node ----------------------------------------------------


def go_dials() -> Shim:
    binary = go_program()
    return Shim(Program((str(binary), "-peer.address={peer}"), binary.parent))


def go_contract_dials() -> Shim:
    program = replace(go_dials().program, env={"CONFORMANCE_API": "contract"})
    return Shim(program, "Put", "Get")


def old_go_dials() -> Shim:
    binary = old_go_program()
    program = Program((str(binary), "-peer.address={peer}"), binary.parent)
    return Shim(program, "CreateNote", "ReadNote")


def node_dials() -> Shim:
    argv = ("node", "plain.js", "--peer.address", "{peer}")
    return Shim(Program((*argv, "--chaincode-id-name", "{ccid}"), node_project()))


def node_contract_dials() -> Shim:
    project = node_project()
    cli = str(project / "node_modules" / ".bin" / "fabric-chaincode-node")
    return Shim(Program((cli, "start", "--peer.address", "{peer}"), project))


def java_dials() -> Shim:
    folder = java_classes()
    argv = ("java", "-cp", f"{folder}:{folder}/lib/*", "Plain")
    return Shim(Program((*argv, "--peerAddress", "{peer}"), folder))


@pytest.mark.parametrize(
    ("shim", "without"),
    [
        pytest.param(go_dials, NOTHING, id="go", marks=pytest.mark.golang),
        pytest.param(go_dials, PEM, id="go-base64", marks=pytest.mark.golang),
        pytest.param(go_dials, BASE64, id="go-pem", marks=pytest.mark.golang),
        pytest.param(
            go_contract_dials, NOTHING, id="go-contract", marks=pytest.mark.golang
        ),
        pytest.param(old_go_dials, NOTHING, id="go-old", marks=pytest.mark.golang),
        pytest.param(old_go_dials, PEM, id="go-old-base64", marks=pytest.mark.golang),
        pytest.param(old_go_dials, BASE64, id="go-old-pem", marks=pytest.mark.golang),
        pytest.param(node_dials, NOTHING, id="node", marks=pytest.mark.nodejs),
        pytest.param(node_dials, PEM, id="node-base64", marks=pytest.mark.nodejs),
        pytest.param(
            node_contract_dials, NOTHING, id="node-contract", marks=pytest.mark.nodejs
        ),
        pytest.param(java_dials, NOTHING, id="java"),
        pytest.param(java_dials, PEM, id="java-base64"),
    ],
)
@pytest.mark.statement(14, by="go node java")
async def test_a_shim_that_dials_shows_its_certificate(
    tmp_path: Path, shim: Callable[[], Shim], without: frozenset[str]
):
    made = shim()
    made = replace(made, program=replace(made.program, without=without))
    await works(made, tmp_path, TlsAuthority())


@pytest.mark.golang
async def test_a_shim_with_another_attempts_files_is_refused(tmp_path: Path):
    """The files are right in every way but one: they were made for another."""
    authority = TlsAuthority()
    pair = authority.issue_client()
    stolen = {"client_pem.key": pair.key_pem, "client_pem.crt": pair.cert_pem}
    files = {name: text.encode() for name, text in stolen.items()}
    program = replace(go_dials().program, files=files)
    async with ShimWorld(program, tmp_path, authority=authority) as world:
        with pytest.raises(LaunchFailed):
            await world.custodian.launch(CCID)
        assert "not found in registry" in world.instance.log.read_text()


# --- chaincode that serves ------------------------------------------------------------


@dataclass(frozen=True)
class Served:
    """What a chaincode that serves is given, and how the node dials it."""

    files: dict[str, bytes]
    tls: DialTls


def served(name: str | None = None) -> Served:
    """Return TLS with client certificates on both sides; `name` = the server's own."""
    authority = TlsAuthority()
    own, node = authority.issue_server(name or "127.0.0.1"), authority.issue_client()
    texts = {"key": own.key_pem, "crt": own.cert_pem, "ca": authority.root_pem}
    pem = {f"server.{end}": text.encode() for end, text in texts.items()}
    coded = {f"{end}.64": base64.b64encode(data) for end, data in pem.items()}
    tls = DialTls(authority.root_pem, node.key_pem, node.cert_pem, name)
    return Served(pem | coded, tls)


SERVES = {
    "CHAINCODE_SERVER_ADDRESS": "{listen}",
    "CORE_PEER_TLS_ENABLED": "true",
    "CORE_TLS_CLIENT_KEY_FILE": "{tls}/server.key",
    "CORE_TLS_CLIENT_CERT_FILE": "{tls}/server.crt",
    "CORE_PEER_TLS_ROOTCERT_FILE": "{tls}/server.ca",
}
"""Variables of the shims that are told by them where and how to serve."""


def go_serves(served: Served) -> Shim:
    """`shim.ChaincodeServer`, as the contract API makes it."""
    binary = go_program()
    env = {**SERVES, "CONFORMANCE_API": "contract"}
    program = Program(
        (str(binary),), binary.parent, True, env, served.tls, served.files
    )
    return Shim(program, "Put", "Get")


def node_serves(served: Served, *, how: str = "file", ending: str = "") -> Shim:
    project = node_project()
    cli = str(project / "node_modules" / ".bin" / "fabric-chaincode-node")
    argv = (
        *(cli, "server", "--chaincode-address={listen}", "--chaincode-id={ccid}"),
        f"--chaincode-tls-key-{how}={{tls}}/server.key{ending}",
        f"--chaincode-tls-cert-{how}={{tls}}/server.crt{ending}",
        f"--chaincode-tls-client-cacert-{how}={{tls}}/server.ca{ending}",
    )
    return Shim(Program(argv, project, True, {}, served.tls, served.files))


def node_serves_base64(served: Served) -> Shim:
    return node_serves(served, how="path", ending=".64")


def java_serves(served: Served) -> Shim:
    """`NettyChaincodeServer`, which serves the PEM and insists on the rest."""
    folder = java_classes()
    env = {
        **SERVES,
        "CORE_CHAINCODE_ID_NAME": "{ccid}",
        "CORE_TLS_CLIENT_KEY_PATH": "{tls}/server.key.64",
        "CORE_TLS_CLIENT_CERT_PATH": "{tls}/server.crt.64",
    }
    argv = ("java", "-cp", f"{folder}:{folder}/lib/*", "Plain")
    return Shim(Program(argv, folder, True, env, served.tls, served.files))


SERVERS = [
    pytest.param(go_serves, id="go", marks=pytest.mark.golang),
    pytest.param(node_serves, id="node", marks=pytest.mark.nodejs),
    pytest.param(java_serves, id="java"),
    pytest.param(node_serves_base64, id="node-base64", marks=pytest.mark.nodejs),
]


@pytest.mark.parametrize("serves", SERVERS)
@pytest.mark.statement(1, by="go java node")
async def test_a_shim_that_serves_is_dialled_with_certificates(
    tmp_path: Path, serves: Callable[[Served], Shim]
):
    await works(serves(served()), tmp_path, TlsAuthority())


@pytest.mark.parametrize("serves", SERVERS)
async def test_a_shim_may_serve_under_a_name_of_its_own(
    tmp_path: Path, serves: Callable[[Served], Shim]
):
    await works(serves(served(NAME)), tmp_path, TlsAuthority())


async def failure(shim: Shim, folder: Path) -> str:
    async with ShimWorld(shim.program, folder) as world:
        with pytest.raises(LaunchFailed) as caught:
            await world.custodian.launch(CCID)
    return caught.value.message


@pytest.mark.parametrize("serves", SERVERS[:3])
async def test_a_wrong_root_is_told_with_what_was_expected(
    tmp_path: Path, serves: Callable[[Served], Shim]
):
    right = served()
    root = TlsAuthority().root_pem
    text = await failure(
        serves(replace(right, tls=replace(right.tls, root_pem=root))), tmp_path
    )
    assert "expected a certificate for '127.0.0.1' that the given root signed" in text


@pytest.mark.parametrize("serves", SERVERS[:3])
async def test_a_wrong_name_is_told_with_what_was_expected(
    tmp_path: Path, serves: Callable[[Served], Shim]
):
    right = served()
    text = await failure(
        serves(replace(right, tls=replace(right.tls, server_name=NAME))), tmp_path
    )
    assert f"expected a certificate for '{NAME}'" in text


@pytest.mark.parametrize("serves", SERVERS[:3])
async def test_a_server_that_refuses_the_nodes_certificate_is_told(
    tmp_path: Path, serves: Callable[[Served], Shim]
):
    right, foreign = served(), TlsAuthority().issue_client()
    tls = replace(right.tls, key_pem=foreign.key_pem, cert_pem=foreign.cert_pem)
    text = await failure(serves(replace(right, tls=tls)), tmp_path)
    assert "refuses the node's certificate" in text
