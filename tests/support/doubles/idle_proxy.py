"""Something between two programs that ends connections on which nothing is said."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Self

from chaindock.aio import Tasks


class IdleProxy:
    """Passes TCP on to `target` (host:port) and cuts what is silent for `idle_s`.

    As load balancers, virtual machines and firewalls do: without a word to either side.
    """

    def __init__(self, target: str, idle_s: float) -> None:
        self._target, self._idle_s = target, idle_s
        self._tasks = Tasks("idle proxy")
        self._server: asyncio.Server | None = None
        self.address = ""
        self.cut = 0
        """Connections that it ended."""

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        host, _, port = self._target.rpartition(":")
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        loop = asyncio.get_running_loop()
        deadline = asyncio.timeout(self._idle_s)

        async def pump(source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
            while data := await source.read(1 << 16):
                deadline.reschedule(loop.time() + self._idle_s)
                to.write(data)
                await to.drain()

        try:
            async with deadline:
                await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))
        except TimeoutError:
            self.cut += 1
        except OSError:
            pass
        finally:
            for one in (writer, far_writer):
                one.transport.abort()

    async def __aenter__(self) -> Self:
        async def take(
            reader: asyncio.StreamReader, writer: asyncio.StreamWriter
        ) -> None:
            # Not in the task of the server, which would wait for it at the end.
            _ = self._tasks.start(self._serve(reader, writer), "connection")

        self._server = await asyncio.start_server(take, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        self.address = f"{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
        await self._tasks.aclose()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                if self._server is not None:
                    await self._server.wait_closed()
