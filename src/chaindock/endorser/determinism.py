"""Compare what came out of one proposal, run several times or by several peers.

Endorsers of several organisations must agree byte for byte. A contract that uses the
clock, random numbers or the order of a map gives another result in each run; one that
uses the time zone or the locale does so on another machine.
Source: docs/fabric/ledger.md#read-write-set
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fabric_protos.peer import chaincode_event_pb2, proposal_pb2, proposal_response_pb2

from chaindock.ledger.transaction import ParsedTransaction, read_spaces

Place = tuple[str, str, str, bytes]
"""what (read, write, …), namespace, collection, key or key hash or name of the part"""


@dataclass(frozen=True)
class Difference:
    """One part of the result that was not the same in all runs."""

    what: str
    """Read, range, write, metadata, response or event."""
    namespace: str
    collection: str
    """Empty = public. `key` and written values of a collection are hashes."""
    key: bytes
    """Of a response, which field: status, message, payload; of an event, its name."""
    values: Sequence[bytes | None]
    """Those that occurred, each once; None = the part was absent."""


def differences(found: Sequence[dict[Place, bytes]]) -> list[Difference]:
    """Return the parts that are not the same in all of `found`, in order of places."""
    told = []
    for place in sorted(set().union(*found)):
        values = dict.fromkeys(one.get(place) for one in found)
        if len(values) > 1:
            told.append(Difference(*place, list(values)))
    return told


def parts(response: Any, payload: bytes) -> Iterator[tuple[Place, bytes]]:
    """Yield each part of a result under its place; without a payload the response only."""
    yield ("response", "", "", b"status"), str(response.status).encode()
    yield ("response", "", "", b"message"), response.message.encode()
    yield ("response", "", "", b"payload"), response.payload
    if not payload:
        return
    outer = proposal_response_pb2.ProposalResponsePayload.FromString(payload)
    action = proposal_pb2.ChaincodeAction.FromString(outer.extension)
    event = chaincode_event_pb2.ChaincodeEvent.FromString(action.events)
    yield ("event", "", "", event.event_name.encode()), event.payload
    tx = ParsedTransaction(b"")
    read_spaces(tx, action)
    for space in tx.spaces:
        where = space.ns, space.collection
        for key, version in space.reads:
            yield ("read", *where, key), repr(version).encode()
        for number, info in enumerate(space.ranges):
            bounds = f"{number} {info.start_key}".encode()
            yield ("range", *where, bounds), info.SerializeToString()
        for key, value in space.writes:
            yield ("write", *where, key), b"" if value is None else value
        for key, entries in space.metadata:
            yield ("metadata", *where, key), entries or b""
