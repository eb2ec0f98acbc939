"""The gateways of two organisations at one node, and a contract that is a function."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from fabric_protos.common import common_pb2
from fabric_protos.gateway import gateway_pb2 as pb
from fabric_protos.msp.identities_pb2 import SerializedIdentity
from fabric_protos.peer import chaincode_event_pb2, chaincode_shim_pb2, policy_pb2
from fabric_protos.peer.collection_pb2 import CollectionConfigPackage
from fabric_protos.peer.proposal_response_pb2 import Response

from chaindock.endorser.caller import DefinitionWriter
from chaindock.errors import LaunchFailed, LedgerError
from chaindock.identity.policies import parse_policy
from chaindock.ids import Ccid
from chaindock.lifecycle.definitions import Definition
from support.gateways.client import Ended
from support.gateways.node import Front, endorse_request
from support.gateways.recorded import envelope_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from support.gateways.client import Client
    from support.peers import World

CHANNEL = "mychannel"
_CCID = Ccid("basic_1.0:" + "a" * 64)


class Contract:
    """Functions in place of a chaincode process."""

    def __init__(self) -> None:
        self.started, self.left = asyncio.Event(), asyncio.Event()

    async def execute(self, _ccid: Any, invocation: Any, _mspid: Any) -> Any:
        function, *args = (bytes(one).decode() for one in invocation.input.args)
        event, said = None, Response(status=200, payload=b"done")
        if function == "hang":
            self.started.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.left.set()
        elif function == "fail":
            raise LaunchFailed("could not launch chaincode basic: no", ccid=_CCID)
        elif function == "put":
            invocation.simulator.put_state(invocation.namespace, args[0], b"v")
            event = chaincode_event_pb2.ChaincodeEvent(event_name=args[0])
        elif function == "hide":
            place = invocation.namespace, args[0]
            invocation.simulator.put_private(*place, "key", b"secret")
        else:
            assert function == "reveal"
            place, stored = (invocation.namespace, args[0]), invocation.require(args[0])
            try:
                value = invocation.simulator.get_private(*place, "key", stored=stored)
                said.payload = value or b""
            except LedgerError as error:
                said = Response(status=500, message=error.message)
        invocation.simulator.budget.give_back()
        return chaincode_shim_pb2.ChaincodeMessage(
            type=chaincode_shim_pb2.ChaincodeMessage.COMPLETED,
            payload=said.SerializeToString(),
            chaincode_event=event,
        )


class Gateways:
    """The servers of both organisations; the second one may have joined."""

    def __init__(self, world: World, front: Front, second: Client) -> None:
        self.world, self.front, self.second = world, front, second
        self.first, self.user = front.client, world.user
        self.contract = Contract()
        world.channel.endorser.executor = cast(
            "Any",
            SimpleNamespace(execute=self.contract.execute, process_of=lambda _: ""),
        )

    async def define(
        self, policy: str, name: str = "basic", **collections: str
    ) -> None:
        """Define a chaincode with a policy, and collections with their members."""
        package = CollectionConfigPackage()
        for collection, members in collections.items():
            config = package.config.add().static_collection_config
            config.name, config.maximum_peer_count = collection, 1
            rule = parse_policy(members)
            config.member_orgs_policy.signature_policy.CopyFrom(rule)
        parameter = policy_pb2.ApplicationPolicy(signature_policy=parse_policy(policy))
        channel = self.world.channel
        admins = [self.world.admin]
        if len(channel.members.peers) > 1:
            admins.append(self.world.other.admin)
        writer = DefinitionWriter(channel.caller, channel.ledger, lambda: admins)
        definition = Definition(
            name=name,
            sequence=1,
            version="1.0",
            validation_parameter=parameter.SerializeToString(),
            collections=package,
        )
        await writer.commit(definition, _CCID)

    async def endorse(self, *args: bytes, name: str = "basic", **how: Any) -> Any:
        """Return the MSP ids of those that endorsed, or how the call ended."""
        request = endorse_request(self.user, name, *args, **how)
        found = await self.first.raw("Endorse", request.SerializeToString())
        if isinstance(found, Ended):
            return found
        _, endorsers = envelope_of(found)
        return [SerializedIdentity.FromString(one).mspid for one in endorsers]

    async def prepared(self, *args: bytes) -> tuple[str, Any]:
        """Return the id of a new transaction, and the request that submits it."""
        answer = await self.first.call(
            "Endorse", endorse_request(self.user, "basic", *args)
        )
        envelope = answer.prepared_transaction
        envelope.signature = self.user.sign(envelope.payload)
        payload = common_pb2.Payload.FromString(envelope.payload)
        header = common_pb2.ChannelHeader.FromString(payload.header.channel_header)
        request = pb.SubmitRequest(channel_id=CHANNEL, prepared_transaction=envelope)
        return header.tx_id, request


@asynccontextmanager
async def gateways(world: World, **options: Any) -> AsyncIterator[Gateways]:
    async with Front(world.org, world.channels, **options) as front:
        await front.listener.serve(world.other)
        second = await front.connect(world.other)
        yield Gateways(world, front, second)
