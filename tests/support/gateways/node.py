"""An endorsing node that client applications reach, over real connections."""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from fabric_protos.gateway import gateway_pb2 as pb

from chaindock.endorser.channel import Channel, Members
from chaindock.gateway import gateway
from chaindock.gateway.blocks import Feeds
from chaindock.gateway.listener import ClientListener
from chaindock.gateway.options import GatewayOptions
from chaindock.identity.organization import Organizations
from chaindock.ledger.reader import LedgerReader
from support.gateways.client import Client
from support.ledgers.proposals import new_proposal

if TYPE_CHECKING:
    from chaindock.endorser.caller import Caller
    from chaindock.endorser.endorser import Endorser
    from chaindock.endorser.orderer import Orderer
    from chaindock.identity.msp import SigningIdentity
    from chaindock.identity.organization import Organization
    from chaindock.ledger.ledger import Ledger

FREE = ("127.0.0.1", 0)


class Front:
    """The servers of a node; `client` is connected to that of the first organisation.

    Args:
        channels: by name.
        options: as for `GatewayOptions`.
    """

    def __init__(
        self, org: Organization, channels: dict[str, Channel], **options: Any
    ) -> None:
        self.org, self.channels = org, channels
        self.options = GatewayOptions(**{"listen": FREE, **options})
        self._stack = AsyncExitStack()
        self.listener: ClientListener
        self.client: Client

    async def __aenter__(self) -> Self:
        make = partial(gateway.service, self.channels, self.options, 30.0, Feeds())
        listener = ClientListener(self.options, [make])
        self.listener = await self._stack.enter_async_context(listener)
        await listener.serve(self.org)
        self.client = await self.connect(self.org)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def connect(self, org: Organization, **how: Any) -> Client:
        """Return a client of an organisation's peer, which is served."""
        address = self.listener.connection(org.mspid)["address"]
        assert address is not None
        ca = org.tls[0] if self.options.tls else None
        return await self._stack.enter_async_context(Client(address, ca, **how))

    @property
    def address(self) -> str:
        return str(self.listener.connection(self.org.mspid)["address"])


async def channel_of(
    stack: AsyncExitStack,
    org: Organization,
    ledger: Ledger,
    endorser: Endorser,
    orderer: Orderer,
    caller: Caller,
) -> Channel:
    """Return the parts of a channel as one; `endorser.configuration` is in force."""
    organizations = Organizations(org.path.parents[1], org)
    members = Members(ledger.channel, organizations, endorser.configuration)
    reader = await stack.enter_async_context(LedgerReader(ledger._path))
    return Channel(
        id=ledger.channel,
        ledger=ledger,
        reader=reader,
        members=members,
        endorser=endorser,
        orderer=orderer,
        caller=caller,
    )


def evaluate_request(
    client: SigningIdentity,
    name: str,
    *args: bytes,
    channel: str = "mychannel",
    targets: tuple[str, ...] = (),
    **fields: Any,
) -> pb.EvaluateRequest:
    signed = new_proposal(channel, name, args, client, **fields)
    return pb.EvaluateRequest(proposed_transaction=signed, target_organizations=targets)


def endorse_request(
    client: SigningIdentity,
    name: str,
    *args: bytes,
    channel: str = "mychannel",
    orgs: tuple[str, ...] = (),
    **fields: Any,
) -> pb.EndorseRequest:
    signed = new_proposal(channel, name, args, client, **fields)
    return pb.EndorseRequest(proposed_transaction=signed, endorsing_organizations=orgs)
