"""The peer of an organisation over a real channel; only its chaincode is a function."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self, cast

from fabric_protos.peer import chaincode_shim_pb2, proposal_response_pb2

from chaindock.chaincode.invocation import Kind
from chaindock.endorser.acl import require
from chaindock.endorser.caller import Caller
from chaindock.endorser.channel import Channel
from chaindock.endorser.configuration import Configuration
from chaindock.endorser.cutting import OrdererOptions
from chaindock.endorser.endorser import Endorser
from chaindock.endorser.genesis import genesis_envelope, with_organization
from chaindock.endorser.orderer import Orderer
from chaindock.endorser.system import ConfigurationChaincode, QueryChaincode
from chaindock.gateway.peer import Peer
from chaindock.ids import Ccid, ChannelId
from chaindock.ledger.ledger import Ledger
from chaindock.ledger.reader import LedgerReader
from chaindock.lifecycle.contract import LifecycleContract
from chaindock.lifecycle.definitions import Approval, Definition
from support.doubles.definitions import definitions_of
from support.ledgers.proposals import new_proposal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from fabric_protos.peer.proposal_pb2 import SignedProposal

    from chaindock.identity.msp import SigningIdentity
    from chaindock.identity.organization import Organization

CHANNEL = ChannelId("mychannel")
DECADES_S = 1e9
"""A window in which the clock of a recording is right, and one without a time is not."""
_CCID = Ccid("basic_1.0:" + "a" * 64)


class Approved:
    """Every definition has been approved with the same package."""

    def approval(self, name: str, sequence: int) -> Approval | None:
        return Approval(name, sequence, "1.0", _CCID, init_required=False)

    def is_stopped(self, name: str) -> bool:
        return False


async def answer(_ccid: Any, invocation: Any, _mspid: str = "") -> Any:
    """Write the key, if there is one, and answer with the status that was asked for."""
    status, *keys = (bytes(arg).decode() for arg in invocation.input.args)
    for key in keys:
        invocation.simulator.put_state(invocation.namespace, key, b"v")
    response = proposal_response_pb2.Response(status=int(status), payload=b"said")
    invocation.simulator.budget.give_back()
    return chaincode_shim_pb2.ChaincodeMessage(
        type=Kind.COMPLETED, payload=response.SerializeToString()
    )


@asynccontextmanager
async def channel_of(
    ledger: Ledger,
    peers: Mapping[str, SigningIdentity],
    channels: dict[str, Channel],
    *,
    approvals: Any = None,
    execute: Any = answer,
) -> AsyncIterator[Channel]:
    """Give the channel of an open ledger, which is also put into `channels`."""
    configuration = Configuration.of(ledger)
    no_packages = cast("Any", None)
    contract = LifecycleContract(
        ledger.channel,
        lambda: configuration.peers,
        no_packages,
        partial(require, configuration),
    )
    endorser = Endorser(
        configuration=configuration,
        peers=peers,
        ledger=ledger,
        definitions=definitions_of(approvals or Approved()),
        executor=cast("Any", SimpleNamespace(execute=execute, process_of=lambda _: "")),
        system={
            "_lifecycle": contract,
            "cscc": ConfigurationChaincode(channels, lambda: ""),
            "qscc": QueryChaincode(channels),
        },
    )
    async with (
        LedgerReader(ledger._path) as reader,
        Orderer(ledger, configuration, OrdererOptions()) as orderer,
    ):
        channel = channels[ledger.channel] = Channel(
            id=ledger.channel,
            ledger=ledger,
            reader=reader,
            members=cast(
                "Any", SimpleNamespace(configuration=configuration, peers=peers)
            ),
            endorser=endorser,
            orderer=orderer,
            caller=Caller(ledger.channel, endorser, orderer),
        )
        yield channel


def peer_of(
    mspid: str, msp: Any, channels: Mapping[str, Channel], window_s: float = 900
) -> Peer:
    """Return the peer of an organisation with this MSP."""
    organization = SimpleNamespace(msp=msp)
    known = {mspid: organization}
    organizations = cast("Any", SimpleNamespace(find=known.get))
    return Peer(mspid, channels, organizations, window_s)


async def ask(
    peer: Peer, signed: SignedProposal
) -> proposal_response_pb2.ProposalResponse:
    """Return the peer's answer. Raises: Refusal."""
    response = await peer.process_proposal(signed.SerializeToString())
    return proposal_response_pb2.ProposalResponse.FromString(response)


async def call(
    peer: Peer, signer: SigningIdentity, channel: str, name: str, *args: bytes | str
) -> proposal_response_pb2.ProposalResponse:
    """Propose a call as a client does; return the answer. Raises: Refusal."""
    raw = [arg.encode() if isinstance(arg, str) else arg for arg in args]
    return await ask(peer, new_proposal(channel, name, raw, signer))


class World:
    """Two organisations; the first one is a member of the channel."""

    def __init__(self, org: Organization, other: Organization, channel: Any) -> None:
        self.org, self.other, self.channel = org, other, channel
        self.channels: dict[str, Any] = {CHANNEL: channel}
        self.user, self.admin = org.user("User1"), org.admin
        self.peer, self.second = (
            peer_of(one.mspid, one.msp, self.channels) for one in (org, other)
        )

    @classmethod
    @asynccontextmanager
    async def opened(
        cls, folder: Path, org: Organization, other: Organization
    ) -> AsyncIterator[Self]:
        """Give a world with a new ledger in `folder`."""
        ledger = Ledger(
            folder / "ledger.db",
            CHANNEL,
            org.orderer,
            lambda: genesis_envelope(CHANNEL, org.msp, OrdererOptions()),
        )
        peers = {org.mspid: org.peer}
        async with ledger, channel_of(ledger, peers, {}) as channel:
            yield cls(org, other, channel)

    async def let_second_join(self) -> None:
        """Make the second organisation a member of the channel."""
        config = self.channel.members.configuration.config
        update = with_organization(CHANNEL, config, self.other.msp, [self.admin])
        await self.channel.orderer.submit(update)
        self.channel.members.peers[self.other.mspid] = self.other.peer

    async def define(self) -> None:
        """Commit the definition of `basic`."""
        definition = Definition(name="basic", sequence=1, version="1.0")
        raw = definition.SerializeToString()
        for function in (
            b"ApproveChaincodeDefinitionForMyOrg",
            b"CommitChaincodeDefinition",
        ):
            answer = await self.channel.caller.invoke(
                "_lifecycle", [function, raw], signer=self.admin
            )
            assert (answer.status, answer.code) == (200, 0), answer.message

    async def call(self, *args: Any, channel: str = CHANNEL, signer: Any = None) -> Any:
        name, *rest = args
        return await call(self.peer, signer or self.user, channel, name, *rest)

    async def qscc(self, *args: Any, **more: Any) -> Any:
        return (await self.call("qscc", *args, **more)).response

    async def cscc(self, *args: Any, **more: Any) -> Any:
        return (await self.call("cscc", *args, **more)).response
