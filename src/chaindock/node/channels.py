"""The channels of a node; each is put together, entered and left as a whole."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from chaindock.aio import finish
from chaindock.endorser import acl
from chaindock.endorser.caller import Caller, Clock, DefinitionWriter
from chaindock.endorser.channel import Channel, Members
from chaindock.endorser.configuration import FOLLOWED, Configuration, require_followed
from chaindock.endorser.endorser import Endorser, Load
from chaindock.endorser.genesis import genesis_envelope
from chaindock.endorser.orderer import Orderer
from chaindock.endorser.system import ConfigurationChaincode, QueryChaincode
from chaindock.errors import AlreadyExists, ConfigInvalid, InvalidInput, NotFound
from chaindock.gateway.seat import configured
from chaindock.identity.organization import full_mspid
from chaindock.ids import require_channel
from chaindock.ledger.ledger import Ledger
from chaindock.ledger.reader import LedgerReader
from chaindock.lifecycle.contract import LifecycleContract
from chaindock.lifecycle.definitions import NAMESPACE
from chaindock.lifecycle.deployments import Deployments
from chaindock.node.controls import Controls
from chaindock.node.explorer import Explorer
from chaindock.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

    from chaindock.chaincode.support import ChaincodeSupport
    from chaindock.config.sections import Config
    from chaindock.identity.organization import Organization, Organizations
    from chaindock.ids import ChannelId
    from chaindock.lifecycle.deploy import Deployer
    from chaindock.lifecycle.deployments import Fleet
    from chaindock.lifecycle.packages import Packages
    from chaindock.node.home import Home

_log = get_logger("node")


@dataclass(kw_only=True, eq=False)
class NodeChannel(Channel):
    """A channel, and what people look at and change in it."""

    deployer: Deployer
    explorer: Explorer
    controls: Controls


class Channels(Mapping[str, NodeChannel]):
    """The open channels by name, the first one first; an async context manager.

    Entering opens those of the home, and raises what `Ledger` raises. The first one is
    that of the settings.

    `deployer` makes a `Deployer`, given what is of the channel. `concurrency`: most
    proposals at once, on all channels; 0 = no limit.
    """

    def __init__(
        self,
        config: Config,
        home: Home,
        organizations: Organizations,
        *,
        fleet: Fleet,
        packages: Packages,
        deployer: Callable[..., Deployer],
        executor: ChaincodeSupport,
        concurrency: int,
    ) -> None:
        self._config, self._home = config, home
        self.organizations = organizations
        self._fleet, self._packages = fleet, packages
        self._deployer, self._executor = deployer, executor
        self._concurrency = concurrency
        self._clock, self._load = Clock(), Load()
        self._changing = asyncio.Lock()
        self._open: dict[str, NodeChannel] = {}
        self.orderer = ""
        """The address at which clients reach the orderer, host:port."""
        self.followers: list[Callable[[], Awaitable[None]]] = []
        """Are called when there are other channels, or other members of one."""
        self._stacks: dict[str, AsyncExitStack] = {}

    async def __aenter__(self) -> Self:
        first = require_channel(self._config.node.channel)
        async with AsyncExitStack() as stack:
            stack.push_async_exit(self)
            others = await asyncio.to_thread(self._home.channels)
            for name in dict.fromkeys((first, *others)):
                await self._enter(name)
            stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        async with AsyncExitStack() as all_of_them:
            for stack in self._stacks.values():
                all_of_them.push_async_callback(stack.aclose)

    def __getitem__(self, name: str) -> NodeChannel:
        return self._open[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._open)

    def __len__(self) -> int:
        return len(self._open)

    @property
    def first(self) -> NodeChannel:
        """The channel that is meant when nobody names one."""
        return next(iter(self._open.values()))

    def require(self, name: str | None = None) -> NodeChannel:
        """Return a channel; None = the first one. Raises: NotFound."""
        found = self._open.get(name) if name else self.first
        if found is None:
            raise NotFound(
                f"this node has no channel {name!r}",
                hint="see them: chaindock channel ls",
                channel=name,
            )
        return found

    async def create(
        self, name: str, mspids: Sequence[str] = (), capability: str = FOLLOWED[-1]
    ) -> NodeChannel:
        """Make a channel of these organisations; none = those of the first channel.

        The node's first organisation orders, and is always a member. `capability`: of the
        application.

        Raises: InvalidInput: the name. Unsupported: the capability. AlreadyExists.
            NotFound: an organisation. StorageError: another file is in the place of the
            ledger. LedgerError. Nothing was made then.
        Cancelled: it is made all the same.
        """
        channel = require_channel(name)
        require_followed(capability)
        return await finish(self._create(channel, self._members(mspids), capability))

    async def _create(self, name: ChannelId, *founding: Any) -> NodeChannel:
        async with self._changing:
            if name in self._open:
                hint = "see them: chaindock channel ls"
                text = f"channel {name!r} exists already"
                raise AlreadyExists(text, hint=hint, channel=name)
            await asyncio.to_thread(self._home.require_no_ledger, name)
            await asyncio.to_thread(self._fleet.targets.forget, name)
            try:
                await self._enter(name, *founding)
            except BaseException:
                await asyncio.to_thread(self._home.remove_channel, name)
                raise
            _log.info("channel made", channel=name)
            await self._tell()
            return self._open[name]

    def _members(self, mspids: Sequence[str]) -> list[Organization]:
        known = {one.mspid: one for one in self.organizations.all()}
        wanted = [full_mspid(one, known) for one in mspids or self.first.members.peers]
        for mspid in wanted:
            if mspid not in known:
                raise NotFound(
                    f"organisation {mspid!r} is none of this node",
                    hint="see them: chaindock org ls",
                    mspid=mspid,
                )
        return [known[mspid] for mspid in wanted]

    async def remove(self, name: str) -> None:
        """Close a channel and remove its ledger; what was accepted is committed before.

        Raises: NotFound. InvalidInput: it is the first one. StorageError: the file stays
            until the next start.
        Cancelled: it is removed all the same.
        """
        await finish(self._remove(name))

    async def _remove(self, name: str) -> None:
        async with self._changing:
            channel = self.require(name)
            if channel is self.first:
                raise InvalidInput(
                    f"channel {name!r} is the node's first one and stays",
                    hint="begin it anew: chaindock down, then chaindock reset",
                    channel=name,
                )
            ran = {one.ccid for one in channel.deployer.deployments.all() if one.ccid}
            del self._open[name]
            await self._stacks.pop(name).aclose()
            try:  # first: after a crash the channel must not come back without the rest
                await asyncio.to_thread(self._home.remove_channel, channel.id)
            finally:
                await asyncio.to_thread(self._fleet.targets.forget, name)
                for ccid in ran:  # what another channel runs, too, goes on
                    await self._packages.retire(ccid, purge=True)
            _log.info("channel removed", channel=name)
            await self._tell()

    async def _tell(self) -> None:
        for follow in self.followers:
            await follow()

    async def _enter(self, name: ChannelId, *founding: Any) -> None:
        stack = AsyncExitStack()
        opened = self._opened(name, *founding)
        self._open[name] = await stack.enter_async_context(opened)
        self._stacks[name] = stack

    @asynccontextmanager
    async def _opened(
        self,
        name: ChannelId,
        founders: Sequence[Organization] = (),
        capability: str = FOLLOWED[-1],
    ) -> AsyncIterator[NodeChannel]:
        """Open the ledger of a channel, and all that works on it.

        It is made on first use, of the node's first organisation and `founders`.
        """
        config, first = self._config, self.organizations.first
        stream = config.stream
        strict = stream.strict and stream.state_database == "CouchDB"
        path, marker = self._home.ledger(name)
        address = self.orderer or configured(config.gateway)
        others = [one.msp for one in founders if one is not first]
        about = first.msp, config.orderer, address, others, capability
        genesis = partial(genesis_envelope, name, *about)
        async with AsyncExitStack() as stack:
            ledger = await stack.enter_async_context(
                Ledger(path, name, first.orderer, genesis, marker=marker, strict=strict)
            )
            reader = await stack.enter_async_context(LedgerReader(path))
            configuration = Configuration.of(ledger)
            _require_own(first, configuration)
            members = Members(name, self.organizations, configuration)
            explorer = Explorer(ledger, reader, members)
            deployments = Deployments(ledger, lambda: members.peers, self._fleet)
            await deployments.load()
            stack.callback(self._fleet.channels.pop, name)
            endorser = self._endorser(members, deployments, explorer)
            orderer = await stack.enter_async_context(
                Orderer(ledger, members.configuration, config.orderer)
            )
            orderer.updated = self._tell
            caller = Caller(name, endorser, orderer, explorer.reasons, self._clock)
            writer = DefinitionWriter(caller, ledger, members.admins)
            made = self._deployer(
                deployments, writer.commit, lambda: members.configuration.peers
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
                controls=Controls(caller, members.admins),
            )

    def _endorser(
        self, members: Members, deployments: Deployments, explorer: Explorer
    ) -> Endorser:
        configuration, ledger = members.configuration, deployments.ledger
        lifecycle = LifecycleContract(
            ledger.channel,
            lambda: configuration.peers,
            self._packages,
            partial(acl.require, configuration),
        )
        return Endorser(
            configuration=configuration,
            peers=members.peers,
            ledger=ledger,
            definitions=deployments,
            remember=explorer.remember,
            executor=self._executor,
            system={
                NAMESPACE: lifecycle,
                "cscc": ConfigurationChaincode(self, lambda: self.orderer),
                "qscc": QueryChaincode(self),
            },
            concurrency=self._concurrency,
            load=self._load,
            options=self._config.orderer,
            others=lambda name: (
                self._open[name].endorser if name in self._open else None
            ),
        )


def _require_own(first: Organization, configuration: Configuration) -> None:
    """Refuse a channel on which nobody here could sign a call. Raises: ConfigInvalid."""
    found = configuration.msps.mspids
    told = f"no such organisation; it has {', '.join(found)}"
    key, value = "peer.localMspId", first.mspid
    if value in found:
        if any(first.ca_pem in one for one in configuration.definitions):
            return
        key, value = "chaindock.domain", first.domain
        told = f"another CA for {first.mspid} than the one of this domain"
    raise ConfigInvalid(
        f"setting {key!r} is {value!r}, but channel {configuration.channel!r} of this "
        f"home has {told}",
        hint="give the setting the value of the first start, or use another --home",
        key=key,
    )
