"""Shut the end of a container network that lies on this machine, both ways.

Owns:    the rules of this machine's packet filter that carry the node's id.
Not:     which network it is (network.py); rules of anybody else.
Entry:   HostFilter.shut
Holds:   from the bridge only the chaincode listener is reached, and onto it only the
         node's user connects; rules without our comment are never touched; what a
         killed node left is found by its comment; rules that could not be looked at
         stay as they are.
Source:  launch.md §9 W57; needs.md rows 13, 43

An internal network of an engine has no way to other machines, but a container on it
reaches every service of this machine that listens on all addresses, through the gateway.
Where this process may, it closes that: packets from the bridge go through a chain of
ours that lets pass what belongs to open connections and what goes to the listener; and
nothing is forwarded from or to the bridge. Contracts that are dialled in plain listen on
it: whoever else of this machine opens a connection to them is refused, where the kernel
can tell users apart. The engine's own rules are added to, never replaced. The chain is
made anew under its other name and hooked in before the old one goes, so there is no
moment without it.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shlex
import shutil
import time
from asyncio.subprocess import DEVNULL, PIPE
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from chaindock.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Sequence

_log = get_logger("docker.filter")
_LIMIT_S, _LOCK_S, _REST_S = 5.0, "3", 30.0
_PREFIX = "CHAINDOCK-"
_COMMENT = "chaindock:"
_DENIED = ("permission denied", "operation not permitted", "you must be root")
_HAS_IPV6 = Path("/proc/net/if_inet6")
_OPEN = ("-m", "conntrack", "--ctstate", "ESTABLISHED,RELATED")
# A chaincode needs one connection; the listener must not be full for the others.
_CROWD = ("-m", "connlimit", "--connlimit-above", "16", "--connlimit-mask")
_WHOLE = {4: "32", 6: "128"}  # bits of an address: each container is counted alone
_NEIGHBOURS = ("135", "136")  # IPv6 has no ARP
_OPENS, _OWNER = ("-p", "tcp", "--syn"), "owner"
_BUSY = "xtables lock"
"""What it says when somebody else holds it; the exit code has other meanings too."""
_REFUSE = ("-j", "REJECT", "--reject-with", "tcp-reset")


class FilterError(Exception):
    """The packet filter cannot be used; says why in a few words."""


class FilterBusyError(FilterError):
    """It cannot be used just now; that says nothing of what it can do."""


@dataclass(frozen=True)
class Door:
    """What stays open.

    Args:
        interface: the bridge on this machine.
        address: its address here, the gateway of the network.
        port: of the chaincode listener there; None = nobody listens yet.
    """

    interface: str
    address: str
    port: int | None


class _Tables:
    """The filter table of one family of addresses."""

    def __init__(self, program: str, version: int, comment: str, chain: str) -> None:
        self._program, self.version = program, version
        self._comment, self._chain = comment, chain
        self._made: tuple[Door, list[list[str]]] | None = None
        self.lets_in = ""
        """Why other users of this machine may connect onto the bridge; "" = they cannot."""

    async def shut(self, door: Door) -> None:
        """See that exactly the rules for `door` are in force. Raises: FilterError."""
        before = await self._list()
        if self._made == (door, self._ours(before)) and self._leads(before):
            return
        names = [f"{self._chain}-a", f"{self._chain}-b"]
        free = [name for name in names if ["-N", name] not in before]
        if not free:  # a node was killed between the two
            await self._drop(self._ours(before))
            before, free = [], names
        await self._make(free[0], door)
        await self._drop(self._ours(before))
        self._made = door, self._ours(await self._list())

    async def look(self) -> None:
        """See whether the rules can be read, and users told apart. Raises: FilterError."""
        await self._list()
        try:
            await self._run("-C", "OUTPUT", *_OPENS, *_others(), *_REFUSE)
        except FilterError as error:  # there is no such rule, or there cannot be one
            self.lets_in = str(error) if _OWNER in str(error) else ""

    def made_for(self, door: Door) -> bool:
        """Whether the rules for `door` were made, and not removed by us since."""
        return self._made is not None and self._made[0] == door

    async def remove(self) -> int:
        """Remove every rule of ours. Returns how many. Raises: FilterError."""
        ours = self._ours(await self._list())
        await self._drop(ours)
        self._made = None
        return len(ours)

    async def _make(self, chain: str, door: Door) -> None:
        mine = ("-m", "comment", "--comment", self._comment)
        await self._run("-N", chain)
        inside: list[tuple[str, ...]] = [(*_OPEN, *mine, "-j", "ACCEPT")]
        crowd: tuple[str, ...] = ()
        if ip_address(door.address).version == self.version:
            if self.version == 6:
                inside += [
                    ("-p", "ipv6-icmp", "--icmpv6-type", kind, *mine, "-j", "ACCEPT")
                    for kind in _NEIGHBOURS
                ]
            if door.port is not None:
                to = ("-d", door.address, "-p", "tcp", "--dport", str(door.port))
                one = _WHOLE[self.version]
                crowd = (*to, "--syn", *_CROWD, one, *mine, "-j", "DROP")
                inside.append((*to, *mine, "-j", "ACCEPT"))
        inside.append((*mine, "-j", "DROP"))
        for rule in inside:
            await self._run("-A", chain, *rule)
        if crowd:
            # Not every kernel can count connections.
            await self._try("-I", chain, "1", *crowd)
        await self._run("-I", "INPUT", "1", "-i", door.interface, *mine, "-j", chain)
        # The name makes them others than those before, which `-D` would not tell apart.
        named = (*mine, "-m", "comment", "--comment", chain, "-j", "DROP")
        for way in ("-i", "-o"):
            await self._run("-I", "FORWARD", "1", way, door.interface, *named)
        others = ("-o", door.interface, *_OPENS, *_others(), *named[:-2], *_REFUSE)
        # Not every kernel can tell users apart.
        self.lets_in = await self._try("-I", "OUTPUT", "1", *others)

    async def _drop(self, rules: Sequence[Sequence[str]]) -> None:
        """Remove rules, jumps before the chains that they lead to."""
        inside = {rule[1] for rule in rules if rule[1].startswith(self._chain)}
        for rule in rules:
            if rule[0] == "-A" and rule[1] not in inside:
                await self._run("-D", *rule[1:])
        for chain in sorted(inside):
            await self._run("-F", chain)
            await self._run("-X", chain)

    def _ours(self, rules: Sequence[list[str]]) -> list[list[str]]:
        return [
            rule
            for rule in rules
            if (rule[0] == "-A" and self._comment in rule)
            or (rule[0] == "-N" and rule[1].startswith(f"{self._chain}-"))
        ]

    def _leads(self, rules: Sequence[list[str]]) -> bool:
        """Whether nothing but rules of nodes comes before ours, wherever that counts."""
        for chain in ("INPUT", "FORWARD", *([] if self.lets_in else ["OUTPUT"])):
            there = [rule for rule in rules if rule[:2] == ["-A", chain]]
            ours = [n for n, rule in enumerate(there) if self._comment in rule]
            before = there[: ours[-1]] if ours else [[]]
            if not all(any(w.startswith(_COMMENT) for w in one) for one in before):
                return False
        return True

    async def _list(self) -> list[list[str]]:
        lines = (await self._run("-S")).splitlines()
        return [words for line in lines if (words := _words(line))]

    async def _try(self, *args: str) -> str:
        """Run it; return why this kernel cannot do that. Raises: FilterBusyError."""
        try:
            await self._run(*args)
        except FilterBusyError:
            raise
        except FilterError as error:
            return str(error)
        return ""

    async def _run(self, *args: str) -> str:
        """Run the program. Raises: FilterError."""
        name = Path(self._program).name
        try:
            process = await asyncio.create_subprocess_exec(
                self._program,
                "-w",
                _LOCK_S,
                *args,
                stdin=DEVNULL,
                stdout=PIPE,
                stderr=PIPE,
                env={"LC_ALL": "C"},
                start_new_session=True,  # ^C at a terminal is for the node alone
            )
        except OSError as error:
            raise FilterError(f"{name} cannot be run: {error.strerror}") from error
        try:
            async with asyncio.timeout(_LIMIT_S):
                out, told = await process.communicate()
        except TimeoutError as error:
            raise FilterBusyError(f"{name} took longer than {_LIMIT_S:g} s") from error
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            why = told.decode(errors="replace")
            raise (FilterBusyError if _BUSY in why else FilterError)(_why(name, why))
        return out.decode(errors="replace")


class HostFilter:
    """The rules of one node.

    Args:
        node_id: whose.
        path: where the programs are looked for, as a PATH.
    """

    def __init__(self, node_id: str, path: str) -> None:
        self._lock = asyncio.Lock()
        self._comment = f"{_COMMENT}{node_id}"
        digest = hashlib.sha256(node_id.encode()).hexdigest()[:12]
        self._chain = f"{_PREFIX}{digest}"
        self._path = path
        self._tables: list[_Tables] = []
        self._failed, self._rests_until = "", 0.0

    async def shut(self, door: Door) -> str:
        """Leave only `door` open; return why that cannot be done, "" when it was.

        Idempotent, and cheap when the rules are in force: one listing per family. What
        failed is not tried again at once: a filter that hangs must not hold up launches.
        What was in force for `door` stays then: others run behind it.
        """
        async with self._lock:
            if time.monotonic() < self._rests_until:
                return self._failed
            try:
                families = self._families()
                ends = await asyncio.gather(
                    *(tables.shut(door) for tables in families), return_exceptions=True
                )
                for end in ends:
                    if end is not None:
                        raise end
            except FilterError as error:
                # Half of it would be told as nothing and still be in somebody's way.
                if not all(tables.made_for(door) for tables in self._tables):
                    await self._clear()
                self._failed = str(error)
                self._rests_until = time.monotonic() + _REST_S
                return self._failed
            return ""

    @property
    def lets_in(self) -> str:
        """Why others than the node's user may connect onto the bridge, as last seen.

        "" = they cannot, where `shut` or `look` returned "".
        """
        return next((one.lets_in for one in self._tables if one.lets_in), "")

    async def remove(self) -> int:
        """Remove all rules of this node, of an earlier run too; return how many.

        Where the filter cannot be used there are none that could be removed.
        """
        async with self._lock:
            return await self._clear()

    async def look(self) -> str:
        """Return why the rules cannot be read, "" when they can; changes nothing."""
        try:
            for tables in self._families():
                await tables.look()
        except FilterError as error:
            return str(error)
        return ""

    async def _clear(self) -> int:
        count = 0
        try:
            families = self._families()
        except FilterError:
            return 0
        for tables in families:
            try:
                count += await tables.remove()
            except FilterError as error:
                _log.debug("no rules removed", reason=str(error))
        return count

    def _families(self) -> list[_Tables]:
        if not self._tables:
            found = [("iptables", 4)]
            if _HAS_IPV6.exists():
                found.append(("ip6tables", 6))
            self._tables = [
                _Tables(self._program(name), version, self._comment, self._chain)
                for name, version in found
            ]
        return self._tables

    def _program(self, name: str) -> str:
        program = shutil.which(name, path=self._path)
        if program is None:
            raise FilterError(f"there is no program {name!r} on the PATH")
        return program


async def usable(path: str) -> tuple[str, str]:
    """Return why the packet filter cannot be used here, and why not by user.

    "" when it can; for `doctor`. Reads the rules, changes nothing.
    """
    host = HostFilter("doctor", path)
    return await host.look(), host.lets_in


def _others() -> tuple[str, ...]:
    """Match what is sent by others than the user of this process."""
    return ("-m", _OWNER, "!", "--uid-owner", str(os.geteuid()))


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError:  # a foreign comment with a lone quote
        return line.split()


def _why(name: str, told: str) -> str:
    if any(word in told.lower() for word in _DENIED):
        return f"{name} needs root or CAP_NET_ADMIN"
    lines = [line for line in told.splitlines() if line and not line.startswith("#")]
    return f"{name}: {lines[0][:120]}" if lines else f"{name} refused"
