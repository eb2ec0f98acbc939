"""Connect to a server, to call it."""

from __future__ import annotations

import asyncio
import ssl

from chaindock.rpc.connection import Connection, Limits
from chaindock.rpc.tls import Channel

_UNIX = "unix:"


async def connect(
    address: str,
    limits: Limits,
    tls: ssl.SSLContext | None = None,
    server_name: str | None = None,
) -> Connection:
    """Return a connection to `address` on which calls can be made.

    `address` is host:port, or unix: and a path. The server's certificate must hold for
    `server_name`; None = for the host.

    Raises: OSError: nothing listens, the server is not the expected one, or refuses.
    """
    loop = asyncio.get_running_loop()
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    channel = Channel(tls, server_name or host) if tls else None
    connection = Connection(limits, tls=channel)
    if address.startswith(_UNIX):
        path = address.removeprefix(_UNIX)
        await loop.create_unix_connection(lambda: connection, path)
    else:
        connection.authority = address  # a path would be none: Node.js resets the call
        await loop.create_connection(lambda: connection, host, int(port))
    try:
        await connection.ready
    except BaseException:
        connection.abort()
        raise
    return connection
