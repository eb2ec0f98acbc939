"""This machine as containers reach it: its addresses, and a probe that dials them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from chaindock.controllers.docker.engine import Engine
from chaindock.errors import LaunchFailed, NameUnresolved, NodeUnreachable

HOST = "host.docker.internal"
_BRIDGES_FILTERED = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
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
_ROOTLESS_HINT = (
    "; a rootless Podman lets containers in with "
    'network_cmd_options = ["allow_host_loopback=true"] in containers.conf'
)
_FIREWALL_HINT = (
    "check the firewall of this machine (firewalld, ufw, nftables, iptables): it must "
    "accept connections from the containers of that network"
)


def addresses() -> dict[str, str]:
    """Return the addresses of this machine, each with its interface."""
    return {
        one.address.partition("%")[0]: interface
        for interface, card in psutil.net_if_addrs().items()
        for one in card
    }


def bridges_filtered() -> bool:
    """Whether packets between ports of one bridge pass the firewall."""
    with contextlib.suppress(OSError):
        return _BRIDGES_FILTERED.read_text().strip() == "1"
    return False


async def find_name(
    engine: Engine, body: dict[str, Any], port: str, *, rootless: bool
) -> str:
    """Return the name of this machine that answers at `port` from a container.

    `body` is that of an idle container, where `HOST` is known if the engine can do that.

    Raises: NameUnresolved when no name is known there, NodeUnreachable when none answers.
    """
    hosts = _NAMES + (_ROOTLESS if rootless else ())
    code = await _dial(engine, body, port, hosts)
    if code == _NO_TOOL:
        return HOST
    if 0 <= code - _FIRST_NAME < len(hosts):
        return hosts[code - _FIRST_NAME]
    there = f"containers of the engine at {engine.address} cannot reach this machine: "
    there += "no network's gateway address is here, and none of "
    kind: type[LaunchFailed] = NodeUnreachable
    hint, why = _HINT, f"{', '.join(hosts)} answers at port {port} from inside"
    if code == _NO_NAME:
        kind, why = NameUnresolved, f"the names {', '.join(hosts)} resolves inside"
    elif rootless:
        hint += _ROOTLESS_HINT
    raise kind(there + why, hint=hint, hosts=list(hosts), port=port)


async def try_address(
    engine: Engine, body: dict[str, Any], host: str, port: str
) -> LaunchFailed | None:
    """Return why an address of this machine does not answer in a container, as above."""
    code = await _dial(engine, body, port, [host])
    network, facts = body["HostConfig"]["NetworkMode"], {"hosts": [host], "port": port}
    if code == _NO_NAME:
        text = f"the node's name {host!r} does not resolve in a container of the engine at "
        return NameUnresolved(text + engine.address, hint=_HINT, **facts)
    if code == _NO_ANSWER:
        text = f"the node listens at {host} port {port}, and a container on network "
        text += f"{network!r} cannot connect there"
        return NodeUnreachable(text, hint=_FIREWALL_HINT, **facts)
    return None


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
