"""Dial a chaincode that serves.

The node never writes first. The call is cancelled at the end, because some shims never
answer a half-close.
Source: docs/fabric/shim-protocol.md#transport
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio

from chaindock.aio import Backoff
from chaindock.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from chaindock.chaincode.handler import Handler, StreamEnd
    from chaindock.chaincode.options import StreamOptions
    from chaindock.container.contracts import DialTls

_log = get_logger("chaincode.client")
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.02, 0.1
"""Between calls that break: some engines accept connections before chaincode listens."""
_METHOD: Final = "/protos.Chaincode/Connect"
_NO_METHOD: Final = "/chaindock.Rest/Over"
_LONGEST_REST_S: Final = 1.0
_REFUSALS: Final = 10
"""Calls that break, in about 1 s, after which a TLS server is not taken to be booting: it
is another server, or refuses the node."""
_UNIX: Final = "unix:"
_LOOK_S: Final = 0.01
"""Between two tries of a port without a listener; a try costs next to nothing."""
_CONNECT_S: Final = 0.5


async def serve_dialled(
    address: str, handler: Handler, options: StreamOptions, tls: DialTls | None = None
) -> StreamEnd:
    """Dial `address` until it answers, then serve the stream until it ends.

    It retries while nothing listens, or the connection breaks before the first message;
    the caller bounds that by cancelling. With `tls`, a server that is not the expected
    one, or that refuses the node, ends the dial after about a second.

    Returns: why the stream ended, or broke.
    """
    backoff = Backoff(_FIRST_WAIT_S, _LONGEST_WAIT_S)
    broken = 0
    while True:
        await wait_until_listening(address)
        async with _channel(address, options, tls) as channel:
            call: Any = channel.stream_stream(_METHOD)()
            handler.rest = partial(_rest, channel)
            try:
                first = await call.read()
                _heed_cancellation()
                return await handler.run(call, first)
            except grpc.aio.AioRpcError as error:
                _heed_cancellation()
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    handler.end(error.code(), f"{error.code().name}: {error.details()}")
                    return await handler.ended.wait()
                broken += 1
                if tls is not None and broken >= _REFUSALS:
                    name = tls.server_name or address.rpartition(":")[0].strip("[]")
                    reason = (
                        f"no TLS with the server at {address}: expected a certificate "
                        f"for {name!r} that the given root signed; or the server refuses "
                        f"the node's certificate ({error.details()})"
                    )
                    handler.end(grpc.StatusCode.UNAUTHENTICATED, reason)
                    return await handler.ended.wait()
                _log.debug("not listening", address=address, error=error.details())
            finally:
                call.cancel()
        await asyncio.sleep(backoff.next_s())


async def wait_until_listening(address: str) -> None:
    """Return when something accepts connections at `address`.

    Trying a socket is cheaper than a gRPC channel, so it is tried every `_LOOK_S`.
    """
    host, _, port = address.rpartition(":")
    while True:
        try:
            async with asyncio.timeout(_CONNECT_S):
                if address.startswith(_UNIX):
                    path = address.removeprefix(_UNIX)
                    _, writer = await asyncio.open_unix_connection(path)
                else:
                    _, writer = await asyncio.open_connection(host.strip("[]"), port)
        except OSError:
            await asyncio.sleep(_LOOK_S)
        else:
            writer.close()
            return


def _rest(channel: grpc.aio.Channel, done: Callable[[], None]) -> None:
    """Call `done` when the chaincode has finished all its writes.

    The chaincode is asked for a method that does not exist: it writes the refusal to the same
    connection, after everything that it wrote before. No fixed time would do on a busy
    machine.
    """
    ask: Any = channel.unary_unary(_NO_METHOD)
    call = ask(b"", timeout=_LONGEST_REST_S)
    call.add_done_callback(lambda _call: done())


def _heed_cancellation() -> None:
    # Until the server has sent its first bytes, grpc.aio waits in a task of its own that
    # swallows the cancellation of the reader (grpcio 1.85: `_prepare_rpc`).
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _channel(
    address: str, options: StreamOptions, tls: DialTls | None
) -> grpc.aio.Channel:
    settings: list[tuple[str, int | str]] = [
        ("grpc.max_receive_message_length", options.receive_bytes),
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
