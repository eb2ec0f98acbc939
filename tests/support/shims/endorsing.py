"""Streams, a ledger and an endorser together: proposals go in, endorsements come out.

Only the chaincode is played by the test, message by message.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Self, cast

from chaindock.chaincode.options import CallOptions
from chaindock.chaincode.support import ChaincodeSupport
from chaindock.endorser.acl import require
from chaindock.endorser.caller import Caller, DefinitionWriter
from chaindock.endorser.checks import parse_proposal
from chaindock.endorser.configuration import Configuration
from chaindock.endorser.cutting import OrdererOptions
from chaindock.endorser.endorser import Endorser
from chaindock.endorser.genesis import genesis_envelope
from chaindock.endorser.orderer import Orderer
from chaindock.errors import LaunchFailed
from chaindock.ids import Ccid, ChannelId
from chaindock.ledger.ledger import Ledger
from chaindock.lifecycle.contract import LifecycleContract
from chaindock.lifecycle.definitions import Approval, Definition
from support.doubles.definitions import definitions_of
from support.ledgers.ledger import committed_definition
from support.ledgers.proposals import new_proposal
from support.shims.stream_node import StreamNode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from chaindock.chaincode.invocation import Outcome
    from chaindock.identity.organization import Organization
    from support.shims.peer import ShimPeer

CHANNEL = ChannelId("mychannel")


class Approvals:
    """Everything that a test approves."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, int], Approval] = {}

    def approval(self, name: str, sequence: int) -> Approval | None:
        return self.known.get((name, sequence))

    def is_stopped(self, name: str) -> bool:
        return False


def ccid_of(package: str) -> Ccid:
    return Ccid(f"{package}_1.0:{'a' * 64}")


class EndorsingNode:
    """A node's endorsing side, on a real ledger and with real streams."""

    def __init__(
        self,
        folder: Path,
        org: Organization,
        timeout_s: float = 5.0,
        channel: str = CHANNEL,
        capability: str = "V2_5",
        **options: Any,
    ) -> None:
        self.streams = StreamNode(**options)
        self.channel = ChannelId(channel)
        self.org = org
        self.approvals = Approvals()
        self._folder, self._timeout_s = folder, timeout_s
        self._capability = capability
        self._stack = AsyncExitStack()
        self.ledger: Ledger
        self.endorser: Endorser
        self.caller: Caller
        self.writer: DefinitionWriter

    async def __aenter__(self) -> Self:
        enter = self._stack.enter_async_context
        if self.channel == CHANNEL:
            await enter(self.streams)
        org, channel, orderer_options = self.org, self.channel, OrdererOptions()
        self.ledger = await enter(
            Ledger(
                self._folder / f"{channel}.db",
                channel,
                org.orderer,
                lambda: genesis_envelope(
                    channel, org.msp, orderer_options, capability=self._capability
                ),
            )
        )
        configuration = Configuration.of(self.ledger)
        approvals = cast("Any", self.approvals)
        self.endorser = Endorser(
            configuration=configuration,
            peers={org.mspid: org.peer},
            ledger=self.ledger,
            definitions=definitions_of(approvals),
            executor=ChaincodeSupport(
                self.streams.registry,
                _not_launched,
                CallOptions(execute_timeout_s=self._timeout_s),
            ),
            system={
                "_lifecycle": LifecycleContract(
                    channel,
                    lambda: [org.mspid],
                    cast("Any", None),
                    partial(require, configuration),
                )
            },
        )
        orderer = await enter(Orderer(self.ledger, configuration, orderer_options))
        self.caller = Caller(channel, self.endorser, orderer)
        self.writer = DefinitionWriter(self.caller, self.ledger, lambda: [org.admin])
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    @asynccontextmanager
    async def beside(
        self, channel: str, org: Organization | None = None
    ) -> AsyncIterator[EndorsingNode]:
        """Add another channel, of `org`, with the streams of this one."""
        other = EndorsingNode(self._folder, org or self.org, channel=channel)
        other.streams = self.streams
        async with other:
            pair = {self.channel: self.endorser, other.channel: other.endorser}
            self.endorser.others = other.endorser.others = cast("Any", pair.get)
            yield other

    async def define(
        self, name: str, *, package: str = "", version: str = "1.0", **fields: Any
    ) -> None:
        """Commit a definition of `name` that runs `package`."""
        before = committed_definition(self.ledger, name)
        sequence = before.sequence + 1 if before else 1
        ccid = ccid_of(package or name)
        if package is not None:
            self.approvals.known[name, sequence] = Approval(
                name, sequence, version, ccid, **fields
            )
        definition = Definition(name=name, sequence=sequence, version=version, **fields)
        await self.writer.commit(definition, ccid)

    async def chaincode(self, name: str, **fields: Any) -> ShimPeer:
        """Define `name`, and return its chaincode, which is registered."""
        await self.define(name)
        return await self.streams.ready(ccid_of(name), **fields)

    def propose(
        self, name: str, *args: bytes, **fields: Any
    ) -> asyncio.Task[tuple[Outcome, Any]]:
        """Send a proposal; the task gives what was said, and the endorsement."""
        signed = new_proposal(
            self.channel, name, args, self.org.user("User1"), **fields
        )
        return self.process(signed)

    def process(self, signed: Any) -> asyncio.Task[tuple[Outcome, Any]]:
        """Send a signed proposal."""
        work = processed(self.endorser, parse_proposal(signed))
        return asyncio.get_running_loop().create_task(work)


async def processed(
    endorser: Endorser, proposal: Any, timeout_s: float | None = None
) -> tuple[Outcome, Any]:
    """Return what was said, and the one answer to the client; None = there is none."""
    asked = next(iter(endorser.peers))
    outcome, answers = await endorser.process(
        proposal, timeout_s, endorse=True, endorsers=(asked,)
    )
    return outcome, next(iter(answers), None)


async def _not_launched(ccid: Ccid, _seconds: float) -> None:
    raise LaunchFailed(f"could not launch chaincode {ccid}: it is not there", ccid=ccid)
