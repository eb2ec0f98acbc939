"""The node's side of streams, for tests: a registry, a listener, streams both ways."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Self

from chaindock.aio import Tasks
from chaindock.chaincode.client import serve_dialled
from chaindock.chaincode.handler import Expected, Handler
from chaindock.chaincode.invocation import outcome_of
from chaindock.chaincode.options import ListenOptions, StreamOptions
from chaindock.chaincode.registry import HandlerRegistry
from chaindock.chaincode.server import ChaincodeListener
from chaindock.container.attempt import Attempt
from chaindock.ids import Ccid
from support.shims.peer import ShimPeer, ShimServer

if TYPE_CHECKING:
    import grpc

    from chaindock.chaincode.invocation import Invocation, Outcome
    from chaindock.identity.ca import TlsAuthority

CCID = Ccid("basic:" + "ab" * 32)
OTHER = Ccid("other:" + "cd" * 32)
MODELS = ("dials", "is dialled")


class StreamNode:
    """Everything but launching; `model` says who opens streams."""

    def __init__(
        self,
        model: str = "dials",
        authority: TlsAuthority | None = None,
        listen: ListenOptions | None = None,
        **options: Any,
    ) -> None:
        self.model = model
        self.authority, self.listen = authority, listen
        self.options = StreamOptions(**options)
        self.registry = HandlerRegistry(admit_unlaunched=self.options.mode == "dev")
        self.tasks = Tasks("test")
        self._stack = AsyncExitStack()
        self.listener: ChaincodeListener
        self.handler: Handler
        self.far_end: ShimServer

    async def __aenter__(self) -> Self:
        self.listener = await self._stack.enter_async_context(
            ChaincodeListener(self.registry, self.options, self.listen, self.authority)
        )
        await self._stack.enter_async_context(self.tasks)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    def expect(self, ccid: Ccid = CCID, **fields: Any) -> Expected:
        """Let `ccid` register, as if it was being launched."""
        expected = Expected(ccid, Attempt(ccid), **fields)
        self.registry.expect(expected)
        return expected

    async def dial(
        self, credentials: grpc.ChannelCredentials | None = None
    ) -> ShimPeer:
        """Return a chaincode that has dialled the node."""
        address = await self.listener.address_on("127.0.0.1")
        peer = await ShimPeer.dial(address, credentials)
        return await self._stack.enter_async_context(peer)

    async def server(self) -> ShimServer:
        """Return a chaincode that serves."""
        return await self._stack.enter_async_context(ShimServer())

    async def open(self, expected: Expected) -> ShimPeer:
        """Open a stream by this node's model; nothing is said on it yet."""
        if self.model == "dials":
            return await self.dial()
        server = self.far_end = await self.server()
        expected.dialled = True
        handler = Handler(self.registry, self.options, dialled=expected)
        dialled = serve_dialled(server.address, handler, self.options)
        _ = self.tasks.start(dialled, "dial")
        peer = await server.stream()
        self._stack.push_async_callback(peer.leave)
        return peer

    async def ready(self, ccid: Ccid = CCID, **fields: Any) -> ShimPeer:
        """Return a chaincode that is registered; its handler is `handler`."""
        register = {name: fields.pop(name) for name in ("timestamp",) if name in fields}
        expected = self.expect(ccid, **fields)
        peer = await self.open(expected)
        await peer.register(ccid, **register)
        self.handler = await expected.ready.wait()
        self.registry.forget(expected)
        return peer

    def call(
        self, invocation: Invocation, timeout_s: float = 5.0
    ) -> asyncio.Task[Outcome]:
        """Start an invocation on the ready chaincode."""
        calls = self.handler.calls

        async def outcome() -> Outcome:
            return outcome_of(await calls.execute(invocation, timeout_s), invocation)

        return asyncio.get_running_loop().create_task(outcome())
