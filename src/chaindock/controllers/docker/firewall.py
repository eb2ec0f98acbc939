"""Firewall rules of this machine that limit what a container network can reach.

Every rule carries the node's id as a comment, so a later process finds what a killed node
left. Rules of others are never touched.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shlex
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from chaindock.aio import run_program
from chaindock.telemetry import get_logger

_log = get_logger("docker.firewall")
_LIMIT_S, _LOCK_S, _RETRY_S = 5.0, "3", 30.0
_COMMENT = "chaindock:"
_DENIED = ("permission denied", "operation not permitted", "you must be root")
_HAS_IPV6 = Path("/proc/net/if_inet6")
_OWNER, _CONNLIMIT = "owner", "connlimit"
_NEW = "-p tcp --syn"
_ESTABLISHED = "-m conntrack --ctstate ESTABLISHED,RELATED"
_ADDRESS_BITS = {4: 32, 6: 128}
_NEIGHBOUR_DISCOVERY = ("135", "136")  # IPv6 has no ARP
_REJECT = "-j REJECT --reject-with tcp-reset"
_MAX_CONNECTIONS = 16
"""Of one container: a chaincode needs one, and the listener must have room for others."""


class FirewallError(Exception):
    """Says in a few words why the firewall cannot be used."""


@dataclass(frozen=True)
class FirewallRule:
    """What a container network may reach of this machine: one port, nothing else.

    `interface` is its bridge, `address` its gateway, which this machine has; `port` that
    of the chaincode listener there; None = nothing listens yet.
    """

    interface: str
    address: str
    port: int | None


class _Table:
    """The filter table of one address family."""

    def __init__(self, program: str, version: int, comment: str, chain: str) -> None:
        self._program, self._version = program, version
        self._comment, self._chain = comment, chain
        self._made: tuple[FirewallRule, list[str]] | None = None
        self._missing: dict[str, str] | None = None

    @property
    def open_to_users(self) -> str:
        return (self._missing or {}).get(_OWNER, "")

    async def enforce(self, rule: FirewallRule) -> None:
        """Make exactly the rules for `rule` be in force. Raises: FirewallError."""
        before = await self._list()
        ours = self._ours(before)
        if self._made == (rule, ours) and self._come_first(before):
            return
        await self.look()
        lines = [*self._removal(ours), *self._lines(rule)]
        await self._run("-restore", "--noflush", text=_transaction(lines))
        self._made = rule, self._ours(await self._list())

    async def look(self) -> None:
        """See whether rules can be read, and which matches the kernel lacks."""
        if self._missing is not None:
            return
        await self._run("", "-S")
        matches = {
            _OWNER: f"{_NEW} {_by_others()}",
            _CONNLIMIT: f"{_NEW} -m connlimit --connlimit-above {_MAX_CONNECTIONS}",
        }
        missing = {}
        for name, match in matches.items():
            try:
                await self._run("", "-C", "OUTPUT", *match.split(), *_REJECT.split())
            except FirewallError as error:  # no such rule, or no such match
                if name in str(error):
                    missing[name] = str(error)
        self._missing = missing

    def enforces(self, rule: FirewallRule) -> bool:
        """Whether the rules for `rule` were made, and not removed by us since."""
        return self._made is not None and self._made[0] == rule

    async def remove(self) -> None:
        """Remove every rule of ours. Raises: FirewallError."""
        ours = self._ours(await self._list())
        if ours:
            lines = self._removal(ours)
            if f"-N {self._chain}" in ours:
                lines += [f"-F {self._chain}", f"-X {self._chain}"]
            await self._run("-restore", "--noflush", text=_transaction(lines))
        self._made = None

    def _removal(self, ours: Sequence[str]) -> list[str]:
        """Return what takes our rules out of the chains of others."""
        hooks = (one for one in ours if not one.startswith(f"-A {self._chain} "))
        return [f"-D {one[3:]}" for one in hooks if one.startswith("-A ")]

    def _lines(self, rule: FirewallRule) -> Iterator[str]:
        comment = f"-m comment --comment {shlex.quote(self._comment)}"
        missing, bridge = self._missing or {}, rule.interface
        yield f":{self._chain} - [0:0]"  # made, or emptied
        add = f"-A {self._chain}"
        same_family = ip_address(rule.address).version == self._version
        if same_family and rule.port is not None:
            bits = _ADDRESS_BITS[self._version]
            listener = f"-d {rule.address}/{bits} -p tcp --dport {rule.port}"
            # Also for packets from elsewhere; those of this machine go through lo.
            yield f"-I INPUT 1 {listener} {comment} -j {self._chain}"
            yield f"{add} -i lo {comment} -j RETURN"
            yield f"{add} ! -i {bridge} -p tcp {comment} {_REJECT}"
            if _CONNLIMIT not in missing:
                crowd = f"--connlimit-above {_MAX_CONNECTIONS} --connlimit-mask {bits}"
                yield f"{add} {listener} --syn -m connlimit {crowd} {comment} -j DROP"
            yield f"{add} {listener} {comment} -j ACCEPT"
        yield f"{add} {_ESTABLISHED} {comment} -j ACCEPT"
        if same_family and self._version == 6:
            for kind in _NEIGHBOUR_DISCOVERY:
                yield f"{add} -p ipv6-icmp --icmpv6-type {kind} {comment} -j ACCEPT"
        yield f"{add} {comment} -j DROP"
        yield f"-I INPUT 1 -i {bridge} {comment} -j {self._chain}"
        yield f"-I FORWARD 1 -i {bridge} {comment} -j DROP"
        yield f"-I FORWARD 1 -o {bridge} {comment} -j DROP"
        if _OWNER not in missing:
            yield f"-I OUTPUT 1 -o {bridge} {_NEW} {_by_others()} {comment} {_REJECT}"

    def _ours(self, lines: Sequence[str]) -> list[str]:
        return [
            line
            for line in lines
            if line == f"-N {self._chain}"
            or (line.startswith("-A ") and self._comment in _words(line))
        ]

    def _come_first(self, lines: Sequence[str]) -> bool:
        """Whether only rules of nodes come before ours, wherever that counts."""
        for chain in ("INPUT", "FORWARD", *([] if self.open_to_users else ["OUTPUT"])):
            there = [_words(line) for line in lines if line.startswith(f"-A {chain} ")]
            ours = [n for n, words in enumerate(there) if self._comment in words]
            before = there[: ours[-1]] if ours else [[]]
            if not all(any(w.startswith(_COMMENT) for w in one) for one in before):
                return False
        return True

    async def _list(self) -> list[str]:
        return (await self._run("", "-S")).splitlines()

    async def _run(self, suffix: str, *args: str, text: str = "") -> str:
        """Run the program, or the one of that suffix. Raises: FirewallError."""
        name = Path(f"{self._program}{suffix}").name
        try:
            code, out, said = await run_program(
                f"{self._program}{suffix}",
                *("-w", _LOCK_S),
                *args,
                text=text.encode(),
                limit_s=_LIMIT_S,
                env={"LC_ALL": "C"},
                start_new_session=True,  # ^C at a terminal is for the node alone
            )
        except TimeoutError as error:
            raise FirewallError(f"{name} took longer than {_LIMIT_S:g} s") from error
        except OSError as error:
            raise FirewallError(f"{name} cannot be run: {error.strerror}") from error
        if not code:
            return out.decode(errors="replace")
        why = said.decode(errors="replace")
        if any(word in why.lower() for word in _DENIED):
            raise FirewallError(f"{name} needs root or CAP_NET_ADMIN")
        lines = [line for line in why.splitlines() if line and line[0] != "#"]
        raise FirewallError(f"{name}: {lines[0][:120]}" if lines else f"{name} refused")


class HostFirewall:
    """The firewall rules of one node.

    An internal network of an engine has no way to other machines, but a container on it
    reaches every service of this machine that listens on all addresses, through the
    network's gateway address. So packets from the bridge go through a chain of ours that
    accepts open connections and connections to the node's listener, and drops the rest.
    Nothing is forwarded from or to the bridge. Connections to the listener from other
    interfaces are rejected, and so are those of other users to contracts that serve
    without TLS, where the kernel can tell users apart.

    All rules of one address family are replaced in one transaction, so there is no moment
    without them. The programs are looked for on `path`.
    """

    def __init__(self, node_id: str, path: str) -> None:
        self._lock = asyncio.Lock()
        self._comment = f"{_COMMENT}{node_id}"
        digest = hashlib.sha256(node_id.encode()).hexdigest()[:12]
        self._chain = f"CHAINDOCK-{digest}"
        self._path, self._failed, self._retry_at = path, "", 0.0
        self._tables: list[_Table] = []

    async def enforce(self, rule: FirewallRule) -> str:
        """Put `rule` in force; return why that failed, "" when it is in force.

        Cheap when the rules are in force: one listing per address family. After a failure
        it is not tried again for 30 s: a firewall that hangs must not delay launches.
        Rules in force for `rule` stay then, because other contracts depend on them.
        """
        async with self._lock:
            if time.monotonic() < self._retry_at:
                return self._failed
            try:
                every = (table.enforce(rule) for table in self._find_tables())
                ends = await asyncio.gather(*every, return_exceptions=True)
                for end in filter(None, ends):
                    raise end
            except FirewallError as error:
                if not all(table.enforces(rule) for table in self._tables):
                    await self._clear()
                self._failed = str(error)
                self._retry_at = time.monotonic() + _RETRY_S
                return self._failed
            return ""

    @property
    def open_to_users(self) -> str:
        """Why others than the node's user can connect onto the bridge; "" = they cannot."""
        found = (table.open_to_users for table in self._tables)
        return next((why for why in found if why), "")

    async def remove(self) -> None:
        """Remove all rules of this node, of an earlier run too."""
        async with self._lock:
            await self._clear()

    async def look(self) -> str:
        """Return why the rules cannot be read, "" when they can; changes nothing."""
        try:
            for table in self._find_tables():
                await table.look()
        except FirewallError as error:
            return str(error)
        return ""

    async def _clear(self) -> None:
        try:
            for table in self._find_tables():
                await table.remove()
        except FirewallError as error:
            _log.debug("no rules removed", reason=str(error))

    def _find_tables(self) -> list[_Table]:
        if not self._tables:
            found = {"iptables": 4} | ({"ip6tables": 6} if _HAS_IPV6.exists() else {})
            self._tables = [self._table(*one) for one in found.items()]
        return self._tables

    def _table(self, name: str, version: int) -> _Table:
        program = shutil.which(name, path=self._path)
        if program is None:
            raise FirewallError(f"there is no program {name!r} on the PATH")
        return _Table(program, version, self._comment, self._chain)


async def firewall_problems(path: str) -> tuple[str, str]:
    """Return why the firewall cannot be used here, and why not by user; "" = it can."""
    host = HostFirewall("doctor", path)
    return await host.look(), host.open_to_users


def _transaction(lines: Sequence[str]) -> str:
    return "\n".join(("*filter", *lines, "COMMIT", ""))


def _by_others() -> str:
    """Match packets that other users than that of this process send."""
    return f"-m {_OWNER} ! --uid-owner {os.geteuid()}"


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError:  # a foreign comment with a lone quote
        return line.split()
