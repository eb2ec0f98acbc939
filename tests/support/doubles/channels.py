"""A node of which the channels are real; programs and files for clients are not."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from fabric_protos.peer import chaincode_shim_pb2 as shim
from fabric_protos.peer import proposal_response_pb2

from chaindock.config.sections import Config
from chaindock.container.attempt import Attempt
from chaindock.controllers.process.options import ProcessOptions
from chaindock.identity.organization import Organization, Organizations
from chaindock.lifecycle.deploy import Deployer
from chaindock.node.channels import Channels
from chaindock.node.facade import Node as Facade
from chaindock.node.home import Home
from support.doubles.deployments import Node

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from chaindock.node.channels import NodeChannel


class Contract:
    """Runs in place of every chaincode: put and get, when it is `open`."""

    def __init__(self) -> None:
        self.open, self.entered = asyncio.Event(), asyncio.Event()
        self.open.set()

    def process_of(self, _mspid: Any) -> str:
        return ""

    async def execute(self, _ccid: Any, invocation: Any, _mspid: Any) -> Any:
        self.entered.set()
        await self.open.wait()
        function, key, *rest = (bytes(one).decode() for one in invocation.input.args)
        at = invocation.namespace, key
        if function == "put":
            invocation.simulator.put_state(*at, rest[0].encode())
        payload = invocation.simulator.get_state(*at) or b""
        response = proposal_response_pb2.Response(status=200, payload=payload)
        return shim.ChaincodeMessage(
            type=shim.ChaincodeMessage.COMPLETED, payload=response.SerializeToString()
        )


class World:
    """A home, and a node of which all but the channels is in memory."""

    def __init__(self, root: Path) -> None:
        self.home = Home(root / "home")
        self.home.prepare()
        options = ProcessOptions(root / "runs", root / "cache")
        self.config = Config(home=self.home.root, process=options)
        folder = self.home.organizations
        first = Organization.open(folder, "Org1MSP", "org1.example.com")
        self.organizations = Organizations(folder, first)
        self.root, self.node = root, Node(root)
        self.contract = Contract()
        self.served: list[str] = []

    async def serve(self, organization: Organization) -> None:
        self.served.append(organization.mspid)

    def write(self) -> None:
        """Write no files for clients."""

    @asynccontextmanager
    async def up(self, concurrency: int = 0) -> AsyncIterator[Channels]:
        """Start a node, and stop it."""
        self.node = node = Node(self.root)
        deployer = partial(
            Deployer, packages=node.packages, custodian=node.custodian, attempts=Attempt
        )
        contract: Any = self.contract
        async with (
            node.custodian,
            node.packages,
            Channels(
                self.config,
                self.home,
                self.organizations,
                fleet=node.fleet,
                packages=node.packages,
                deployer=deployer,
                executor=contract,
                concurrency=concurrency,
            ) as channels,
        ):
            facade = object.__new__(Facade)
            facade.channels, facade.fleet = channels, node.fleet
            facade.custodian, facade.packages = node.custodian, node.packages
            clients: Any = self
            facade.clients = facade.connections = clients
            channels.followers.append(facade.follow)
            await node.packages.restore()
            for channel in channels.values():
                await channel.deployer.restore()
            yield channels
        node.targets.close()

    async def call(
        self, channel: NodeChannel, *args: str, name: str = "basic"
    ) -> bytes:
        signer = channel.members.get(None).user("User1")
        words = [one.encode() for one in args]
        answer = await channel.caller.invoke(name, words, signer=signer)
        assert answer.code == 0
        return answer.payload
