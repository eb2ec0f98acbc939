"""Try from inside whether containers of an engine reach this machine.

Owns:    the names that engines give it, trying addresses in a container, and what to say
         when none answers.
Not:     when that is needed, and the network it is done on (network.py).
Entry:   find_name, try_address
Holds:   a name is used only when the node answered to it; what could not be tried is not
         told as a failure.
Source:  launch.md §9 W57; needs.md rows 13 and 19
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from chaindock.aio import finish
from chaindock.controllers.docker.walls import is_rootless
from chaindock.errors import NameUnresolved, NodeUnreachable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chaindock.controllers.docker.engine import Engine

HOST = "host.docker.internal"
_NAMES = (HOST, "host.containers.internal")
_ROOTLESS = ("10.0.2.2", "169.254.1.2")
"""This machine's loopback, as slirp4netns and pasta show it where they are let."""
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
            hint="see whether a packet filter of this machine stands in the way "
            "(firewalld, ufw, nftables, iptables): it must let containers of that "
            "network in",
            **facts,
        )


async def _dial(
    engine: Engine, body: dict[str, Any], port: str, hosts: Sequence[str]
) -> int:
    """Return the exit code of `_DIAL`; _NO_TOOL when it is not known."""
    body["Cmd"] = ["/bin/sh", "-c", _DIAL, port, *hosts]
    probe = await finish(engine.create_container(None, body), engine.remove_container)
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_TRY_S):
                await engine.start_container(probe)
                return await engine.wait_container(probe)
    finally:
        await finish(engine.remove_container(probe))
    return _NO_TOOL
