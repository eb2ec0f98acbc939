"""A custodian and a launcher with everything real but the back end."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Self

import pytest

from chaindock.chaincode.invocation import Outcome, outcome_of
from chaindock.chaincode.launcher import RuntimeLauncher
from chaindock.chaincode.options import CallOptions, LaunchOptions
from chaindock.chaincode.registry import HandlerRegistry
from chaindock.chaincode.server import ChaincodeListener
from chaindock.chaincode.support import ChaincodeSupport
from chaindock.container.contracts import ClientTls, PeerConnection
from chaindock.container.router import Router
from chaindock.errors import LaunchFailed
from chaindock.lifecycle.custodian import Custodian
from chaindock.lifecycle.states import CustodianOptions, LaunchState, Target
from support.doubles.launch_fakes import FakeBuilder, OneBackend, any_package
from support.doubles.memory_state import invocation
from support.eventually import eventually
from support.shims.stream_node import CCID

if TYPE_CHECKING:
    from chaindock.container.attempt import Attempt
    from chaindock.identity.ca import TlsAuthority
    from chaindock.ids import Ccid
    from chaindock.lifecycle.supervisor import Supervisor


class World:
    """All that launches chaincode; only the back end is imitated."""

    def __init__(self, authority: TlsAuthority | None = None, **options: Any) -> None:
        self.authority = authority
        self.options = LaunchOptions(**{"connect_timeout_s": 5.0, **options})
        self.builder = FakeBuilder()
        self.registry = HandlerRegistry()
        self._stack = AsyncExitStack()
        self.launcher: RuntimeLauncher
        self.custodian: Custodian
        self.support: ChaincodeSupport

    async def __aenter__(self) -> Self:
        listener = await self._stack.enter_async_context(
            ChaincodeListener(self.registry, authority=self.authority)
        )
        self.launcher = RuntimeLauncher(
            self.registry,
            any_package,
            Router(OneBackend(self.builder)),
            lambda _: PeerConnection(listener, "Org1MSP", self.certificate()),
            options=self.options,
        )
        options = CustodianOptions(retry_first_s=0.01, retry_cap_s=0.05)
        self.custodian = await self._stack.enter_async_context(
            Custodian(self.launcher, options)
        )
        self.support = ChaincodeSupport(
            self.registry, self.custodian.ready, CallOptions(execute_timeout_s=5.0)
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

    async def launch(self, ccid: Ccid = CCID, attempt: Attempt | None = None) -> None:
        """Launch as a first deployment does: a failure is not tried again."""
        await self.custodian.launch(ccid, attempt, trial=True)

    async def stop(
        self, ccid: Ccid, grace_s: float, drain_s: float | None = None
    ) -> None:
        drain_s = grace_s if drain_s is None else drain_s
        supervisor = self.custodian.find(ccid)
        if supervisor is not None:
            await supervisor.ask_down(Target.STOPPED, grace_s, drain_s).wait()

    def record(self, ccid: Ccid = CCID) -> Supervisor:
        """Return what is known of a chaincode that was launched."""
        found = self.custodian.find(ccid)
        assert found is not None
        return found

    def state(self) -> LaunchState:
        found = self.custodian.find(CCID)
        return LaunchState.DOWN if found is None else found.state

    async def until(self, state: LaunchState) -> None:
        await eventually(lambda: self.state() is state)

    async def execute(self) -> bytes:
        payload: bytes = (await self._outcome()).response.payload
        return payload

    def start_call(self) -> asyncio.Task[Any]:
        return asyncio.get_running_loop().create_task(self._outcome())

    async def _outcome(self) -> Outcome:
        call = invocation("f")
        return outcome_of(await self.support.execute(CCID, call), call)


async def failure(world: World, kind: type[LaunchFailed]) -> LaunchFailed:
    with pytest.raises(LaunchFailed) as caught:
        await world.launch(CCID)
    assert type(caught.value) is kind
    assert caught.value.message.startswith(f"could not launch chaincode {CCID}: ")
    assert caught.value.facts["ccid"] == CCID
    assert world.registry.find(CCID) is None
    return caught.value
