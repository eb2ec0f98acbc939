"""Two chaincodes of one language on one channel, which call the methods of their stub."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fabric_protos.peer import proposal_pb2, proposal_response_pb2

from chaindock.identity.organization import Organization
from support.shims.builds import go_program, java_classes, node_project
from support.shims.endorsing import EndorsingNode, ccid_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

IMPLICIT = "_implicit_org_Org1MSP"
"""A collection that every chaincode has."""


def command(language: str, address: str, ccid: str) -> tuple[tuple[str, ...], Path]:
    """Return the program that dials `address`, and where it runs."""
    if language == "go":
        program = go_program()
        return (str(program), f"-peer.address={address}"), program.parent
    if language == "java":
        folder = java_classes()
        classes = f"{folder}:{folder}/lib/*"
        return ("java", "-cp", classes, "Plain", "--peerAddress", address), folder
    argv = ("node", "plain.js", "--peer.address", address, "--chaincode-id-name", ccid)
    return argv, node_project()


class Stub:
    """Chaincodes `a` and `b` of one language, on one channel."""

    def __init__(self, node: EndorsingNode) -> None:
        self.node = node
        self.tx = ""

    async def endorse(self, *args: str, name: str = "a", **fields: Any) -> Any:
        """Return what was said, and the endorsed action."""
        words = [one.encode() for one in args]
        outcome, response = await self.node.propose(name, *words, **fields)
        payload = proposal_response_pb2.ProposalResponsePayload.FromString(
            response.payload
        )
        return outcome, proposal_pb2.ChaincodeAction.FromString(payload.extension)

    async def ask(self, *args: str, name: str = "a") -> str:
        """Return the payload of a query."""
        words = [one.encode() for one in args]
        user = self.node.org.user("User1")
        answer = await self.node.caller.query(name, words, signer=user)
        self.tx = answer.tx_id
        assert answer.status == 200, answer.message
        return answer.payload.decode()

    async def commit(self, *args: str, name: str = "a") -> str:
        """Return the payload of a call that was committed."""
        words = [one.encode() for one in args]
        user = self.node.org.user("User1")
        answer = await self.node.caller.invoke(name, words, signer=user)
        assert (answer.status, answer.code) == (200, 0), answer.message
        return answer.payload.decode()


@asynccontextmanager
async def running(language: str, folder: Path) -> AsyncIterator[Stub]:
    """Run `a` and `b`."""
    org = Organization.open(folder / "orgs", "Org1MSP", "org1.example.com")
    processes = []
    async with EndorsingNode(folder, org, timeout_s=30.0) as node:
        address = await node.streams.listener.address_on("127.0.0.1")
        try:
            for name in "ab":
                await node.define(name)
                expected = node.streams.expect(ccid_of(name))
                argv, cwd = command(language, address, expected.ccid)
                env = {
                    "PATH": os.environ["PATH"],  # noqa: TID251  # tests have no config
                    "CORE_CHAINCODE_ID_NAME": expected.ccid,
                    "CORE_PEER_TLS_ENABLED": "false",
                    "CORE_PEER_LOCALMSPID": "Org1MSP",
                }
                started = await asyncio.create_subprocess_exec(*argv, cwd=cwd, env=env)
                processes.append(started)
                await expected.ready.wait()
                node.streams.registry.forget(expected)
            yield Stub(node)
        finally:
            for process in processes:
                process.kill()
                await process.wait()
