"""Real shims, started by hand as docs/tasks/dev-mode.md says (chaincode.mode: dev)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from chaindock.chaincode.invocation import outcome_of
from chaindock.chaincode.options import ListenOptions
from chaindock.identity.ca import TlsAuthority
from chaindock.identity.organization import Organization
from chaindock.ids import Ccid
from chaindock.node.serve import programs_admitted
from support.doubles.memory_state import CHANNEL, NAMESPACE, MemoryState, invocation
from support.eventually import eventually
from support.ledgers.proposals import propose
from support.shims.builds import go_program, node_project
from support.shims.stream_node import StreamNode

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [pytest.mark.network, pytest.mark.timeout(300)]
PROGRAM = Ccid("parcels:1.0")


def go(address: str) -> tuple[tuple[str, ...], Path]:
    binary = go_program()
    return (str(binary), f"-peer.address={address}"), binary.parent


def node_js(address: str) -> tuple[tuple[str, ...], Path]:
    return ("node", "plain.js", "--peer.address", address), node_project()


LANGUAGES = [
    pytest.param(go, marks=pytest.mark.golang),
    pytest.param(node_js, marks=pytest.mark.nodejs),
]


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("start", LANGUAGES)
async def test_a_program_registers_and_serves(
    tmp_path: Path, start: Callable[[str], tuple[tuple[str, ...], Path]], tls: bool
):
    files = tmp_path / "dev"
    client = Organization.open(tmp_path / "org", "Org1MSP", "org1.example.org").user(
        "a"
    )
    env = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "CORE_CHAINCODE_ID_NAME": PROGRAM,
        "CORE_PEER_TLS_ENABLED": str(tls).lower(),
        "CORE_TLS_CLIENT_KEY_PATH": f"{files}/client.key",
        "CORE_TLS_CLIENT_CERT_PATH": f"{files}/client.crt",
        "CORE_TLS_CLIENT_KEY_FILE": f"{files}/client_pem.key",
        "CORE_TLS_CLIENT_CERT_FILE": f"{files}/client_pem.crt",
        "CORE_PEER_TLS_ROOTCERT_FILE": f"{files}/peer.crt",
    }
    async with (
        StreamNode(
            authority=TlsAuthority() if tls else None,
            listen=ListenOptions(bind=("127.0.0.1", 0)),
            mode="dev",
        ) as node,
        programs_admitted(node.listener, files),
    ):
        argv, folder = start(*node.listener.addresses)
        process = await asyncio.create_subprocess_exec(*argv, cwd=folder, env=env)
        try:
            await eventually(lambda: node.registry.find_ready(PROGRAM), 60.0)
            handler = node.registry.find_ready(PROGRAM)
            assert handler is not None
            arguments = [b"get", b"k"]
            tx_id, signed = propose(client, CHANNEL, NAMESPACE, arguments)
            call = invocation(
                *arguments,
                tx_id=tx_id,
                signed_proposal=signed,
                state=MemoryState({"k": b"v"}),
            )
            final = await handler.calls.execute(call, 30.0)
            assert outcome_of(final, call).response.payload == b"v"
        finally:
            process.kill()
            await process.wait()
