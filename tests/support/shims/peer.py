"""A chaincode process played by a test: exact messages, over real sockets.

`ShimPeer.dial` is a chaincode that dials the node, `ShimServer` one that is dialled.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any, Self

import grpc
import grpc.aio
from fabric_protos.peer import chaincode_event_pb2, chaincode_pb2, proposal_response_pb2
from fabric_protos.peer import chaincode_shim_pb2 as shim

from support.eventually import eventually

if TYPE_CHECKING:
    from google.protobuf.message import Message

Kind = shim.ChaincodeMessage
_LIMITS = [
    ("grpc.max_receive_message_length", 200 * 1024 * 1024),
    ("grpc.max_send_message_length", 200 * 1024 * 1024),
]
PATIENCE_S = 10.0
BOTH_WAYS = {
    "request_serializer": Kind.SerializeToString,
    "response_deserializer": Kind.FromString,
}


class ShimPeer:
    """One open stream, seen from the chaincode."""

    def __init__(self, stream: Any, channel: grpc.aio.Channel | None = None) -> None:
        self._stream = stream
        self._channel = channel
        self.left = asyncio.Event()

    @classmethod
    async def dial(
        cls, address: str, credentials: grpc.ChannelCredentials | None = None
    ) -> Self:
        """Open a stream to the node, and say nothing yet; None = without TLS."""
        if credentials is None:
            channel = grpc.aio.insecure_channel(address, options=_LIMITS)
        else:
            channel = grpc.aio.secure_channel(address, credentials, options=_LIMITS)
        method = channel.stream_stream("/protos.ChaincodeSupport/Register", **BOTH_WAYS)
        return cls(method(), channel)

    async def send(
        self,
        kind: int,
        payload: bytes | Message = b"",
        *,
        txid: str = "",
        channel: str = "",
        **fields: Any,
    ) -> None:
        """Send one message."""
        if not isinstance(payload, bytes):
            payload = payload.SerializeToString()
        message = Kind(
            type=kind, payload=payload, txid=txid, channel_id=channel, **fields
        )
        await self._stream.write(message)

    async def receive(self) -> Any:
        """Return the next message, `grpc.aio.EOF` at the end."""
        async with asyncio.timeout(PATIENCE_S):
            return await self._stream.read()

    async def next(self) -> Any:
        """Return the next message, however long it takes; None when it ended."""
        try:
            message = await self._stream.read()
        except grpc.aio.AioRpcError:
            return None
        return None if message is grpc.aio.EOF else message

    async def silent(self, seconds: float = 0.15) -> bool:
        """Return whether nothing arrives. The stream cannot be read afterwards."""
        try:
            async with asyncio.timeout(seconds):
                await self._stream.read()
        except TimeoutError:
            return True
        return False

    async def register(self, name: str, **fields: Any) -> Any:
        """Register and return the READY message."""
        await self.send(Kind.REGISTER, chaincode_pb2.ChaincodeID(name=name), **fields)
        registered = await self.receive()
        assert registered == Kind(type=Kind.REGISTERED)
        ready = await self.receive()
        assert ready.type == Kind.READY
        return ready

    async def refusal(self) -> tuple[grpc.StatusCode, str]:
        """Return the status with which the node ends the stream."""
        async with asyncio.timeout(PATIENCE_S):
            code = await self._stream.code()
            return code, await self._stream.details()

    async def ask(self, to: Any, kind: int, payload: bytes | Message = b"") -> Any:
        """Send a request within the invocation `to` (its message); return the reply."""
        await self.send(kind, payload, txid=to.txid, channel=to.channel_id)
        reply = await self.receive()
        assert (reply.txid, reply.channel_id) == (to.txid, to.channel_id)
        return reply

    async def complete(
        self, to: Any, payload: bytes = b"", status: int = 200, event: str = ""
    ) -> None:
        """Send COMPLETED for the invocation `to`."""
        response = proposal_response_pb2.Response(status=status, payload=payload)
        fields: dict[str, Any] = {}
        if event:
            fields["chaincode_event"] = chaincode_event_pb2.ChaincodeEvent(
                event_name=event, payload=b"e:" + payload, chaincode_id="lie"
            )
        await self.send(
            Kind.COMPLETED, response, txid=to.txid, channel=to.channel_id, **fields
        )

    async def half_close(self) -> None:
        """Say that nothing more is sent."""
        await self._stream.done_writing()

    async def leave(self) -> None:
        """Break the stream, as a process that dies."""
        self.left.set()
        if hasattr(self._stream, "cancel"):
            self._stream.cancel()
        if self._channel is not None:
            await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.leave()


class _NoMethod(grpc.GenericRpcHandler):
    """Refuses what a real server does not have either, when `may_refuse` is set."""

    def __init__(self) -> None:
        self.asked, self.may_refuse = asyncio.Event(), asyncio.Event()
        self.may_refuse.set()

    def service(self, _call: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(self._refuse)

    async def _refuse(self, _request: bytes, context: Any) -> None:
        self.asked.set()
        await self.may_refuse.wait()
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")


class ShimServer:
    """A chaincode that serves; each stream that is opened comes out of `stream`."""

    def __init__(
        self, port: int = 0, credentials: grpc.ServerCredentials | None = None
    ) -> None:
        self._server = grpc.aio.server(options=[*_LIMITS, ("grpc.so_reuseport", 0)])
        self._port, self._credentials = port, credentials
        self._streams: asyncio.Queue[ShimPeer] = asyncio.Queue()
        self.address = ""
        self.open = 0
        self.opened = itertools.count()
        self.no_method = _NoMethod()

    async def stream(self) -> ShimPeer:
        """Wait for the node to open the next stream."""
        async with asyncio.timeout(PATIENCE_S):
            return await self._streams.get()

    async def closed(self) -> None:
        """Wait until no stream is open."""
        await eventually(lambda: not self.open)

    async def _connect(self, _messages: Any, context: Any) -> None:
        peer = ShimPeer(context)
        self.open += 1
        next(self.opened)
        try:
            self._streams.put_nowait(peer)
            await peer.left.wait()
        finally:
            self.open -= 1

    async def __aenter__(self) -> Self:
        handler = grpc.stream_stream_rpc_method_handler(
            self._connect,
            request_deserializer=Kind.FromString,
            response_serializer=Kind.SerializeToString,
        )
        self._server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    "protos.Chaincode", {"Connect": handler}
                ),
                self.no_method,
            )
        )
        address = f"127.0.0.1:{self._port}"
        if self._credentials is None:
            port = self._server.add_insecure_port(address)
        else:
            port = self._server.add_secure_port(address, self._credentials)
        await self._server.start()
        self.address = f"127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(None)
