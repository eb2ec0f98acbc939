"""Dial a chaincode that serves.

The node never writes first. The call is cancelled at the end, because some shims never
answer a half-close.
Source: docs/fabric/shim-protocol.md#transport
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final

from chaindock.aio import Backoff, Tasks
from chaindock.chaincode.handler import Handler, StreamEnd
from chaindock.chaincode.options import StreamOptions
from chaindock.container.contracts import DialTls
from chaindock.rpc.connection import Connection, Limits
from chaindock.rpc.dial import connect
from chaindock.rpc.status import CallEnded, Status
from chaindock.rpc.tls import client_context
from chaindock.telemetry import get_logger

_log = get_logger("chaincode.client")
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.02, 0.1
"""Between calls that break: some engines accept connections before chaincode listens."""
_LONGEST_REST_S: Final = 1.0
_REFUSALS: Final = 10
"""Calls that break, in about 1 s, after which a TLS server is not taken to be booting: it
is another server, or refuses the node."""
_LOOK_S: Final = 0.01
"""Between two tries of a port without a listener; a try costs next to nothing."""
_CONNECT_S: Final = 2.0
"""For a connection and its handshake; a machine that starts many chaincodes is slow."""


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
    # No pings: the Python shim's server ends connections that ping often.
    limits = Limits(options.receive_bytes, options.max_message_bytes)
    context, name = None, None
    if tls is not None:
        name = tls.server_name
        try:
            context = client_context(tls.cert_pem, tls.key_pem, tls.root_pem)
        except (OSError, ValueError) as error:  # what was given is no PEM
            handler.end(Status.UNAUTHENTICATED, _no_tls(address, tls, error))
            return await handler.ended.wait()
    broken = 0
    while True:
        try:
            async with asyncio.timeout(_CONNECT_S):
                connection = await connect(address, limits, context, name)
        except (ConnectionRefusedError, FileNotFoundError):
            await asyncio.sleep(_LOOK_S)
            continue
        except OSError as error:  # a time-out is one, and whatever TLS does not like
            why = str(error) or "no answer in time"
        else:
            stream = connection.request("/protos.Chaincode/Connect")
            try:
                async with Tasks("rests") as tasks:
                    handler.rest = partial(_rest, connection, tasks)
                    await stream.begun()
                    return await handler.run(stream)
            except CallEnded as ended:
                if ended.code is not Status.UNAVAILABLE:
                    handler.end(ended.code, str(ended))
                    return await handler.ended.wait()
                why = ended.text
            finally:
                stream.cancel()
                connection.close()
        broken += 1
        if tls is not None and broken >= _REFUSALS:
            handler.end(Status.UNAUTHENTICATED, _no_tls(address, tls, why))
            return await handler.ended.wait()
        _log.debug("not listening", address=address, error=why)
        await asyncio.sleep(backoff.next_s())


def _no_tls(address: str, tls: DialTls, why: object) -> str:
    wanted = tls.server_name or address.rpartition(":")[0].strip("[]")
    return (
        f"no TLS with the server at {address}: expected a certificate for {wanted!r} "
        f"that the given root signed; or the server refuses the node's certificate ({why})"
    )


def _rest(connection: Connection, tasks: Tasks, done: Callable[[], None]) -> None:
    """Call `done` when the chaincode has finished all its writes.

    The chaincode is asked for a method that does not exist: it writes the refusal to the same
    connection, after everything that it wrote before. No fixed time would do on a busy
    machine.
    """
    stream = connection.request("/chaindock.Rest/Over", empty=True)

    async def refused() -> None:
        try:
            async with asyncio.timeout(_LONGEST_REST_S):
                await stream.read()
        except (CallEnded, TimeoutError):
            pass
        finally:
            stream.cancel()
            done()

    _ = tasks.start(refused(), "rest")
