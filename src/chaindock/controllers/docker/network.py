"""The networks of a node at an engine: how a container reaches the node, and what else."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Container, Iterator
from dataclasses import dataclass, replace
from typing import Any

from chaindock.aio import finish
from chaindock.container.contracts import CallbackListener, NodeLabels
from chaindock.controllers.docker import names
from chaindock.controllers.docker.engine import Engine
from chaindock.controllers.docker.firewall import FirewallRule, HostFirewall
from chaindock.controllers.docker.options import SandboxOptions
from chaindock.controllers.docker.reach import (
    HOST,
    addresses,
    bridges_filtered,
    find_name,
    try_address,
)
from chaindock.controllers.docker.sandbox import Attachment, idle_body, is_rootless
from chaindock.errors import (
    EngineError,
    ImageNotFound,
    LaunchFailed,
    NetworkMissing,
    NotFound,
    StartFailed,
)
from chaindock.telemetry import get_logger

_log = get_logger("docker.network")
_LOOPBACK, _DEFAULT, BUILDS = "127.0.0.1", "default", "-build"
_HOST_IS_HERE = f"{HOST}:host-gateway"
# Interfaces are named by us: an engine gives a name that is free again to the network of
# somebody else, and would meet the firewall rules that a killed node left.
_BRIDGE_NAME = "com.docker.network.bridge.name"
_MTU = "com.docker.network.driver.mtu"
_HINT = "if no addresses are left, remove unused networks: docker network prune"
_NO_NEIGHBOURS = {"com.docker.network.bridge.enable_icc": "false"}


@dataclass(frozen=True)
class Route:
    """A network of the node, as a route to it."""

    network: str
    gateway: str
    """Its address on the engine's machine."""
    internal: bool
    separate: bool
    """Its containers do not reach each other."""
    known_before: Container[str] = ()
    """Addresses that this machine had before the network was made; empty when the
    network is older than this process."""
    through: str = ""
    """How containers call this machine, if the network ends on another one."""
    rootless: bool = False
    interface: str = ""
    """That of the gateway; an engine may take it down between two containers."""

    @property
    def listen_on(self) -> str:
        """The address of this machine that the node listens on."""
        return _LOOPBACK if self.through else self.gateway

    def find_interface(self) -> str:
        """Return the interface of this very machine that has the gateway; "" = none."""
        here = addresses().get(self.gateway, "")
        return "" if self.gateway in self.known_before else here

    def isolation(self, open_because: str) -> str:
        """Return what a container reaches, for people; `open_because`: see `_close`."""
        if not open_because:
            return "internal network: it reaches the node's listener and nothing else"
        if self.internal:
            return "internal network: no route to other machines"
        return "ordinary network: other machines are reachable"

    def has_neighbours(self, open_because: str) -> bool:
        """Whether a container reaches others of the network."""
        return not (self.separate or (not open_because and bridges_filtered()))

    def weaknesses(self, open_because: str, open_to_users: str) -> Iterator[str]:
        """Yield what is open that should not be."""
        if open_because and not self.internal:
            yield f"it reaches other machines: {open_because}"
        if self.through:
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


async def get_network(
    engine: Engine, node: NodeLabels, kind: str = "", *, internal: bool
) -> Route:
    """Return the node's network of a kind, made if absent. Raises: StartFailed."""
    name = names.network_name(node) + kind
    before: Container[str] = ()
    try:
        found = await engine.inspect_network(name)
    except NotFound:
        before = addresses()
        await _create(engine, node, name, internal=internal)
        found = await engine.inspect_network(name)
    if (found.get("Labels") or {}).get(names.NODE) != node.node_id:
        raise StartFailed(
            f"network name {name!r} is taken by a network that is not ours",
            hint=f"remove it with: docker network rm {name}",
        )
    config = (found.get("IPAM") or {}).get("Config") or [{}]
    separate = (found.get("Options") or {}).items() >= _NO_NEIGHBOURS.items()
    gateway = str(config[0].get("Gateway", "")).partition("/")[0]
    return Route(name, gateway, internal, separate, before)


