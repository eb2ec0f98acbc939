"""One call that runs, and the chaincode that asks within it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fabric_protos.peer import chaincode_shim_pb2 as shim

from support.doubles.memory_state import MemoryState, invocation, simulator_of

if TYPE_CHECKING:
    import asyncio

    from google.protobuf.message import Message

    from support.doubles.memory_state import MemorySimulator
    from support.shims.peer import ShimPeer
    from support.shims.stream_node import StreamNode

Kind = shim.ChaincodeMessage


class Session:
    """One invocation that runs, and the chaincode that asks within it."""

    def __init__(self, node: StreamNode, peer: ShimPeer) -> None:
        self._node, self.peer = node, peer
        self.state = MemoryState({"k": b"v", "k2": b"v2"})
        self.call: asyncio.Task[Any]
        self.message: Any
        self.simulator: MemorySimulator
        self.invoked: Any

    async def start(self, **fields: Any) -> Session:
        invoked = invocation("f", tx_id="t1", state=self.state, **fields)
        self.invoked = invoked
        self.simulator = simulator_of(invoked)
        self.call = self._node.call(invoked)
        self.message = await self.peer.receive()
        return self

    async def ask(self, kind: int, payload: bytes | Message = b"") -> Any:
        return await self.peer.ask(self.message, kind, payload)

    async def ok(self, kind: int, payload: bytes | Message = b"") -> bytes:
        reply = await self.ask(kind, payload)
        assert reply.type == Kind.RESPONSE, reply.payload
        answer: bytes = reply.payload
        return answer

    async def error(self, kind: int, payload: bytes | Message = b"") -> str:
        """Return the CAUSE of the ERROR reply."""
        reply = await self.ask(kind, payload)
        assert reply.type == Kind.ERROR
        text: str = reply.payload.decode()
        prefix = f"{Kind.Type.Name(kind)} failed: transaction ID: t1: "
        assert text.startswith(prefix)
        return text.removeprefix(prefix)

    async def finish(self) -> None:
        await self.peer.complete(self.message)
        await self.call


def record(kind: int, key: str, value: bytes = b"", collection: str = "") -> Any:
    """Return a record of a write batch."""
    return shim.WriteRecord(type=kind, key=key, value=value, collection=collection)
