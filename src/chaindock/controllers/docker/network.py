"""How a container reaches the node, and what else it can reach."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from chaindock.aio import finish
from chaindock.controllers.docker.body import idle_body
from chaindock.controllers.docker.bridges import (
    HOST,
    Bridge,
    Bridges,
    addresses,
    bridges_filtered,
    find_name,
    interface_of,
    try_address,
)
from chaindock.controllers.docker.firewall import FirewallRule
from chaindock.controllers.docker.isolation import is_rootless
from chaindock.errors import (
    EngineError,
    ImageNotFound,
    NameUnresolved,
    NetworkMissing,
    NodeUnreachable,
    NotFound,
)
from chaindock.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chaindock.container.contracts import CallbackListener, NodeLabels
    from chaindock.controllers.docker.engine import Engine
    from chaindock.controllers.docker.firewall import HostFirewall
    from chaindock.controllers.docker.options import SandboxOptions
    from chaindock.errors import LaunchFailed


_log = get_logger("docker.network")
_LOOPBACK = "127.0.0.1"
_HOST_IS_HERE = f"{HOST}:host-gateway"


@dataclass(frozen=True)
class Attachment:
    """How one container is connected.

    Args:
        network: its NetworkMode.
        peer: host:port of the node for the container; "" = the node dials it.
        isolation: what the container can reach, for people.
        weaker: what is open that should not be, a phrase for each.
        publishes: the node dials a published port, not the container's own address.
        neighbours: other chaincode of the node may reach the container.
        open_to_users: why every user of this machine can connect to the container;
            "" = only the node's user can.
    """

    network: str
    peer: str
    isolation: str
    dns: tuple[str, ...] = ()
    extra_hosts: tuple[str, ...] = ()
    publishes: bool = False
    weaker: tuple[str, ...] = ()
    neighbours: bool = False
    open_to_users: str = ""


@dataclass(frozen=True)
class _Route:
    """A route from a container to the node.

    Args:
        listen_on: the address of this machine that the node listens on.
        dial: the name or address of the node in the container.
        internal: the network leads to no other machine.
        separate: containers of the network do not reach each other.
        interface: of `listen_on`; "" = not on this machine.
        through_host: the engine's networks end on another machine.
    """

    network: str
    listen_on: str
    dial: str
    internal: bool
    separate: bool = False
    interface: str = ""
    through_host: bool = False
    rootless: bool = False

    def isolation(self, open_because: str) -> str:
        if not open_because:
            return "internal network: it reaches the node's listener and nothing else"
        if self.internal:
            return "internal network: no route to other machines"
        return "ordinary network: other machines are reachable"

    def has_neighbours(self, open_because: str) -> bool:
        closed = not open_because and bridges_filtered()
        return not (self.separate or closed)

    def weaknesses(self, open_because: str, open_to_users: str) -> Iterator[str]:
        if open_because and not self.internal:
            yield f"it reaches other machines: {open_because}"
        if self.through_host:
            yield "it reaches all services of this machine, also those on 127.0.0.1"
        elif open_because:
            yield (
                "it reaches services of this machine that listen on all addresses or on "
                f"{self.listen_on}: {open_because}"
            )
        if self.has_neighbours(open_because):
            yield "it reaches other chaincode of this node"
        if open_to_users:
            yield f"every user of this machine can connect to it: {open_to_users}"


class Networks:
    """The networks of one node, made when the first container needs them.

    The first of these routes that exists on this machine is used:

    1. an internal network, which leads to no other machine; the node listens on its
       gateway address, which this machine has
    2. the same, where that address exists only while a container is on the network: an
       idle container of ours (the anchor) keeps the address
    3. for an engine elsewhere (in a virtual machine): an ordinary network and the
       engine's name for this machine, tried from inside before it is used

    With 1 and 2 containers could still reach services of this machine through the
    gateway; firewall.py closes that where this process has the rights.
    """

    def __init__(
        self,
        engine: Engine,
        node: NodeLabels,
        sandbox: SandboxOptions,
        firewall: HostFirewall,
    ) -> None:
        self._engine, self._node, self._sandbox = engine, node, sandbox
        self._bridges = Bridges(engine, node)
        self._firewall, self._port, self._warned = firewall, 0, ""
        self._route: _Route | None = None
        self._lock = asyncio.Lock()

    async def attach(
        self, listener: CallbackListener, image: str, *, calls_back: bool
    ) -> Attachment:
        """Return how a container is connected; listen if it calls back.

        Containers of our own that this takes are made of `image`.

        Raises: StartFailed when there is no way (NameUnresolved, NodeUnreachable);
            EngineError.
        """
        async with self._lock:
            if self._route is None:
                self._route = await self._choose(listener, image)
            route, peer = self._route, ""
            if calls_back:
                address = await listener.address_on(route.listen_on, route.dial)
                host, _, port = address.rpartition(":")
                if host.strip("[]") == route.listen_on:  # no other is advertised
                    host = f"[{route.dial}]" if ":" in route.dial else route.dial
                peer, self._port = f"{host}:{port}", int(port)
            open_because = await self._close(route)
            open_to_users = open_because or self._firewall.open_to_users
        weaker = route.weaknesses(open_because, "" if calls_back else open_to_users)
        return Attachment(
            network=route.network,
            peer=peer,
            isolation=route.isolation(open_because),
            # Old engines resolve names for internal networks from outside of them.
            dns=(_LOOPBACK,) if route.internal or not open_because else (),
            extra_hosts=(_HOST_IS_HERE,) if route.through_host else (),
            publishes=route.through_host,
            weaker=tuple(weaker) if self._sandbox.internal else (),
            neighbours=route.has_neighbours(open_because),
            open_to_users=open_to_users,
        )

    async def _close(self, route: _Route) -> str:
        """Put firewall rules for a network in force; return why not, "" = in force.

        Done before each start: other programs change firewall rules too.
        """
        if not self._sandbox.internal:
            return "chaindock.sandbox.internal is false"
        if route.rootless:
            return "the engine is rootless, its networks end in a namespace of its own"
        if route.through_host:
            return "the engine is on another machine, or in a virtual one"
        if not route.interface:
            return f"no interface of this machine has the address {route.listen_on}"
        rule = FirewallRule(route.interface, route.listen_on, self._port or None)
        why = await self._firewall.enforce(rule)
        users = "" if why else self._firewall.open_to_users
        if (why or users) not in {"", self._warned}:
            _log.warning(
                "chaincode reaches services of this machine"
                if why
                else "other users of this machine can connect to chaincode that serves",
                through=route.listen_on,
                reason=why or users,
            )
        self._warned = why or users
        return why

    async def join(self, container: str, network: str) -> None:
        """Put a container on one more network, which a user named.

        Raises: NetworkMissing; EngineError.
        """
        try:
            # Docker tells only at the start that there is no such network.
            await self._engine.inspect_network(network)
            await self._engine.connect_network(network, container)
        except NotFound as error:
            raise NetworkMissing(
                f"container {container!r} cannot join network {network!r}: the engine at "
                f"{self._engine.address} has none of that name",
                hint="make it (docker network create), or correct "
                "chaindock.chaincodes.*.network",
                network=network,
            ) from error

    async def lost(self) -> bool:
        """Whether somebody removed the network; the next `attach` makes it again then."""
        if self._route is None:
            return False
        try:
            await self._engine.inspect_network(self._route.network)
        except NotFound:
            self._route = None
            return True
        return False

    # --- choosing ------------------------------------------------------------------

    async def _choose(self, listener: CallbackListener, image: str) -> _Route:
        net = None
        for internal in (True, False) if self._sandbox.internal else (False,):
            net = await self._bridges.get(internal=internal)
            if _is_here(net) or await self._add_anchor(net, image):
                return _Route(
                    network=net.name,
                    listen_on=net.gateway,
                    dial=net.gateway,
                    internal=internal,
                    separate=net.separate and bridges_filtered(),
                    interface=interface_of(net.gateway),
                )
        assert net is not None  # noqa: S101  # one kind at least was looked at
        info = await self._engine.info()
        route = _Route(
            network=net.name,
            listen_on=_LOOPBACK,
            dial=HOST,
            internal=False,
            separate=net.separate and info.get("BridgeNfIptables") is True,
            through_host=True,
            rootless=is_rootless(info),
        )
        address = await listener.address_on(route.listen_on)
        port = address.rpartition(":")[2]
        body = self._probe_body(route, image)
        return replace(route, dial=await find_name(self._engine, body, port))

    async def _add_anchor(self, net: Bridge, image: str) -> bool:
        """Put an idle container on the network; return whether its address exists now.

        Raises: an EngineError that is retryable, which must not decide what containers
            reach; ImageNotFound.
        """
        body = idle_body(self._sandbox, self._node, net.name, image, "anchor")
        engine, anchor, here = self._engine, "", False
        try:
            anchor = await finish(
                engine.create_container(None, body), engine.remove_container
            )
            await engine.start_container(anchor)
            here = _is_here(net)
        except (EngineError, NotFound) as error:
            if error.retryable or isinstance(error, ImageNotFound):
                raise
            _log.info("anchor container not started", reason=error.message)
        finally:
            if anchor and not here:
                await finish(engine.remove_container(anchor))
        return here

    async def probe(self, image: str) -> LaunchFailed | None:
        """Return what keeps containers from the address of the node; None = nothing.

        Raises: EngineError; NotFound when the network is gone.
        """
        route = self._route
        if route is None or not self._port:
            return None
        body = self._probe_body(route, image)
        try:
            await try_address(self._engine, body, route.dial, str(self._port))
        except (NameUnresolved, NodeUnreachable) as error:
            return error
        return None

    def _probe_body(self, route: _Route, image: str) -> dict[str, Any]:
        body = idle_body(self._sandbox, self._node, route.network, image, "probe")
        if route.through_host:
            body["HostConfig"]["ExtraHosts"].append(_HOST_IS_HERE)
        return body


def _is_here(net: Bridge) -> bool:
    """Whether the gateway of the network is an address of this very machine."""
    return net.gateway in addresses() and net.gateway not in net.known_before