async def _create(
    engine: Engine, node: NodeLabels, name: str, *, internal: bool
) -> None:
    body = {
        "Name": name,
        "Driver": "bridge",
        "Internal": internal,
        "CheckDuplicate": True,
        "Labels": {names.NODE: node.node_id, names.ROLE: "network"},
    }
    # The name of an interface has 15 characters at most.
    text = f"{node.node_id}\0{engine.address}\0{name}".encode()
    ours = {_BRIDGE_NAME: f"cd-{hashlib.sha256(text).hexdigest()[:12]}"}
    if not internal:  # packets must fit through what its default bridge leads to
        with contextlib.suppress(NotFound):
            usual = (await engine.inspect_network("bridge")).get("Options") or {}
            ours |= {_MTU: usual[_MTU]} if _MTU in usual else {}
    for options in ({**ours, **_NO_NEIGHBOURS}, ours, {}):
        try:
            await finish(engine.create_network({**body, "Options": options}))
        except (EngineError, NotFound) as error:  # NotFound: no addresses are left
            if error.facts.get("status") == 409:  # somebody made it just now
                return
            if error.retryable:
                raise
            if not options:
                raise EngineError(error.message, hint=_HINT, **error.facts) from error
            # Not every engine can keep the containers of a network apart.
            _log.info("network made without options", reason=error.message)
        else:
            return


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
        self._firewall, self._port, self._warned = firewall, 0, ""
        self._route: Route | None = None
        self._default_for_builds = False
        self._lock = asyncio.Lock()

    async def attach(
        self, listener: CallbackListener, image: str, *, calls_back: bool
    ) -> Attachment:
        """Return how a container is connected; listen if it calls back.

        Containers of our own that this takes are made of `image`.

        Raises: StartFailed when there is no way (NameUnresolved, NodeUnreachable).
        """
        async with self._lock:
            if self._route is None:
                self._route = await self._choose(listener, image)
            route, peer = self._route, ""
            if calls_back:
                dial = route.through or route.gateway
                address = await listener.address_on(route.listen_on, dial)
                host, _, port = address.rpartition(":")
                if host.strip("[]") == route.listen_on:  # no other is advertised
                    host = f"[{dial}]" if ":" in dial else dial
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
            extra_hosts=(_HOST_IS_HERE,) if route.through else (),
            publishes=bool(route.through),
            weaker=tuple(weaker) if self._sandbox.internal else (),
            neighbours=route.has_neighbours(open_because),
            open_to_users=open_to_users,
        )

    async def _close(self, route: Route) -> str:
        """Put firewall rules for a network in force; return why not, "" = in force.

        Done before each start: other programs change firewall rules too.
        """
        if not self._sandbox.internal:
            return "chaindock.sandbox.internal is false"
        if route.rootless:
            return "the engine is rootless, its networks end in a namespace of its own"
        if route.through:
            return "the engine is on another machine, or in a virtual one"
        rule = FirewallRule(route.interface, route.gateway, self._port or None)
        why = await self._firewall.enforce(rule)
        said = why or self._firewall.open_to_users
        if said and said != self._warned:
            _log.warning(
                "chaincode reaches services of this machine"
                if why
                else "other users of this machine can connect to chaincode that serves",
                through=route.gateway,
                reason=said,
            )
        self._warned = said
        return why

    async def for_builds(self) -> str:
        """Return the network of builds: the node's own, or the engine's default bridge.

        The own one if it can be made and exists at once. One that comes with its first
        container, or on another machine, may have other name servers than the default.

        Raises: StartFailed when its name is taken; a retryable EngineError.
        """
        engine, route, why = self._engine, None, "its gateway is not on this machine"
        async with self._lock:
            if self._default_for_builds:
                return _DEFAULT
            try:
                route = await get_network(engine, self._node, BUILDS, internal=False)
                if route.find_interface():
                    return route.network
                await engine.remove_network(route.network)
            except (EngineError, NotFound) as error:
                if error.retryable and route is None:
                    raise
                why = error.message
            _log.info("builds use the engine's default bridge", reason=why)
            self._default_for_builds = True
            return _DEFAULT

    async def join(self, container: str, network: str) -> None:
        """Put a container on a network that a user named. Raises: NetworkMissing."""
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
        return self._route is None

    # --- choosing ------------------------------------------------------------------

    async def _choose(self, listener: CallbackListener, image: str) -> Route:
        for internal in dict.fromkeys((self._sandbox.internal, False)):
            kind = "" if internal else "-open"
            route = await get_network(self._engine, self._node, kind, internal=internal)
            if here := route.find_interface() or await self._add_anchor(route, image):
                separate = route.separate and bridges_filtered()
                return replace(route, separate=separate, interface=here)
        route = await get_network(self._engine, self._node, "-open", internal=False)
        info = await self._engine.info()
        separate = route.separate and info.get("BridgeNfIptables") is True
        rootless = is_rootless(info)
        route = replace(route, separate=separate, through=HOST, rootless=rootless)
        port = (await listener.address_on(route.listen_on)).rpartition(":")[2]
        body = self._probe_body(route, image)
        name = await find_name(self._engine, body, port, rootless=rootless)
        return replace(route, through=name)

    async def _add_anchor(self, route: Route, image: str) -> str:
        """Put an idle container on the network; return `find_interface` after that.

        A retryable error must not decide what containers reach: it is raised.
        """
        body = idle_body(self._sandbox, self._node, route.network, image, "anchor")
        engine, anchor, here = self._engine, "", ""
        try:
            anchor = await engine.create_container(None, body)
            await engine.start_container(anchor)
            here = route.find_interface()
        except (EngineError, NotFound) as error:
            if error.retryable or isinstance(error, ImageNotFound):
                raise
            _log.info("anchor container not started", reason=error.message)
        finally:
            if anchor and not here:
                await finish(engine.remove_container(anchor))
        return here

    async def probe(self, image: str) -> LaunchFailed | None:
        """Return what keeps containers from the node; None = nothing. Raises: NotFound."""
        route = self._route
        if route is None or not self._port:
            return None
        body, host = self._probe_body(route, image), route.through or route.gateway
        return await try_address(self._engine, body, host, str(self._port))

    def _probe_body(self, route: Route, image: str) -> dict[str, Any]:
        body = idle_body(self._sandbox, self._node, route.network, image, "probe")
        if route.through:
            body["HostConfig"]["ExtraHosts"].append(_HOST_IS_HERE)
        return body
