"""The networks of a node at an engine, and the probe that dials the node from them."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from chaindock.aio import finish
from chaindock.controllers.docker import names
from chaindock.controllers.docker.isolation import is_rootless
from chaindock.errors import (
    EngineError,
    NameUnresolved,
    NodeUnreachable,
    NotFound,
    StartFailed,
)
from chaindock.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chaindock.container.contracts import NodeLabels
    from chaindock.controllers.docker.engine import Engine

_log = get_logger("docker.network")
_BRIDGES_FILTERED = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
# Interfaces are named by us: an engine gives a name that is free again to the network of
# somebody else, and would meet the firewall rules that a killed node left.
_BRIDGE_NAME = "com.docker.network.bridge.name"
_NO_NEIGHBOURS = {"com.docker.network.bridge.enable_icc": "false"}


def addresses() -> frozenset[str]:
    """Return the addresses of this machine."""
    return frozenset(
        one.address.partition("%")[0]
        for card in psutil.net_if_addrs().values()
        for one in card
    )


def interface_of(address: str) -> str:
    """Return the interface of this machine that has an address; "" = none."""
    for name, card in psutil.net_if_addrs().items():
        if any(one.address.partition("%")[0] == address for one in card):
            return name
    return ""


def bridges_filtered() -> bool:
    """Whether packets between ports of one bridge pass the firewall."""
    try:
        return _BRIDGES_FILTERED.read_text().strip() == "1"
    except OSError:
        return False


@dataclass(frozen=True)
class Bridge:
    """A network of the node.

    Args:
        gateway: its address on the engine's machine.
        separate: its containers do not reach each other, if the kernel filters that.
        known_before: addresses that this machine had before the network was made; empty
            when the network is older than this process.
    """

    name: str
    gateway: str
    separate: bool
    known_before: frozenset[str]


class Bridges:
    """The networks of one node at one engine."""

    def __init__(self, engine: Engine, node: NodeLabels) -> None:
        self._engine, self._node = engine, node

    async def get(self, *, internal: bool) -> Bridge:
        """Return the node's network of that kind; make it if it is not there.

        Raises: StartFailed when the name is taken; EngineError.
        """
        name = names.network_name(self._node) + ("" if internal else "-open")
        before: frozenset[str] = frozenset()
        try:
            found = await self._inspect(name)
        except NotFound:
            before = addresses()
            found = await self._create(name, internal=internal)
        config = (found.get("IPAM") or {}).get("Config") or [{}]
        separate = (found.get("Options") or {}).items() >= _NO_NEIGHBOURS.items()
        gateway = str(config[0].get("Gateway", "")).partition("/")[0]
        return Bridge(name, gateway, separate, before)

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
                if error.facts.get("status") == 409:  # somebody made it just now
                    break
                if error.retryable:
                    raise
                # Not every engine can keep the containers of a network apart.
                _log.info("network made without options", reason=error.message)
        else:
            await finish(self._engine.create_network(body))
        return await self._inspect(name)


HOST = "host.docker.internal"
_NAMES = (HOST, "host.containers.internal")
_ROOTLESS = ("10.0.2.2", "169.254.1.2")
"""Addresses of this machine's loopback in slirp4netns and pasta, if they permit it."""
_TRY_S = 30.0
_DIAL = """\
has() { for t; do command -v "$t" >/dev/null || return 1; done; }
p=$0 n=10 e=1
for h; do
if has bash timeout; then
m=$(timeout 3 bash -c "exec 3<>/dev/tcp/$h/$p" 2>&1) && exit $n
elif has nc; then m=$(nc -z -w 3 "$h" "$p" 2>&1) && exit $n
elif has python3; then
m=$(python3 -c 'import socket,sys;socket.create_connection((sys.argv[1],int(sys.argv[2])),3)' "$h" "$p" 2>&1) && exit $n
else exit 99; fi
n=$((n+1))
case $m in *option*|*sage:*) exit 99;; esac
case $h in *:*|[0-9]*.*[0-9]) e=2; continue;; esac
if has getent timeout; then timeout 3 getent hosts "$h" >/dev/null && e=2
else case $m in *assign*) e=2;; *esol*|*known*|*address*|*again*) ;; *) e=2;; esac; fi
done; exit $e"""
_FIRST_NAME = 10
_NO_NAME, _NO_ANSWER, _NO_TOOL = 1, 2, 99
_HINT = "run the node beside the engine, or use --backend process"


async def find_name(engine: Engine, body: dict[str, Any], port: str) -> str:
    """Dial `port` of this machine from a container; return the name that answers.

    `body` is that of an idle container on the network in question, where `HOST` is known
    if the engine can do that; its command is set here.

    Raises: NameUnresolved when no name of this machine is known there, NodeUnreachable
        when none answers; EngineError.
    """
    rootless = is_rootless(await engine.info())
    hosts = _NAMES + (_ROOTLESS if rootless else ())
    code = await _dial(engine, body, port, hosts)
    if code == _NO_TOOL:
        return HOST
    if 0 <= code - _FIRST_NAME < len(hosts):
        return hosts[code - _FIRST_NAME]
    facts = {"hosts": list(hosts), "port": port}
    there = (
        f"containers of the engine at {engine.address} cannot reach this machine: no "
    )
    there += "network's gateway address is here, and "
    if code == _NO_NAME:
        raise NameUnresolved(
            f"{there}none of the names {', '.join(hosts)} resolves inside",
            hint=_HINT,
            **facts,
        )
    hint = _HINT
    if rootless:
        hint += (
            "; a rootless Podman lets containers in with "
            'network_cmd_options = ["allow_host_loopback=true"] in containers.conf'
        )
    raise NodeUnreachable(
        f"{there}none of {', '.join(hosts)} answers at port {port} from inside",
        hint=hint,
        **facts,
    )


async def try_address(
    engine: Engine, body: dict[str, Any], host: str, port: str
) -> None:
    """Dial an address of this machine from a container, as `find_name` does.

    Raises: NameUnresolved, NodeUnreachable; EngineError.
    """
    code = await _dial(engine, body, port, [host])
    network, facts = body["HostConfig"]["NetworkMode"], {"hosts": [host], "port": port}
    if code == _NO_NAME:
        raise NameUnresolved(
            f"the node's name {host!r} does not resolve in a container of the engine at "
            f"{engine.address}",
            hint=_HINT,
            **facts,
        )
    if code == _NO_ANSWER:
        raise NodeUnreachable(
            f"the node listens at {host} port {port}, and a container on network "
            f"{network!r} cannot connect there",
            hint="check the firewall of this machine (firewalld, ufw, nftables, "
            "iptables): it must accept connections from the containers of that "
            "network",
            **facts,
        )


async def _dial(
    engine: Engine, body: dict[str, Any], port: str, hosts: Sequence[str]
) -> int:
    """Return the exit code of `_DIAL`; _NO_TOOL when it is not known."""
    body["Cmd"] = ["/bin/sh", "-c", _DIAL, port, *hosts]
    with contextlib.suppress(TimeoutError):
        async with engine.container(body) as probe, asyncio.timeout(_TRY_S):
            await engine.start_container(probe)
            return await engine.wait_container(probe)
    return _NO_TOOL
