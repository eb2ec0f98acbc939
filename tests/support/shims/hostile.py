"""A contract that attacks the node by what it sends; the first argument says how.

A program of its own, so that its work does not slow down the test that measures:
`python -m support.shims.hostile ADDRESS NAME`. Each call is answered with what the node
said to the last request of the attack.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from fabric_protos.peer import chaincode_event_pb2, chaincode_pb2, proposal_response_pb2
from fabric_protos.peer import chaincode_shim_pb2 as shim
from google.protobuf.timestamp_pb2 import Timestamp

from support.shims.peer import ShimPeer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Request = tuple[int, bytes, dict[str, str]]

MIB = 1024 * 1024
Kind = shim.ChaincodeMessage
EMPTY = b"\x0a\x00"
"""The first field, empty: two bytes that become an object."""
LONG = "k" * (20 * MIB)


def field(number: int, data: bytes) -> bytes:
    """Return a field of bytes in protobuf's encoding."""
    size, at = b"", len(data)
    while at > 0x7F:
        size += bytes([at & 0x7F | 0x80])
        at >>= 7
    return bytes([number << 3 | 2]) + size + bytes([at]) + data


def batch(number: int) -> bytes:
    put = shim.WriteRecord.PUT_STATE
    keys = (f"{number}-{one}" for one in range(1000))
    records = [shim.WriteRecord(type=put, key=key, value=b"v") for key in keys]
    result: bytes = shim.WriteBatchState(rec=records).SerializeToString()
    return result


def short_keys() -> Iterator[Request]:
    for number in range(3000):
        yield Kind.WRITE_BATCH_STATE, batch(number), {}


