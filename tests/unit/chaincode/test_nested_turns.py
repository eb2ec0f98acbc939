"""Chaincodes that take few calls at a time and call each other at random: all calls end.

Capital letters stand for chaincodes on the other one of two channels.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import pytest
from fabric_protos.peer import chaincode_pb2, proposal_response_pb2
from fabric_protos.peer import chaincode_shim_pb2 as shim

from support.shims.endorsing import CHANNEL, EndorsingNode
from support.shims.nested import spec

if TYPE_CHECKING:
    from pathlib import Path

    from chaindock.identity.organization import Organization
    from support.shims.peer import ShimPeer

Kind = shim.ChaincodeMessage
NAMES = "abcd"
OTHER = "elsewhere"


async def walking(peer: ShimPeer) -> None:
    """Play a chaincode that calls the first name of its argument with the others."""
    waiting: dict[tuple[str, str], asyncio.Future[Any]] = {}
    writing = asyncio.Lock()  # grpc.aio fails the second of two writes at once

    async def run(message: Any) -> None:
        args = chaincode_pb2.ChaincodeInput.FromString(message.payload).args
        path = args[0].decode()
        told = b"end"
        if path:
            name, rest = path[0], path[1:].encode()
            target = f"{name.lower()}/{OTHER if name.isupper() else CHANNEL}"
            future = asyncio.get_running_loop().create_future()
            waiting[message.channel_id, message.txid] = future
            ids = {"txid": message.txid, "channel": message.channel_id}
            async with writing:
                await peer.send(Kind.INVOKE_CHAINCODE, spec(target, rest), **ids)
            reply = await future
            told = b"error"
            if reply.type == Kind.RESPONSE:
                final = Kind.FromString(reply.payload)
                said = proposal_response_pb2.Response.FromString(final.payload)
                told = said.payload
            else:
                known = b"exists", b"wait for the outcome of this one"
                assert reply.payload.endswith(known), reply.payload
        async with writing:
            await peer.complete(message, told)

    async with asyncio.TaskGroup() as group:
        while (message := await peer.next()) is not None:
            if message.type in {Kind.RESPONSE, Kind.ERROR}:
                waiting.pop((message.channel_id, message.txid)).set_result(message)
            else:
                _ = group.create_task(run(message))


@pytest.mark.parametrize("seed", range(3))
async def test_no_calls_wait_for_each_other(
    tmp_path: Path, org: Organization, no_task_is_left: None, seed: int
):
    draw = random.Random(seed)
    async with (
        EndorsingNode(tmp_path, org, timeout_s=20.0) as node,
        node.beside(OTHER) as other,
    ):
        peers = [
            await node.chaincode(name, concurrency=draw.choice((1, 1, 2, None)))
            for name in NAMES
        ]
        for name in NAMES:
            await other.define(name)
        playing = [asyncio.ensure_future(walking(peer)) for peer in peers]
        names = NAMES + NAMES.upper()
        paths = ["".join(draw.choices(names, k=draw.randint(0, 5))) for _ in range(120)]
        async with asyncio.timeout(15):
            answers = await asyncio.gather(
                *(
                    draw.choice((node, other)).propose(
                        draw.choice(NAMES), path.encode()
                    )
                    for path in paths
                )
            )
        told = [outcome.response.payload for outcome, _ in answers]
        assert set(told) <= {b"end", b"error"}
        assert b"end" in told
        for peer in peers:
            await peer.leave()
        await asyncio.wait(playing)
