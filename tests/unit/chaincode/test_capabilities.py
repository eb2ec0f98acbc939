"""What chaincode may ask for on a channel whose application has a lower capability."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from fabric_protos.peer import chaincode_shim_pb2 as shim

from chaindock.chaincode.wire import LARGE
from support.shims.endorsing import EndorsingNode
from support.shims.nested import cause
from support.shims.session import record

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from chaindock.identity.organization import Organization

    On = Callable[[str], AbstractAsyncContextManager[tuple[Any, Any]]]

Kind = shim.ChaincodeMessage
METADATA = (
    "key level endorsement is not enabled, channel application capability of V1_3 or "
    "later is required"
)
PURGE = (
    "purge private data is not enabled, channel application capability of V2_5 or later "
    "is required"
)
UNREADABLE = "unmarshal failed: proto: cannot parse invalid wire-format data"
ENTRY = shim.StateMetadata(metakey="VALIDATION_PARAMETER", value=b"")
LABEL = shim.PutStateMetadata(key="k", metadata=ENTRY)
Record = shim.WriteRecord


@pytest.fixture
def on(tmp_path: Path, org: Organization, no_task_is_left: None) -> On:
    """A call that runs on a channel of this capability: its chaincode, and the message."""

    @asynccontextmanager
    async def running(capability: str) -> AsyncIterator[tuple[Any, Any]]:
        async with EndorsingNode(tmp_path, org, capability=capability) as node:
            peer = await node.chaincode("a")
            call = node.propose("a")
            message = await peer.receive()
            yield peer, message
            await peer.complete(message)
            await call

    return running


@pytest.mark.statement(53)
async def test_metadata_need_v1_3_before_their_request_is_read(on: On):
    async with on("V1_2") as asked:
        for payload in (shim.GetStateMetadata(key="k"), b"\xff", b"\xff" * (LARGE + 1)):
            assert await cause(*asked, payload, Kind.GET_STATE_METADATA) == METADATA
        # Other requests are read before.
        assert await cause(*asked, b"\xff", Kind.PUT_STATE_METADATA) == UNREADABLE
        for put in (LABEL, shim.PutStateMetadata(key="k")):
            assert await cause(*asked, put, Kind.PUT_STATE_METADATA) == METADATA
        batch = shim.WriteBatchState(
            rec=[Record(key="k", type=Record.PUT_STATE_METADATA, metadata=ENTRY)]
        )
        assert await cause(*asked, batch, Kind.WRITE_BATCH_STATE) == METADATA


@pytest.mark.parametrize("capability", ["V1_3", "V1_4_2", "V2_0", "V2_5"])
async def test_metadata_are_served_from_v1_3_on(on: On, capability: str):
    async with on(capability) as (peer, message):
        for kind, request in (
            (Kind.GET_STATE_METADATA, shim.GetStateMetadata(key="k")),
            (Kind.PUT_STATE_METADATA, LABEL),
        ):
            answer = await peer.ask(message, kind, request)
            assert answer.type == Kind.RESPONSE, answer.payload
        assert (
            await cause(peer, message, b"\xff", Kind.GET_STATE_METADATA) == UNREADABLE
        )


@pytest.mark.statement(54)
@pytest.mark.parametrize("capability", ["V1_2", "V2_0"])
async def test_a_purge_needs_v2_5_and_then_a_collection(on: On, capability: str):
    async with on(capability) as asked:
        assert await cause(*asked, b"\xff", Kind.PURGE_PRIVATE_DATA) == UNREADABLE
        for collection in ("", "none", "_implicit_org_Org1MSP"):
            one = shim.DelState(key="k", collection=collection)
            assert await cause(*asked, one, Kind.PURGE_PRIVATE_DATA) == PURGE
            purge = record(Record.PURGE_PRIVATE_DATA, "k", collection=collection)
            batch = shim.WriteBatchState(rec=[purge])
            assert await cause(*asked, batch, Kind.WRITE_BATCH_STATE) == PURGE


@pytest.mark.statement(54)
async def test_with_v2_5_private_data_is_purged(on: On):
    async with on("V2_5") as (peer, message):
        told = await cause(
            peer, message, shim.DelState(key="k"), Kind.PURGE_PRIVATE_DATA
        )
        assert told == "only applicable for private data"
        purge = shim.DelState(key="k", collection="_implicit_org_Org1MSP")
        answer = await peer.ask(message, Kind.PURGE_PRIVATE_DATA, purge)
        assert answer.type == Kind.RESPONSE, answer.payload