def reads() -> Iterator[Request]:
    """Keys just short enough to be looked up: 40 MiB in all."""
    for number in range(80):
        key = f"{number:03}" + "k" * (MIB // 2)
        yield Kind.GET_STATE, shim.GetState(key=key).SerializeToString(), {}


def ranges() -> Iterator[Request]:
    for number in range(80):
        start = f"{number:03}" + "k" * (MIB // 2)
        request = shim.GetStateByRange(startKey=start)
        yield Kind.GET_STATE_BY_RANGE, request.SerializeToString(), {}


def values() -> Iterator[Request]:
    value = bytes(10 * MIB)
    for number in range(8):
        put = shim.PutState(key=f"v{number}", value=value)
        yield Kind.PUT_STATE, put.SerializeToString(), {}


def full_speed() -> Iterator[Request]:
    """Batches just small enough to be parsed at once, sent without awaiting answers."""
    put = shim.WriteRecord.PUT_STATE
    keys = (f"{number:048}" for number in range(900))
    records = [shim.WriteRecord(type=put, key=key, value=b"v") for key in keys]
    made = shim.WriteBatchState(rec=records).SerializeToString()
    return one(Kind.WRITE_BATCH_STATE, made, 600, pipelined="")


def one(kind: int, payload: bytes, count: int = 1, **fields: str) -> Iterator[Request]:
    for _ in range(count):
        yield kind, payload, fields


def largest() -> Iterator[Request]:
    yield Kind.PUT_STATE, bytes(60 * MIB), {}


def nothing() -> Iterator[Request]:
    return iter(())


ATTACKS: dict[str, Callable[[], Iterator[Request]]] = {
    "empty records": lambda: one(Kind.WRITE_BATCH_STATE, EMPTY * (15 * MIB)),
    "empty keys": lambda: one(Kind.GET_STATE_MULTIPLE, EMPTY * (15 * MIB)),
    "empty fields": lambda: one(Kind.PUT_STATE, EMPTY * (15 * MIB)),
    "fields of a record": lambda: one(
        Kind.WRITE_BATCH_STATE, field(1, EMPTY * (15 * MIB))
    ),
    "long keys": lambda: one(
        Kind.GET_STATE, shim.GetState(key=LONG).SerializeToString(), 40
    ),
    "long channels": lambda: one(Kind.GET_STATE, b"", 15, channel=LONG),
    "many reads": reads,
    "many ranges": ranges,
    "short keys": short_keys,
    "large values": values,
    "full speed": full_speed,
}
"""What each sends, to be refused at the latest with its last request."""
ONE_AT_A_TIME = Timestamp(seconds=1)
"""In REGISTER: the node sends the next call after the answer to the one before."""
LARGEST = "largest message"
"""A request that gRPC takes, but that is more than a transaction may hold."""
TOO_LARGE = "message too large"


def answer(status: int = 200, **fields: Any) -> bytes:
    response = proposal_response_pb2.Response(status=status, **fields)
    result: bytes = response.SerializeToString()
    return result


def event() -> dict[str, Any]:
    made = chaincode_event_pb2.ChaincodeEvent(event_name="e", payload=bytes(60 * MIB))
    return {"chaincode_event": made}


ANSWERS: dict[str, Callable[[], tuple[int, bytes, dict[str, Any]]]] = {
    "long error": lambda: (Kind.ERROR, b"x" * (60 * MIB) + "\U0001f600".encode(), {}),
    "broken error": lambda: (Kind.ERROR, b"\xff" * (60 * MIB), {}),
    "long text": lambda: (Kind.COMPLETED, answer(message="\x01" * (60 * MIB)), {}),
    "large answer": lambda: (Kind.COMPLETED, answer(payload=bytes(60 * MIB)), {}),
    "large event": lambda: (Kind.COMPLETED, answer(message="e"), event()),
}
"""What each answers a call with."""
UNASKED = "answers that nobody waits for"
UNREGISTERED = "large messages before REGISTER"


async def flood(address: str) -> None:
    """Open streams that send the largest message instead of a REGISTER."""
    for _ in range(3):
        async with await ShimPeer.dial(address) as peer:
            await peer.send(Kind.REGISTER, b"\xff" * (60 * MIB))
            await peer.refusal()


async def attack(peer: ShimPeer, to: Any) -> bytes:
    """Send the attack that `to` asks for; return the last answer, of 200 bytes at most."""
    name = name_of(to)
    for number in range(5 if name == UNASKED else 0):
        await peer.send(Kind.COMPLETED, bytes(60 * MIB), txid=str(number))
    if name == TOO_LARGE:
        await peer.send(Kind.PUT_STATE, bytes(98 * MIB), txid=to.txid)
        await peer.refusal()
    asked, fields = 0, dict[str, str]()
    for kind, payload, fields in {**ATTACKS, LARGEST: largest}.get(name, nothing)():
        channel = fields.get("channel", to.channel_id)
        await peer.send(kind, payload, txid=to.txid, channel=channel)
        asked += 1
        if not fields:
            answer = await peer.receive()
            if answer.type == Kind.ERROR:
                return bytes(answer.payload[-200:])
    answer = None
    for _ in range(asked if fields else 0):
        answer = await peer.receive()
    return b"not refused" if answer is None else bytes(answer.payload[-200:])


def name_of(to: Any) -> str:
    """Return the attack that a call asks for."""
    name: str = chaincode_pb2.ChaincodeInput.FromString(to.payload).args[0].decode()
    return name


async def main(address: str, own: str) -> None:
    os.nice(10)  # its own work is not what is measured
    while True:
        async with await ShimPeer.dial(address) as peer:
            try:
                await peer.register(own, timestamp=ONE_AT_A_TIME)
                while (to := await peer.next()) is not None:
                    if (name := name_of(to)) in ANSWERS:
                        kind, payload, fields = ANSWERS[name]()
                        ids = {"txid": to.txid, "channel": to.channel_id}
                        await peer.send(kind, payload, **ids, **fields)
                        continue
                    if name == UNREGISTERED:
                        await flood(address)
                    await peer.complete(to, await attack(peer, to))
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError, AssertionError):
                await asyncio.sleep(0.1)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
