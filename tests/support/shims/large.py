"""A contract that does the largest things that a contract may; the first argument says what.

A program of its own, so that its work does not slow down the test that measures:
`python -m support.shims.large ADDRESS NAME`. The answer is the bytes that it received.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING, Any

from fabric_protos.peer import chaincode_pb2
from fabric_protos.peer import chaincode_shim_pb2 as shim

from support.shims.peer import ShimPeer

if TYPE_CHECKING:
    from collections.abc import Iterator

    Request = tuple[int, Any]

MIB = 1024 * 1024
Kind = shim.ChaincodeMessage
ROWS, ROW = 10_000, b'{"colour":"red","size":7,"text":"%s"}' % (b"x" * 900)


JSON = b'{"colour":"green","n":%s,"size":7,"values":[%s]}' % (
    b"[" + b",".join([b"[]"] * (MIB // 6)) + b"]",
    b",".join([b'{"a":1.5}'] * (MIB // 3)),
)
"""3 MiB, half of which an index has."""


def records(
    count: int, value: bytes, first: int = 0, kind: int = shim.WriteRecord.PUT_STATE
) -> Request:
    rec = [
        shim.WriteRecord(type=kind, key=f"k{number:06}", value=value)
        for number in range(first, first + count)
    ]
    return Kind.WRITE_BATCH_STATE, shim.WriteBatchState(rec=rec)


def fill() -> Iterator[Request]:
    for number in range(0, ROWS, 1000):
        yield records(1000, ROW, number)


def keys() -> Iterator[Request]:
    wanted = [f"k{number:06}" for number in range(1000)]
    yield Kind.GET_STATE_MULTIPLE, shim.GetStateMultiple(keys=wanted)


def query(text: str) -> Iterator[Request]:
    yield Kind.GET_QUERY_RESULT, shim.GetQueryResult(query=text)


WORK: dict[str, Any] = {
    "put a value of 9 MiB": lambda: [
        (Kind.PUT_STATE, shim.PutState(key="big", value=bytes(9 * MIB)))
    ],
    "get a value of 9 MiB": lambda: [(Kind.GET_STATE, shim.GetState(key="big"))],
    "history of 9 MiB": lambda: [
        (Kind.GET_HISTORY_FOR_KEY, shim.GetHistoryForKey(key="big"))
    ],
    "put 1000 keys of 10 kB": lambda: [records(1000, bytes(10_000))],
    "put 30000 short keys": lambda: [records(30_000, b"v")],
    "put 10000 documents": fill,
    "get 1000 keys": keys,
    "range of 10000": lambda: [
        (Kind.GET_STATE_BY_RANGE, shim.GetStateByRange(startKey="k", endKey="l"))
    ],
    "page of 10000": lambda: [
        (
            Kind.GET_STATE_BY_RANGE,
            shim.GetStateByRange(
                startKey="k",
                endKey="l",
                metadata=shim.QueryMetadata(pageSize=ROWS).SerializeToString(),
            ),
        )
    ],
    "rich query of 10000": lambda: query('{"selector":{"colour":"red"}}'),
    "rich query that finds nothing": lambda: query('{"selector":{"colour":"blue"}}'),
    "delete 10000 keys": lambda: [
        records(1000, b"", number, shim.WriteRecord.DEL_STATE)
        for number in range(0, ROWS, 1000)
    ],
    "put private values": lambda: [
        (
            Kind.PUT_STATE,
            shim.PutState(
                key=f"p{number}", value=bytes(MIB), collection="_implicit_org_Org1MSP"
            ),
        )
        for number in range(10)
    ],
    "answer of 9 MiB": list,
}
"""What is asked of the node, by name."""
WORK_JSON: dict[str, Any] = {
    "put JSON of 6 MiB": lambda: [
        (Kind.PUT_STATE, shim.PutState(key=f"json{number}", value=JSON))
        for number in range(2)
    ],
    "rich query by an index": lambda: query(
        '{"selector":{"colour":"green"},"fields":["n"]}'
    ),
    "rich query, all of it": lambda: query('{"selector":{"colour":"green"}}'),
    "rich query with a filter": lambda: query(
        '{"selector":{"colour":"green","n":{"$gt":1},"size":7}}'
    ),
    "rich query without an index": lambda: query('{"selector":{"size":7}}'),
}
"""What is asked about documents with much JSON, by name."""


async def ask(peer: ShimPeer, to: Any, kind: int, request: Any) -> int:
    """Send one request, take all its results, and return how many bytes came."""
    reply = await peer.ask(to, kind, request)
    size = len(reply.payload)
    assert reply.type == Kind.RESPONSE, reply.payload[:300]
    if kind in {Kind.GET_STATE, Kind.GET_STATE_MULTIPLE, Kind.PUT_STATE}:
        return size
    found = shim.QueryResponse.FromString(reply.payload)
    while found.has_more:
        following = shim.QueryStateNext(id=found.id)
        reply = await peer.ask(to, Kind.QUERY_STATE_NEXT, following)
        size += len(reply.payload)
        found = shim.QueryResponse.FromString(reply.payload)
    return size


async def main(address: str, own: str) -> None:
    os.nice(10)  # its own work is not what is measured
    async with await ShimPeer.dial(address) as peer:
        await peer.register(own)
        while (to := await peer.next()) is not None:
            args = chaincode_pb2.ChaincodeInput.FromString(to.payload).args
            name, size = args[0].decode(), 0
            for kind, request in (WORK | WORK_JSON)[name]():
                if kind == Kind.WRITE_BATCH_STATE:
                    reply = await peer.ask(to, kind, request)
                    assert reply.type == Kind.RESPONSE, reply.payload[:300]
                else:
                    size += await ask(peer, to, kind, request)
            large = name.startswith("answer")
            await peer.complete(to, bytes(9 * MIB) if large else str(size).encode())


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
