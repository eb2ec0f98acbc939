"""A launcher with everything real but the builder."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Self

import pytest

from chaindock.chaincode.launcher import RuntimeLauncher
from chaindock.chaincode.options import CallOptions, LaunchOptions
from chaindock.chaincode.registry import HandlerRegistry, LaunchState
from chaindock.chaincode.runtime import ContainerRuntime
from chaindock.chaincode.server import ChaincodeListener
from chaindock.chaincode.support import ChaincodeSupport
from chaindock.container.build_registry import BuildRegistry
from chaindock.container.contracts import ClientTls, Exit, PeerConnection
from chaindock.container.router import Router
from chaindock.errors import (
    LaunchFailed,
)
from support.doubles.launch_fakes import (
    AnyPackage,
    FakeBuilder,
)
from support.doubles.memory_state import invocation
from support.eventually import eventually
from support.shims.stream_node import CCID

if TYPE_CHECKING:
    from chaindock.identity.tls import TlsAuthority


class World:
    """A launcher with everything real but the builder."""

    def __init__(self, authority: TlsAuthority | None = None, **options: Any) -> None:
        self.authority = authority
        self.options = LaunchOptions(**{"connect_timeout_s": 5.0, **options})
        self.builder = FakeBuilder()
        self.registry = HandlerRegistry()
        self.runtime = ContainerRuntime(
            AnyPackage(),
            BuildRegistry(),
            Router([self.builder], lambda _: None),
            self.options,
        )
        self.exits: list[tuple[str, Exit]] = []
        self._stack = AsyncExitStack()
        self.launcher: RuntimeLauncher
        self.support: ChaincodeSupport

    async def __aenter__(self) -> Self:
        listener = await self._stack.enter_async_context(
            ChaincodeListener(self.registry, authority=self.authority)
        )
        self.launcher = await self._stack.enter_async_context(
            RuntimeLauncher(
                self.registry,
                self.runtime,
                lambda _: PeerConnection(listener, "Org1MSP", self.certificate()),
                options=self.options,
                on_exit=lambda ccid, end: self.exits.append((ccid, end)),
            )
        )
        self.support = ChaincodeSupport(
            self.registry, self.launcher, CallOptions(execute_timeout_s=5.0)
        )
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    def certificate(self) -> ClientTls | None:
        """Return what one attempt shows, if there is TLS."""
        if self.authority is None:
            return None
        pair = self.authority.issue_client()
        return ClientTls(pair.key_pem, pair.cert_pem, self.authority.root_pem)

    def state(self) -> LaunchState:
        return self.launcher.status(CCID).state

    async def until(self, state: LaunchState) -> None:
        await eventually(lambda: self.state() is state)

    async def execute(self) -> bytes:
        outcome = await self.support.execute(CCID, invocation("f"))
        payload: bytes = outcome.response.payload
        return payload

    def start_call(self) -> asyncio.Task[Any]:
        return asyncio.get_running_loop().create_task(
            self.support.execute(CCID, invocation("f"))
        )


async def failure(world: World, kind: type[LaunchFailed]) -> LaunchFailed:
    with pytest.raises(LaunchFailed) as caught:
        await world.launcher.launch(CCID)
    assert type(caught.value) is kind
    assert caught.value.message.startswith(f"could not launch chaincode {CCID}: ")
    assert caught.value.facts["ccid"] == CCID
    assert world.registry.find(CCID) is None
    return caught.value
