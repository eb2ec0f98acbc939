"""How a container reaches the node, and what else it can reach.

Owns:    the choice among the ways to reach the node, and what is told of it.
Not:     listening (the CallbackListener does), the containers themselves, making the
         networks (bridges.py), trying ways out (reach.py), the rules that shut the
         network's end on this machine (filter.py).
Entry:   Networks.attach
Holds:   a way is used only when it was seen to exist on this machine; the tightest one
         that does is taken, and its isolation is told.
Source:  launch.md §9 W57; needs.md row 13; architecture.md, "Container sandbox"

The ways, tightest first:
    1. a network of ours that leads nowhere ("internal"); the node listens on its gateway
       address, which this machine has
    2. the same, where that address exists only while a container is on the network: an
       idle container of ours holds it up
    3. an engine that runs elsewhere (in a virtual machine): an ordinary network and the
       engine's name for this machine; tried out from inside before it is used

With 1 and 2 the services of this machine could be reached through the gateway too; the
host's packet filter closes that where this process may use it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from chaindock.aio import finish
from chaindock.controllers.docker.attachment import Attachment
from chaindock.controllers.docker.body import idle_body
from chaindock.controllers.docker.bridges import Bridge, Bridges
from chaindock.controllers.docker.filter import Door
from chaindock.controllers.docker.host import (
    addresses,
    bridges_filtered,
    interface_of,
)
from chaindock.controllers.docker.reach import HOST, find_name, try_address
from chaindock.controllers.docker.walls import is_rootless
from chaindock.errors import (
    EngineError,
    ImageNotFound,
    NameUnresolved,
    NodeUnreachable,
    NotFound,
)
from chaindock.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chaindock.container.contracts import CallbackListener, NodeLabels
    from chaindock.controllers.docker.engine import Engine
    from chaindock.controllers.docker.filter import HostFilter
    from chaindock.controllers.docker.options import SandboxOptions
    from chaindock.errors import LaunchFailed

_log = get_logger("docker.network")
_LOOPBACK = "127.0.0.1"
_HOST_IS_HERE = f"{HOST}:host-gateway"
_TOLD = {
    True: "internal network: it reaches the node's listener and nothing else",
    False: "internal network: no way to other machines",
}
_ORDINARY = "ordinary network: it can reach others too"


@dataclass(frozen=True)
class _Way:
    network: str
    listen_on: str
    dial: str
    internal: bool
    separate: bool = False
    interface: str = ""
    through_host: bool = False
    rootless: bool = False


class Networks:
    """The networks of one node, made when the first container needs them."""

    def __init__(
        self,
        engine: Engine,
        node: NodeLabels,
        sandbox: SandboxOptions,
        host: HostFilter,
    ) -> None:
        self._engine, self._node, self._sandbox = engine, node, sandbox
        self._bridges = Bridges(engine, node)
        self._host, self._port, self._said = host, 0, ""
        self._way: _Way | None = None
        self._lock = asyncio.Lock()
        self._anchors: list[str] = []

    async def attach(
        self, listener: CallbackListener, image: str, *, calls_back: bool
    ) -> Attachment:
        """Return how a container is connected; listen if it calls back.

        Containers of our own that this takes are made of `image`.

        Raises: StartFailed when there is no way (NameUnresolved, NodeUnreachable);
            EngineError.
        """
        async with self._lock:
            if self._way is None:
                self._way = await self._choose(listener, image)
            way, peer = self._way, ""
            if calls_back:
                address = await listener.address_on(way.listen_on)
                self._port = int(address.rpartition(":")[2])
                peer = f"{_bracketed(way.dial)}:{self._port}"
            open_because = await self._shut(way)
            lets_in = open_because or self._host.lets_in
        return Attachment(
            network=way.network,
            peer=peer,
            isolation=_told(way, open_because),
            # Old engines resolve names for internal networks from outside of them.
            dns=(_LOOPBACK,) if way.internal or not open_because else (),
            extra_hosts=(_HOST_IS_HERE,) if way.through_host else (),
            publishes=way.through_host,
            weaker=tuple(
                self._weaker(way, open_because, "" if calls_back else lets_in)
            ),
            neighbours=_has_neighbours(way, open_because),
            lets_in=lets_in,
        )

    async def _shut(self, way: _Way) -> str:
        """Shut this machine's end of a network; say why it is open, "" when it is not.

        Looked at before each start: other programs set rules too, and flush them.
        """
        if not self._sandbox.internal:
            return "chaindock.sandbox.internal is false"
        if way.rootless:
            return "the engine is rootless, its networks end in a namespace of its own"
        if way.through_host:
            return "the engine is on another machine, or in a virtual one"
        if not way.interface:
            return f"no interface of this machine has the address {way.listen_on}"
        door = Door(way.interface, way.listen_on, self._port or None)
        why = await self._host.shut(door)
        if why and why != self._said:
            _log.warning(
                "chaincode reaches services of this machine",
                through=way.listen_on,
                reason=why,
            )
        mixes = "" if why else self._host.lets_in
        if mixes and mixes != self._said:
            _log.warning(
                "other users of this machine can connect to chaincode that is dialled",
                through=way.listen_on,
                reason=mixes,
            )
        self._said = why or mixes
        return why

    def _weaker(self, way: _Way, open_because: str, lets_in: str) -> Iterator[str]:
        if not self._sandbox.internal:
            return  # it was asked for
        if open_because and not way.internal:
            yield f"it reaches other machines: {open_because}"
        if way.through_host:
            yield "it reaches services of this machine, those on 127.0.0.1 alone too"
        elif open_because:
            yield (
                "it reaches services of this machine that listen on all addresses or on "
                f"{way.listen_on}: {open_because}"
            )
        if _has_neighbours(way, open_because):
            yield "it reaches other chaincode of this node"
        if lets_in:
            yield f"every user of this machine can connect to it: {lets_in}"

    async def vanished(self) -> bool:
        """Whether somebody removed the network that `attach` named last."""
        if self._way is None:
            return False
        try:
            await self._engine.inspect_network(self._way.network)
        except NotFound:
            return True
        return False

    def forget(self) -> None:
        """Look again at the next attach: the network is gone."""
        self._way = None

    async def aclose(self) -> None:
        """Remove what is ours and holds nothing; rules stay for what a network holds."""
        for anchor in self._anchors:
            await self._engine.remove_container(anchor)
        used = await self._bridges.remove()
        if used:
            _log.warning("network is still in use, and stays shut", networks=used)
        else:
            await self._host.remove()
        self._anchors, self._way = [], None

    # --- choosing ------------------------------------------------------------------

    async def _choose(self, listener: CallbackListener, image: str) -> _Way:
        net = None
        for internal in (True, False) if self._sandbox.internal else (False,):
            net = await self._bridges.get(internal=internal)
            here = _is_here(net)
            if not here:
                here = await self._hold_up(net, image)
            if here:
                return _Way(
                    network=net.name,
                    listen_on=net.gateway,
                    dial=net.gateway,
                    internal=internal,
                    separate=net.separate and bridges_filtered(),
                    interface=interface_of(net.gateway),
                )
        assert net is not None  # noqa: S101  # one kind at least was looked at
        info = await self._engine.info()
        way = _Way(
            network=net.name,
            listen_on=_LOOPBACK,
            dial=HOST,
            internal=False,
            separate=net.separate and info.get("BridgeNfIptables") is True,
            through_host=True,
            rootless=is_rootless(info),
        )
        return await self._try_out(way, listener, image)

    async def _hold_up(self, net: Bridge, image: str) -> bool:
        """Put an idle container on the network; say whether its address exists now.

        Raises: EngineError that passes: it must not decide what containers reach.
        """
        body = idle_body(self._sandbox, self._node, net.name, image, "anchor")
        engine = self._engine
        try:
            anchor = await finish(
                engine.create_container(None, body), engine.remove_container
            )
        except EngineError as error:
            if error.retryable or isinstance(error, ImageNotFound):
                raise
            _log.info("no anchor container", reason=error.message)
            return False
        try:
            await engine.start_container(anchor)
            here = _is_here(net)
        except (EngineError, NotFound) as error:
            if error.retryable:
                await finish(engine.remove_container(anchor))
                raise
            _log.info("no anchor container", reason=str(error))
            here = False
        except BaseException:
            await finish(engine.remove_container(anchor))
            raise
        if here:
            self._anchors.append(anchor)
        else:
            await finish(engine.remove_container(anchor))
        return here

    async def _try_out(self, way: _Way, listener: CallbackListener, image: str) -> _Way:
        """Return the way with a name that answers. Raises: as `find_name`."""
        address = await listener.address_on(way.listen_on)
        port = address.rpartition(":")[2]
        body = self._prober(way, image)
        return replace(way, dial=await find_name(self._engine, body, port))

    async def probe(self, image: str) -> LaunchFailed | None:
        """Say what keeps containers from where they were told to dial; None = nothing.

        Raises: EngineError; NotFound when the network is gone.
        """
        way = self._way
        if way is None or not self._port:
            return None
        body = self._prober(way, image)
        try:
            await try_address(self._engine, body, way.dial, str(self._port))
        except (NameUnresolved, NodeUnreachable) as error:
            return error
        return None

    def _prober(self, way: _Way, image: str) -> dict[str, Any]:
        body = idle_body(self._sandbox, self._node, way.network, image, "probe")
        if way.through_host:
            body["HostConfig"]["ExtraHosts"].append(_HOST_IS_HERE)
        return body


def _is_here(net: Bridge) -> bool:
    """Whether the network's gateway is this machine, and not another one's double."""
    return net.gateway in addresses() and net.gateway not in net.was_there


def _told(way: _Way, open_because: str) -> str:
    if not open_because:
        return _TOLD[True]
    return _TOLD[False] if way.internal else _ORDINARY


def _has_neighbours(way: _Way, open_because: str) -> bool:
    return not (way.separate or (not open_because and bridges_filtered()))


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
