"""Close connections to the chaincode listener that have no stream, once there are many.

gRPC has no hook for accepted connections, so a thread looks at the sockets of this process.
If more than 3/4 of what gRPC accepts at one address have none, at all addresses together,
it closes all but 1/4, and never one that has a stream.
Source: docs/adr/0009-crowded-listener.md
"""

from __future__ import annotations

import os
import re
import resource
import socket
import stat
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import unquote

from chaindock.telemetry import get_logger
from chaindock.values import show_address

_log = get_logger("chaincode.crowd")
MAX_CONNECTIONS: Final = 3000
"""Per address, as gRPC enforces it; a quarter of the open files if that is less."""
_LASTS_S: Final = 15.0
"""Seconds that the listener counts as crowded after connections were closed."""
_LOOK_S, _LOOK_CROWDED_S, _LOG_S = 0.5, 0.1, 60.0
_TCP_INFO: Final = 136
_RECEIVED: Final = slice(128, 136)
"""Where Linux has the number of received bytes in TCP_INFO."""
_Address = tuple[str, int]


class _Idle(NamedTuple):
    """A connection without a stream. Those that sort lowest are closed first."""

    spoke: bool
    since: float
    descriptor: int
    peer: _Address


class Crowd:
    """The connections to all listening addresses of a node."""

    def __init__(self) -> None:
        self._ports: set[int] = set()
        self._streams: Counter[str] = Counter()
        self._since: dict[_Address, float] = {}
        self._closed_at = self._logged_at = float("-inf")
        self._closed: Counter[str] = Counter()
        """By source, since the last line of the log."""
        self._thread: threading.Thread | None = None
        self._over = threading.Event()

    def watch(self, port: int) -> None:
        """Watch the connections to `port`, too."""
        self._ports.add(port)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="crowd", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the watch."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def lasts(self) -> bool:
        """Whether the listener is crowded, or was a moment ago."""
        return time.monotonic() - self._closed_at < _LASTS_S

    def stream(self, peer: str, change: int) -> None:
        """Take note of a stream that began (1) or ended (-1); `peer` as gRPC names it."""
        address = _unquoted(peer)
        self._streams[address] += change
        if not self._streams[address]:
            del self._streams[address]

    def _run(self) -> None:
        while not self._over.wait(_LOOK_CROWDED_S if self.lasts() else _LOOK_S):
            with suppress(OSError):  # not Linux, or no descriptor is free at the moment
                self._look()

    def _look(self) -> None:
        """Close the connections that are too many; log those that earlier looks closed."""
        now = time.monotonic()
        if self._closed and now - self._logged_at > _LOG_S:
            largest = dict(self._closed.most_common(3))
            _log.warning("closed connections without a stream, too many", of=largest)
            self._closed.clear()
            self._logged_at = now
        most = most_connections()
        descriptors = [int(one.name) for one in Path("/proc/self/fd").iterdir()]
        if len(descriptors) <= most // 4:
            return
        idle = [one for one in map(self._idle, descriptors) if one is not None]
        self._since = {one.peer: one.since for one in idle}
        many = len(idle) > most * 3 // 4
        surplus = _surplus(idle, self._ports, most // 4) if many else []
        for source, one in surplus:
            with suppress(OSError), _duplicate(one.descriptor) as connection:
                same = _address(connection.getpeername()) == one.peer
                if same and not self._streams[show_address(one.peer)]:
                    connection.shutdown(socket.SHUT_RDWR)
                    self._closed[source] += 1
                    self._closed_at = now

    def _idle(self, descriptor: int) -> _Idle | None:
        """Return the connection that has this descriptor, unless it has a stream."""
        with suppress(OSError), _duplicate(descriptor) as connection:
            if connection.family not in {socket.AF_INET, socket.AF_INET6} or (
                connection.getsockname()[1] not in self._ports
            ):
                return None
            peer = _address(connection.getpeername())
            if self._streams[show_address(peer)]:
                return None
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO)
            since = self._since.get(peer, time.monotonic())
            return _Idle(any(info[_RECEIVED]), since, descriptor, peer)
        return None


@lru_cache(MAX_CONNECTIONS)
def _unquoted(peer: str) -> str:
    """Return the address in a name of gRPC's."""
    return unquote(peer.partition(":")[2])


def most_connections() -> int:
    """Return how many connections gRPC is to accept at an address."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = files == resource.RLIM_INFINITY
    return MAX_CONNECTIONS if unlimited else min(MAX_CONNECTIONS, files // 4)


def _surplus(idle: list[_Idle], ports: set[int], left: int) -> list[tuple[str, _Idle]]:
    """Return all but `left` connections, each with its source.

    A source is an address, or a user of this machine. Each keeps as many as the others:
    its newest that have sent anything.
    """
    users = _local_users(ports)
    kept: Counter[str] = Counter()
    ranked = []
    for one in sorted(idle, reverse=True):
        source = users.get(one.peer, one.peer[0])
        ranked.append((kept[source], source, one))
        kept[source] += 1
    ranked.sort(key=lambda place: place[0])
    return [(source, one) for _, source, one in ranked[left:]]


def _local_users(ports: set[int]) -> dict[_Address, str]:
    """Return which user has the other end of a connection to `ports`, if it is here."""
    wanted = "|".join(f"{port:04X}" for port in ports)
    line = re.compile(rf" *\d+: (\w+):(\w+) \w+:(?:{wanted}) \w\w \S+ \S+ \w+ +(\d+)")
    users: dict[_Address, str] = {}
    for family in ("tcp", "tcp6"):
        # Without IPv6 there is no tcp6.
        with suppress(FileNotFoundError), Path("/proc/net", family).open() as table:
            for found in map(line.match, table):  # one call for all would hold the GIL
                if found is not None:
                    host, port, user = found.groups()
                    users[_readable(host), int(port, 16)] = f"local user {user}"
    return users


def _readable(host: str) -> str:
    """Return an address of /proc/net, which has words in the order of this machine."""
    raw = bytes.fromhex(host)
    if sys.byteorder == "little":
        raw = b"".join(raw[at : at + 4][::-1] for at in range(0, len(raw), 4))
    family = socket.AF_INET if len(raw) == 4 else socket.AF_INET6
    return socket.inet_ntop(family, raw).removeprefix("::ffff:")


def _duplicate(descriptor: int) -> socket.socket:
    """Return a socket of its own: gRPC may close the descriptor at any moment.

    Not of a file: closing it would release all locks that SQLite has on that file.
    """
    if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        raise OSError("not a socket")
    return socket.socket(fileno=os.dup(descriptor))  # if now of a file, stays open


def _address(peer: tuple[str, int]) -> _Address:
    return peer[0].removeprefix("::ffff:"), peer[1]
