"""Find the name by which containers of an engine elsewhere reach this machine.

Owns:    the names that engines give it, trying them from inside.
Not:     when that is needed, and the network it is done on (network.py).
Entry:   find_name
Holds:   a name is used only when the node answered to it.
Source:  launch.md §9 W57; needs.md rows 13 and 19
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from chaindock.aio import finish
from chaindock.controllers.docker.walls import is_rootless
from chaindock.errors import StartFailed

if TYPE_CHECKING:
    from chaindock.controllers.docker.engine import Engine

HOST = "host.docker.internal"
_NAMES = (HOST, "host.containers.internal")
_ROOTLESS = ("10.0.2.2", "169.254.1.2")
"""This machine's loopback, as slirp4netns and pasta show it where they are let."""
_TRY_S = 20.0
_DIAL = """\
p=$0 n=10
for h; do
if command -v bash >/dev/null; then timeout 3 bash -c "exec 3<>/dev/tcp/$h/$p" && exit $n
elif command -v nc >/dev/null; then nc -z -w 3 "$h" "$p" && exit $n
elif command -v python3 >/dev/null; then
python3 -c 'import socket,sys;socket.create_connection((sys.argv[1],int(sys.argv[2])),3)' "$h" "$p" && exit $n
else exit 99; fi
n=$((n+1)); done; exit 1"""
_FIRST_NAME = 10
_NO_TOOL = 99


async def find_name(engine: Engine, body: dict[str, Any], port: str) -> str:
    """Dial `port` of this machine from a container; return the name that answers.

    `body` is that of an idle container on the network in question; its command is set
    here.

    Raises: StartFailed when none does; EngineError.
    """
    rootless, code = is_rootless(await engine.info()), _NO_TOOL
    hosts = _NAMES + (_ROOTLESS if rootless else ())
    body["Cmd"] = ["/bin/sh", "-c", _DIAL, port, *hosts]
    body["HostConfig"]["ExtraHosts"] = [f"{HOST}:host-gateway"]
    probe = await finish(engine.create_container(None, body), engine.remove_container)
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_TRY_S):
                await engine.start_container(probe)
                code = await engine.wait_container(probe)
    finally:
        await finish(engine.remove_container(probe))
    if code == _NO_TOOL:
        return HOST
    if 0 <= code - _FIRST_NAME < len(hosts):
        return hosts[code - _FIRST_NAME]
    hint = "run the node beside the engine, or use --backend process"
    if rootless:
        hint += (
            "; a rootless Podman lets containers in with "
            'network_cmd_options = ["allow_host_loopback=true"] in containers.conf'
        )
    raise StartFailed(
        f"containers of the engine at {engine.address} cannot reach this machine: no "
        f"network's gateway address is here, and none of {', '.join(hosts)} answers at "
        f"port {port} from inside",
        hint=hint,
    )
