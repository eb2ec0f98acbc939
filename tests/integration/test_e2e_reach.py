"""What a user sees of a contract that does not get to the node."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from support.nodes.node import BACKENDS, DOCKER, Node, started
from support.nodes.packets import dropped

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.slow,
    pytest.mark.nodejs,
    pytest.mark.network,
    pytest.mark.timeout(300),
]
CONNECT_S = 5
BEGIN = """\
const peer = process.argv[process.argv.indexOf('--peer.address') + 1];
const [host, port] = peer.split(':');
const read = (name) => require('fs').readFileSync(process.env[name]);
const end = (error) => { console.log(`dialled in vain: ${error.code}`); process.exit(1); };
setTimeout(() => process.exit(9), 120000);
"""
SILENT = "console.log('thinking');\n"
"""Never dials."""
UNTRUSTING = """\
require('tls').connect({
    host, port, ALPNProtocols: ['h2'],
    key: read('CORE_TLS_CLIENT_KEY_FILE'), cert: read('CORE_TLS_CLIENT_CERT_FILE'),
}).on('error', end);
"""
"""Trusts the authorities of the world, as one does that got no root."""
NAMELESS = """\
const again = () => require('tls').connect({
    host, port, ALPNProtocols: ['h2'], ca: read('CORE_PEER_TLS_ROOTCERT_FILE'),
}).on('error', () => {}).on('close', () => setTimeout(again, 500));
again();
"""
"""Shows no certificate, and tries it again and again."""
BOTH = pytest.mark.parametrize("node", BACKENDS, indirect=True)
ONLY_DOCKER = pytest.mark.parametrize("node", [DOCKER], indirect=True)


@pytest.fixture(scope="module")
def node(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Node]:
    flags = ("--set", f"chaindock.launch.connectTimeout={CONNECT_S}s")
    with started(request.param, tmp_path_factory.mktemp("node"), *flags) as node:
        yield node


def deployed(node: Node, folder: Path, name: str, program: str) -> dict[str, Any]:
    """Deploy a contract that does not come up; return the error that the CLI shows."""
    source = folder / name
    source.mkdir()
    manifest = {"name": name, "version": "1.0.0", "scripts": {"start": "node dial.js"}}
    (source / "package.json").write_text(json.dumps(manifest))
    (source / "dial.js").write_text(f"// {name}\n{BEGIN}{program}")
    told: dict[str, Any] = node.ask("deploy", source, code=4)
    assert told["facts"]["phase"] in {"connect", "create"}
    return told


@BOTH
def test_one_that_trusts_nobody_is_a_matter_of_tls(node: Node, tmp_path: Path):
    told = deployed(node, tmp_path, "untrusting", UNTRUSTING)
    assert told["error"] == "tls-failed"
    assert told["facts"]["handshakes"] >= 1
    assert told["facts"]["exit_code"] == 1
    assert any("dialled in vain" in line for line in told["facts"]["output"])
    assert "CORE_PEER_TLS_ROOTCERT_FILE" in told["hint"]


@BOTH
def test_one_that_shows_no_certificate_is_a_matter_of_tls(node: Node, tmp_path: Path):
    told = deployed(node, tmp_path, "nameless", NAMELESS)
    assert told["error"] == "tls-failed"
    assert f"did not end within {CONNECT_S} s" in told["message"]
    assert "no TLS handshake succeeded" in told["message"]


@BOTH
def test_one_that_does_not_dial_took_too_long(node: Node, tmp_path: Path):
    told = deployed(node, tmp_path, "silent", SILENT)
    assert told["error"] == "launch-timeout"
    assert told["facts"]["phase"] == "connect"


@ONLY_DOCKER
def test_a_packet_filter_in_the_way_is_told(node: Node, tmp_path: Path):
    deployed(node, tmp_path, "first", SILENT)  # from now on the node listens for it
    listeners = node.ask("status")["endpoints"]["chaincode"].split(", ")
    (address,) = [one for one in listeners if not one.startswith("127.")]
    with dropped(address):
        told = deployed(
            node, tmp_path, "shut-in", UNTRUSTING.replace("end", "() => {}")
        )
    assert told["error"] == "node-unreachable"
    assert address == f"{told['facts']['hosts'][0]}:{told['facts']['port']}"
    assert "firewall of this machine" in told["hint"]
    assert "probe" not in node.remains.containers().values()


@ONLY_DOCKER
def test_a_network_that_is_not_there_is_named(node: Node, tmp_path: Path):
    core = node.home / "core.yaml"
    core.write_text("chaindock: {chaincodes: {joins: {network: no-such-network}}}\n")
    core.chmod(0o600)
    try:
        told = deployed(node, tmp_path, "joins", SILENT)
    finally:
        core.unlink()
    assert told["error"] == "network-missing"
    assert told["facts"]["network"] == "no-such-network"
    assert "docker network create" in told["hint"]
