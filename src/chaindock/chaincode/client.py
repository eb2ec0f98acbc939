"""Dial a chaincode that serves.

Owns:    the call to protos.Chaincode/Connect, trying again while a server boots.
Not:     what is said on the stream (handler.py), who may serve (proof.py).
Entry:   serve_dialled
Holds:   the node never writes first; the call is cancelled at the end, because some
         shims never answer a half-close; nothing is concluded from the channel's state.
Source:  shim-protocol.md §1.1, §1.2, §1.4, §3.5
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio
from fabric_protos.peer import chaincode_shim_pb2 as shim

from chaindock.aio import Backoff
from chaindock.chaincode.proof import UntrustedError, answers
from chaindock.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from chaindock.chaincode.handler import Handler, StreamEnd
    from chaindock.chaincode.options import StreamOptions
    from chaindock.container.contracts import DialTls

_log = get_logger("chaincode.client")
_FIRST_WAIT_S: Final = 0.02
_LONGEST_WAIT_S: Final = 0.1
"""Between calls that break: some engines accept connections for who is not there yet."""
_METHOD: Final = "/protos.Chaincode/Connect"
_NO_METHOD: Final = "/chaindock.Rest/Over"
_LONGEST_REST_S: Final = 1.0
_REFUSALS: Final = 3
"""So many calls that break after a good handshake are no server that still boots."""


async def serve_dialled(
    address: str, handler: Handler, options: StreamOptions, tls: DialTls | None = None
) -> StreamEnd:
    """Dial `address` until it answers, then serve the stream until it ends.

    With `tls`, a server that is not the expected one, or that refuses the node, ends it
    at once. Otherwise it retries while nothing listens or the connection breaks before
    the first message; the caller bounds that by cancelling.

    Returns: why the stream ended.
    Raises: nothing of gRPC: what breaks the stream is in the returned reason.
    Cancelled: the call is cancelled, nothing stays open.
    """
    backoff = Backoff(_FIRST_WAIT_S, _LONGEST_WAIT_S)
    broken = 0
    while True:
        try:
            await answers(address, tls)
        except UntrustedError as error:
            handler.end(grpc.StatusCode.UNAUTHENTICATED, str(error))
            return await handler.ended.wait()
        async with _channel(address, options, tls) as channel:
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
                broken += 1
                if tls is not None and broken >= _REFUSALS:
                    handler.end(error.code(), _refused(address, tls, error))
                    return await handler.ended.wait()
                _log.debug("not yet there", address=address, error=error.details())
            finally:
                call.cancel()
        await asyncio.sleep(backoff.next_s())


def _refused(address: str, tls: DialTls, error: grpc.aio.AioRpcError) -> str:
    shown = "refuses the node's certificate, or" if tls.cert_pem else "wants one,"
    return (
        f"the server at {address} ended {_REFUSALS} connections after their TLS "
        f"handshake: it {shown} cannot take streams ({error.details()})"
    )


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


def _channel(
    address: str, options: StreamOptions, tls: DialTls | None
) -> grpc.aio.Channel:
    settings: list[tuple[str, int | str]] = [
        ("grpc.max_receive_message_length", options.max_message_bytes),
        ("grpc.max_send_message_length", options.max_message_bytes),
        # No pings: the Python shim's server ends connections that ping often.
        # Each try connects anew instead of sharing gRPC's own back-off.
        ("grpc.use_local_subchannel_pool", 1),
        # Chaincode is never behind the proxy that builds may need.
        ("grpc.enable_http_proxy", 0),
    ]
    if tls is None:
        return grpc.aio.insecure_channel(address, options=settings)
    if tls.server_name is not None:
        settings.append(("grpc.ssl_target_name_override", tls.server_name))
    credentials = grpc.ssl_channel_credentials(
        tls.root_pem.encode(),
        tls.key_pem.encode() if tls.key_pem else None,
        tls.cert_pem.encode() if tls.cert_pem else None,
    )
    return grpc.aio.secure_channel(address, credentials, options=settings)


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
