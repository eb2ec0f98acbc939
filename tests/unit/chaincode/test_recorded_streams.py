"""Every recorded stream of a real Fabric peer, played again to the node.

The recorded chaincode's messages are sent, and what the node answers has to be the peer's
answer, byte by byte; so has the read-write set that the node endorses.
"""

from __future__ import annotations

from base64 import b64decode
from typing import TYPE_CHECKING

import pytest
from fabric_protos.peer import chaincode_shim_pb2 as shim

from chaindock.identity.organization import Organization
from support.shims.recorded_streams import Replay, scenarios

if TYPE_CHECKING:
    from pathlib import Path

    from support.shims.stream_node import StreamNode

EXPECTED = {
    "raw_empty_payloads": "a hash of no collection is not recorded as a read of it"
}
"""Recordings that the node answers in another way, and why."""


@pytest.mark.statement(
    10,
    11,
    24,
    32,
    33,
    34,
    36,
    37,
    42,
    44,
    46,
    48,
    50,
    51,
    52,
    54,
    55,
    56,
    57,
    59,
    60,
    61,
    62,
    70,
    72,
    73,
    74,
    78,
    79,
    81,
    82,
    84,
    88,
)
async def test_the_node_answers_as_the_recorded_peer(
    tmp_path: Path, no_task_is_left: None
) -> None:
    org = Organization.open(tmp_path / "orgs", "Org1MSP", "org1.example.com")
    wrong = {}
    async with Replay(tmp_path, org) as replay:
        for scenario in scenarios():
            await replay.reach(scenario.height)
            found = await replay.play(scenario)
            if found:
                wrong[scenario.name] = found
    assert {name: wrong[name] for name in wrong.keys() - EXPECTED.keys()} == {}
    assert EXPECTED.keys() - wrong.keys() == set(), "these pass now"


_NO_TRANSACTION = "could not get valid transaction"
READY = "CAQaCggBEOgHGAEg6Ac="
UNKNOWN = [
    (
        "CAgaAwoBYSIMdW5rbm93bi10eGlkOglteWNoYW5uZWw=",
        "GET_STATE failed: transaction ID: unknown-txid: no ledger context",
    ),
    (
        "CAkaBgoBYRIBeCIMdW5rbm93bi10eGlkOglteWNoYW5uZWw=",
        "PUT_STATE failed: transaction ID: unknown-txid: no ledger context",
    ),
    (
        "CAsaBxIFEgNndjIiDHVua25vd24tdHhpZDoJbXljaGFubmVs",
        f"INVOKE_CHAINCODE failed: transaction ID: unknown-txid: {_NO_TRANSACTION}",
    ),
]
"""Messages for a transaction that the peer did not know, and its answers."""


@pytest.mark.statement(2, 3)
async def test_registration_and_what_comes_without_a_transaction(
    listening: StreamNode,
) -> None:
    peer = await listening.dial()
    ccid = listening.expect().ccid
    ready = await peer.register(ccid)
    assert ready.SerializeToString() == b64decode(READY)
    for raw, text in UNKNOWN:
        asked = shim.ChaincodeMessage.FromString(b64decode(raw))
        await peer.send(
            asked.type, asked.payload, txid=asked.txid, channel=asked.channel_id
        )
        reply = await peer.receive()
        assert reply == shim.ChaincodeMessage(
            type=shim.ChaincodeMessage.ERROR,
            payload=text.encode(),
            txid=asked.txid,
            channel_id=asked.channel_id,
        )
