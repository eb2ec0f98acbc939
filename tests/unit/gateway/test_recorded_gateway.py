"""Every recorded call of a Fabric peer's gateway, made again to the node.

Codes, texts, details, results and read-write sets have to be the peer's. Requests are those
of the recording, signed by its clients; only the endorsing key is another one.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from support.gateways.client import Ended
from support.gateways.recorded import Recorded, RecordedNode, calls, envelope_of

if TYPE_CHECKING:
    from pathlib import Path

    from chaindock.identity.organization import Organization

_RECORDED_ADDRESS = "127.0.0.1:7051"
_PATIENCE_S = 20.0
_QUIET_S = 0.2
"""A stream that is silent for so long has sent everything."""


async def _stream(node: RecordedNode, call: Recorded) -> tuple[list[bytes], Any]:
    """Return the messages of a stream, and how it ended; None = it goes on."""
    stream = node.front.client.stream(call.method, call.request)
    messages: list[bytes] = []
    while True:
        more = len(messages) < len(call.messages) or call.error
        try:
            async with asyncio.timeout(_PATIENCE_S if more else _QUIET_S):
                found = await anext(stream)
        except TimeoutError:
            return messages, None
        if isinstance(found, Ended):
            return messages, found
        messages.append(found)


def _expected(call: Recorded, address: str) -> Ended | None:
    if call.error is None:
        return None
    code, text, details = call.error
    places = {_RECORDED_ADDRESS: address}
    moved = tuple((places[where], mspid, said) for where, mspid, said in details)
    return Ended(code, text, moved)


async def _differs(node: RecordedNode, call: Recorded) -> str:
    """Make a call; return how its outcome differs from the recorded one, or ""."""
    expected = _expected(call, node.front.address)
    if call.method == "ChaincodeEvents":
        messages, ended = await _stream(node, call)
        if (messages, ended) == (call.messages, expected):
            return ""
        return f"{len(messages)} messages, {ended}; expected {expected}"
    if call.method == "CommitStatus":
        await node.orderer.cut()
    waits = expected is not None and expected.text == "(client side deadline)"
    limit_s = (call.deadline_ms or 0) / 4000 if waits else 20.0
    found = await node.front.client.raw(call.method, call.request, limit_s)
    if waits:
        assert expected is not None
        assert isinstance(found, Ended)
        return "" if found.code == expected.code else str(found)
    if expected is not None or isinstance(found, Ended):
        return "" if found == expected else f"{found!r}, expected {expected}"
    assert call.response is not None
    if call.method != "Endorse":
        return "" if found == call.response else f"{found!r}, not {call.response!r}"
    return "" if envelope_of(found) == envelope_of(call.response) else "other envelope"


@pytest.mark.statement(
    46, 47, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 65, of="client"
)
async def test_the_node_answers_as_the_recorded_gateway(
    tmp_path: Path, org: Organization
) -> None:
    recorded = calls()
    prepared = next(one for one in recorded if one.method == "Endorse" and one.response)
    _, (peer,) = envelope_of(prepared.response or b"")
    wrong = {}
    async with RecordedNode(tmp_path, org, peer) as node:
        for call in recorded:
            if found := await _differs(node, call):
                wrong[str(call)] = found
    assert wrong == {}
    assert len(recorded) == 88
