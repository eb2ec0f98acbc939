"""The networks that a node has at an engine: an internal one, or an ordinary one.

Owns:    finding them, making them, removing them.
Not:     which of them is used, and how the node is reached there (network.py).
Entry:   Bridges.get
Holds:   a network of somebody else is never used; containers are kept apart where the
         engine can do that.
Source:  launch.md §9 W57
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from chaindock.aio import finish
from chaindock.controllers.docker import names
from chaindock.controllers.docker.host import addresses
from chaindock.errors import EngineError, NotFound, StartFailed
from chaindock.telemetry import get_logger

if TYPE_CHECKING:
    from chaindock.container.contracts import NodeLabels
    from chaindock.controllers.docker.engine import Engine

_log = get_logger("docker.network")
# Rules that outlive a killed node must not meet a network of somebody else: engines give
# names that were free again.
_BRIDGE_NAME = "com.docker.network.bridge.name"
_NO_NEIGHBOURS = {"com.docker.network.bridge.enable_icc": "false"}


@dataclass(frozen=True)
class Bridge:
    """A network of the node.

    Args:
        gateway: its address on the engine's machine.
        separate: its containers do not reach each other, if the kernel filters that.
        was_there: addresses this machine had before; empty when the network is older.
    """

    name: str
    gateway: str
    separate: bool
    was_there: frozenset[str]


class Bridges:
    """The networks of one node at one engine."""

    def __init__(self, engine: Engine, node: NodeLabels) -> None:
        self._engine, self._node = engine, node
        self._used: set[str] = set()

    async def get(self, *, internal: bool) -> Bridge:
        """Return the node's network of that kind; make it if it is not there.

        Raises: StartFailed when the name is taken; EngineError.
        """
        name = names.network_name(self._node) + ("" if internal else "-open")
        before = addresses()
        found = await self._find(name)
        self._used.add(name)
        if found is not None:
            before = frozenset()
        else:
            found = await self._create(name, internal=internal)
        config = (found.get("IPAM") or {}).get("Config") or [{}]
        separate = (found.get("Options") or {}).items() >= _NO_NEIGHBOURS.items()
        gateway = str(config[0].get("Gateway", "")).partition("/")[0]
        return Bridge(name, gateway, separate, before)

    async def remove(self) -> list[str]:
        """Remove those that `get` returned; return the names of those still in use."""
        engine = self._engine
        left = [name for name in self._used if not await engine.remove_network(name)]
        self._used = set()
        return left

    async def _find(self, name: str) -> dict[str, Any] | None:
        try:
            return await self._inspect(name)
        except NotFound:
            return None

    async def _inspect(self, name: str) -> dict[str, Any]:
        found = await self._engine.inspect_network(name)
        if (found.get("Labels") or {}).get(names.NODE) != self._node.node_id:
            raise StartFailed(
                f"network name {name!r} is taken by a network that is not ours",
                hint=f"remove it with: docker network rm {name}",
            )
        return found

    async def _create(self, name: str, *, internal: bool) -> dict[str, Any]:
        body = {
            "Name": name,
            "Driver": "bridge",
            "Internal": internal,
            "CheckDuplicate": True,
            "Labels": {names.NODE: self._node.node_id, names.ROLE: "network"},
        }
        ours = {_BRIDGE_NAME: names.bridge_name(self._node, self._engine.address, name)}
        for options in ({**ours, **_NO_NEIGHBOURS}, ours):
            try:
                await finish(self._engine.create_network({**body, "Options": options}))
                break
            except EngineError as error:
                if error.facts.get("status") == 409:  # made by somebody just now
                    break
                if error.retryable:
                    raise
                # Not every engine can keep the containers of a network apart.
                _log.info("network without options", reason=error.message)
        else:
            await finish(self._engine.create_network(body))
        return await self._inspect(name)
