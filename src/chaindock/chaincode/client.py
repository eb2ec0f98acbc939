"""Dial a chaincode that serves.

Owns:    the call to protos.Chaincode/Connect, and waiting for a server that boots.
Not:     what is said on the stream (handler.py).
Entry:   serve_dialled
Holds:   the node never writes first; the call is cancelled at the end, because some
         shims never answer a half-close; nothing is concluded from the channel's state.
Source:  shim-protocol.md §1.1, §1.2, §3.5
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio
from fabric_protos.peer import chaincode_shim_pb2 as shim

from chaindock.aio import Backoff
from chaindock.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from chaindock.chaincode.handler import Handler, StreamEnd
    from chaindock.chaincode.options import StreamOptions

_log = get_logger("chaincode.client")
_LOOK_S: Final = 0.01
"""How often a port is tried that nobody listens on yet; one try costs next to nothing."""
_CONNECT_S: Final = 0.5
_FIRST_WAIT_S: Final = 0.02
_LONGEST_WAIT_S: Final = 0.1
"""Between calls that break: some engines accept connections for who is not there yet."""
_METHOD: Final = "/protos.Chaincode/Connect"
_NO_METHOD: Final = "/chaindock.Rest/Over"
_LONGEST_REST_S: Final = 1.0


async def serve_dialled(
    address: str, handler: Handler, options: StreamOptions
) -> StreamEnd:
    """Dial `address` until it answers, then serve the stream until it ends.

    It retries while nothing listens or the connection breaks before the first message;
    the caller bounds that by cancelling.

    Returns: why the stream ended.
    Raises: nothing of gRPC: what breaks the stream is in the returned reason.
    Cancelled: the call is cancelled, nothing stays open.
    """
    backoff = Backoff(_FIRST_WAIT_S, _LONGEST_WAIT_S)
    while True:
        await _listens(address)
        async with _channel(address, options) as channel:
            call = channel.stream_stream(
                _METHOD,
                request_serializer=shim.ChaincodeMessage.SerializeToString,
                response_deserializer=shim.ChaincodeMessage.FromString,
            )()
            handler.rest = partial(_rest, channel)
            try:
                first = await call.read()
                _heed_cancellation()
                return await handler.run(_Answered(call, first))
            except grpc.aio.AioRpcError as error:
                _heed_cancellation()
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    handler.end(error.code(), f"{error.code().name}: {error.details()}")
                    return await handler.ended.wait()
                _log.debug("not yet there", address=address, error=error.details())
            finally:
                call.cancel()
        await asyncio.sleep(backoff.next_s())


async def _listens(address: str) -> None:
    """Return when something accepts connections at `address`."""
    host, _, port = address.rpartition(":")
    while True:
        try:
            async with asyncio.timeout(_CONNECT_S):
                _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        except OSError:
            await asyncio.sleep(_LOOK_S)
        else:
            writer.close()
            return


def _rest(channel: grpc.aio.Channel, done: Callable[[], None]) -> None:
    """Call `done` when the other side has nothing in the middle of being written.

    It is asked for a method that nobody has: the refusal travels over the same connection
    and is written only after whatever was written before is wholly over. How long that
    takes on a busy machine, no fixed time could say.
    """
    ask: Any = channel.unary_unary(_NO_METHOD)
    call = ask(b"", timeout=_LONGEST_REST_S)
    call.add_done_callback(lambda _call: done())


def _heed_cancellation() -> None:
    # Until the server has sent its first bytes, grpc.aio waits in a task of its own that
    # swallows the cancellation of whoever reads (grpcio 1.85: `_prepare_rpc`).
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _channel(address: str, options: StreamOptions) -> grpc.aio.Channel:
    """Open the channel: the only place that will know about TLS."""
    return grpc.aio.insecure_channel(
        address,
        options=[
            ("grpc.max_receive_message_length", options.max_message_bytes),
            ("grpc.max_send_message_length", options.max_message_bytes),
            # No pings: the Python shim's server ends connections that ping often.
            # Each try connects anew instead of sharing gRPC's own back-off.
            ("grpc.use_local_subchannel_pool", 1),
            # Chaincode is never behind the proxy that builds may need.
            ("grpc.enable_http_proxy", 0),
        ],
    )


class _Answered:
    """A call whose first message was read already."""

    def __init__(self, call: Any, first: Any) -> None:
        self._first: list[Any] = [first]
        self._call = call
        self.write = call.write

    async def read(self) -> Any:
        if self._first:
            return self._first.pop()
        self.read = self._call.read  # type: ignore[method-assign]  # no detour later
        return await self._call.read()
