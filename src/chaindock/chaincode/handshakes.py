"""Who connected to the chaincode listener and never came through TLS to a stream.

Owns:    the connections that came to nothing, by address; the log line about them.
Not:     TLS itself (gRPC does it), streams (server.py).
Entry:   Handshakes
Holds:   who is told of was seen connected to a port of the listener; one that was gone
         before anybody looked is told of nowhere; nothing here can break a handshake.
Source:  needs.md row 13; launch.md §6.3

gRPC says nothing of handshakes that fail. But it asks for the server's certificate before
each of them: then the connection is a socket of this process, and its other end is seen.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import unquote

from chaindock.telemetry import get_logger

_log = get_logger("chaincode.handshakes")
_SOCKETS: Final = Path("/dev/fd")
_INET: Final = {socket.AF_INET, socket.AF_INET6}
_MAPPED: Final = "::ffff:"
_LOOK_S: Final = 0.05
_RESTS: Final = 20
"""Who connects without end must not keep this process busy with looking: after one look
there is none for so long, or for so many times what it took."""
_MOST: Final = 1000
_TELL_S: Final = 60.0
"""Longer than gRPC lets a handshake take (server.py)."""
_MOST_TOLD: Final = 5


class Peer(NamedTuple):
    """The other end of a connection."""

    host: str
    port: int


class Handshakes:
    """What one listener saw of them; begun in threads of gRPC, else used in its loop."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ports: frozenset[int] = frozenset()
        self._begun: dict[Peer, float] = {}
        """When those began that no stream came of, monotonic; oldest first."""
        self._through: set[Peer] = set()
        self._alive: set[Peer] = set()
        """Who was connected at the last look."""
        self._rests_until = self._told = 0.0
        self._loop: asyncio.AbstractEventLoop
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, port: int) -> None:
        """Count connections to a port of this process, too; in the loop."""
        self._loop = asyncio.get_running_loop()
        self._ports |= {port}

    def close(self) -> None:
        """Watch nothing any more."""
        self._ports = frozenset()
        if self._timer is not None:
            self._timer.cancel()

    def begins(self) -> None:
        """Take note that somebody connected; from any thread, never raises."""
        with contextlib.suppress(Exception):  # TLS must go on, whatever it is
            self._look()

    def _look(self) -> None:
        now = time.monotonic()
        with self._lock:
            if now < self._rests_until:
                return
            self._rests_until = math.inf  # one at a time
            were_through = set(self._through)
        try:
            alive = _connected(self._ports)
        finally:
            took_s = time.monotonic() - now
            self._rests_until = now + max(_LOOK_S, _RESTS * took_s)
        with self._lock:
            self._through -= were_through - alive
            for peer in alive - self._through:
                if peer not in self._alive:  # else it is the one that was seen before
                    self._begun.pop(peer, None)
                    self._begun[peer] = now
            self._alive = alive
            while len(self._begun) > _MOST:
                del self._begun[next(iter(self._begun))]
        self._loop.call_soon_threadsafe(self._tell_later)

    def through(self, peer: str) -> None:
        """Take note of a stream; `peer` is whose, as gRPC writes it."""
        if not self._ports:  # without TLS nobody looks
            return
        host, _, port = unquote(peer).partition(":")[2].rpartition(":")
        with contextlib.suppress(ValueError):
            end = Peer(host.strip("[]"), int(port))
            with self._lock:
                self._begun.pop(end, None)
                self._through.add(end)

    def broken(self, host: str | None, since: float) -> int:
        """Return how many connections came to nothing, or have not come to a stream yet.

        Args:
            host: where they came from; None = anywhere.
            since: monotonic, when they began at the earliest.
        """
        with self._lock:
            return sum(
                began >= since and host in {None, peer.host}
                for peer, began in self._begun.items()
            )

    def _tell_later(self) -> None:
        if self._timer is None and self._begun and self._ports:
            self._timer = self._loop.call_later(_TELL_S, self._tell)

    def _tell(self) -> None:
        self._timer, until = None, time.monotonic() - _TELL_S / 2
        with self._lock:
            late = [at for at in self._begun.values() if at > until]
            hosts = Counter(
                peer.host
                for peer, began in self._begun.items()
                if self._told < began <= until
            )
        self._told = until
        if hosts:
            told = [f"{host} ({n})" for host, n in hosts.most_common(_MOST_TOLD)]
            _log.warning(
                "connections came to no stream: they failed in TLS, or before",
                count=hosts.total(),
                sources=", ".join(told),
            )
        if late:
            self._tell_later()


def _connected(ports: frozenset[int]) -> set[Peer]:
    """Return the other ends of connections of this process to these ports of its own.

    The sockets are somebody else's, and may be closed, or their numbers taken by others,
    at any moment: each is only asked for its two ends, and never closed or changed. (A
    copy of the number would not do: closing one of a file ends SQLite's locks on it.)
    """
    found = set()
    for entry in _SOCKETS.iterdir():
        try:
            end = socket.socket(fileno=int(entry.name))
        except OSError:  # a file, or closed meanwhile
            continue
        try:
            if end.family in _INET and end.getsockname()[1] in ports:
                host, port = end.getpeername()[:2]
                found.add(Peer(host.removeprefix(_MAPPED), port))
        except OSError:  # it listens, or has ended
            continue
        finally:
            end.detach()  # it stays whose it was
    return found
