"""The channels of a node; each is put together, entered and left as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Self

from chaindock.endorser import acl
from chaindock.endorser.caller import Caller, Clock, DefinitionWriter
from chaindock.endorser.channel import Channel
from chaindock.endorser.configuration import Configuration
from chaindock.endorser.cscc import ConfigurationChaincode
from chaindock.endorser.endorser import Endorser
from chaindock.endorser.genesis import genesis_envelope
from chaindock.endorser.members import Members
from chaindock.endorser.orderer import Orderer
from chaindock.endorser.qscc import QueryChaincode
from chaindock.errors import NotFound
from chaindock.gateway.listener import configured
from chaindock.ids import require_channel
from chaindock.ledger.ledger import Ledger
from chaindock.ledger.reader import LedgerReader
from chaindock.lifecycle.contract import LifecycleContract
from chaindock.lifecycle.definitions import Definitions
from chaindock.lifecycle.deployments import Deployments
from chaindock.lifecycle.records import NAMESPACE
from chaindock.node.controls import Controls
from chaindock.node.explorer import Explorer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from chaindock.chaincode.support import ChaincodeSupport
    from chaindock.config.sections import Config
    from chaindock.identity.organization import Organizations
    from chaindock.ids import ChannelId
    from chaindock.lifecycle.deploy import Deployer
    from chaindock.lifecycle.fleet import Fleet
    from chaindock.lifecycle.installation import Installation
    from chaindock.node.home import Home


@dataclass(kw_only=True, eq=False)
class NodeChannel(Channel):
    """A channel, and what people look at and change in it."""

    deployer: Deployer
    explorer: Explorer
    controls: Controls


class Channels(Mapping[str, NodeChannel]):
    """The open channels by name, the first one first; an async context manager.

    Entering opens them, and raises what `Ledger` raises.

    Args:
        fleet: gets to know what each channel runs.
        installation: answers calls about packages.
        deployer: makes a `Deployer`, given what is of the channel.
        executor: runs chaincode for every channel.
        concurrency: most proposals at once; 0 = no limit.
    """

    def __init__(
        self,
        config: Config,
        home: Home,
        organizations: Organizations,
        *,
        fleet: Fleet,
        installation: Installation,
        deployer: Callable[..., Deployer],
        executor: ChaincodeSupport,
        concurrency: int,
    ) -> None:
        self._config, self._home = config, home
        self._organizations = organizations
        self._fleet, self._deployer, self._executor = fleet, deployer, executor
        self._installation, self._concurrency = installation, concurrency
        self._clock = Clock()
        self._open: dict[str, NodeChannel] = {}
        self.orderer = ""
        """The address at which clients reach the orderer, host:port."""
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            name = require_channel(self._config.node.channel)
            self._open[name] = await stack.enter_async_context(self._opened(name))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def __getitem__(self, name: str) -> NodeChannel:
        return self._open[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._open)

    def __len__(self) -> int:
        return len(self._open)

    def require(self, name: str | None = None) -> NodeChannel:
        """Return a channel; None = the first one. Raises: NotFound."""
        found = self._open.get(name or next(iter(self._open)))
        if found is None:
            raise NotFound(
                f"this node has no channel {name!r}; it has {', '.join(self._open)}",
                channel=name,
            )
        return found

    @asynccontextmanager
    async def _opened(self, name: ChannelId) -> AsyncIterator[NodeChannel]:
        """Open the ledger of a channel, made on first use, and all that works on it."""
        config, first = self._config, self._organizations.first
        path = self._home.ledgers / f"{name}.db"
        told = config.orderer, configured(config.gateway)
        genesis = partial(genesis_envelope, name, first.msp, *told)
        marker = self._home.organizations / f"{name}.ledger"
        async with AsyncExitStack() as stack:
            ledger = await stack.enter_async_context(
                Ledger(
                    path,
                    name,
                    first.orderer,
                    genesis,
                    marker=marker,
                    strict=config.ledger.strict,
                )
            )
            reader = await stack.enter_async_context(LedgerReader(path))
            members = Members(name, self._organizations, Configuration.of(ledger))
            explorer = Explorer(ledger, reader, members.configuration)
            deployments = Deployments(ledger, lambda: members.peers, self._fleet)
            await deployments.load()
            stack.callback(self._fleet.channels.pop, name)
            endorser = self._endorser(members, deployments, ledger)
            orderer = await stack.enter_async_context(
                Orderer(ledger, members.configuration, config.orderer)
            )
            caller = Caller(name, endorser, orderer, explorer.reasons, self._clock)
            writer = DefinitionWriter(caller, ledger, members.admins)
            made = self._deployer(
                deployments, writer, lambda: members.configuration.peers
            )
            deployer = await stack.enter_async_context(made)
            ledger.watchers.append(deployer.committed)
            stack.callback(ledger.watchers.remove, deployer.committed)
            yield NodeChannel(
                id=name,
                ledger=ledger,
                reader=reader,
                members=members,
                endorser=endorser,
                orderer=orderer,
                caller=caller,
                deployer=deployer,
                explorer=explorer,
                controls=Controls(caller, first.admin),
            )

    def _endorser(
        self, members: Members, deployments: Deployments, ledger: Ledger
    ) -> Endorser:
        configuration = members.configuration
        lifecycle = LifecycleContract(
            ledger.channel,
            lambda: configuration.peers,
            self._installation,
            partial(acl.require, configuration),
        )
        return Endorser(
            configuration=configuration,
            peers=members.peers,
            ledger=ledger,
            definitions=Definitions(deployments),
            executor=self._executor,
            system={
                NAMESPACE: lifecycle,
                "cscc": ConfigurationChaincode(self, lambda: self.orderer),
                "qscc": QueryChaincode(self),
            },
            concurrency=self._concurrency,
            largest_bytes=self._config.orderer.absolute_max_bytes,
            others=self._endorser_of,
        )

    def _endorser_of(self, name: str) -> Endorser | None:
        channel = self._open.get(name)
        return None if channel is None else channel.endorser
