"""Addresses that a test makes, for a contract to try to reach; none is anybody else's."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

from support.need import missing, need_image
from support.nodes.node import eventually
from support.nodes.remains import ask

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chaindock.controllers.docker.engine import Engine

_SERVE = (
    "import socket,sys; s=socket.create_server((sys.argv[1],int(sys.argv[2])));"
    "print('up',flush=True)\nwhile True: s.accept()[0].close()"
)
_PORT = 7777
PATIENCE_S = 10.0
_LISTEN = (
    "$s=IO::Socket::INET->new(LocalPort=>7777,Listen=>5) or die; while(1){$s->accept}"
)


def need_root() -> None:
    """Require the rights to make networks of this machine."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        missing("root and the program ip are needed to make networks")


@contextlib.contextmanager
def listener(address: str) -> Iterator[tuple[str, str]]:
    """Listen on an address of this machine; yield its TCP and UDP targets."""
    with (
        socket.create_server((address, 0)) as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
    ):
        port = tcp.getsockname()[1]
        udp.bind((address, port))
        ends = [
            threading.Thread(target=_accept, args=(tcp,), daemon=True),
            threading.Thread(target=_echo, args=(udp,), daemon=True),
        ]
        for end in ends:
            end.start()
        yield f"tcp:{address}:{port}", f"udp:{address}:{port}"
        tcp.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):  # it has no other end
            udp.shutdown(socket.SHUT_RDWR)


def _accept(server: socket.socket) -> None:
    with contextlib.suppress(OSError):  # closed
        while True:
            server.accept()[0].close()


def _echo(server: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            data, sender = server.recvfrom(64)
            if not data:  # shut down
                return
            server.sendto(data, sender)


@contextlib.contextmanager
def elsewhere() -> Iterator[str]:
    """Yield a TCP target in a network namespace of its own, reached from here."""
    need_root()
    mark = secrets.token_hex(3)
    name, inside, outside = f"cd-{mark}", f"cdi{mark}", f"cdo{mark}"
    third = 1 + secrets.randbelow(250)
    here, there = f"10.213.{third}.1", f"10.213.{third}.2"
    _ip("netns", "add", name)
    server = None
    try:
        _ip("link", "add", outside, "type", "veth", "peer", "name", inside)
        _ip("link", "set", inside, "netns", name)
        _ip("addr", "add", f"{here}/30", "dev", outside)
        _ip("link", "set", outside, "up")
        _ip("-n", name, "addr", "add", f"{there}/30", "dev", inside)
        _ip("-n", name, "link", "set", inside, "up")
        _ip("-n", name, "route", "add", "default", "via", here)
        server = subprocess.Popen(
            [
                *("ip", "netns", "exec", name),
                *(sys.executable, "-c", _SERVE, there, str(_PORT)),
            ],
            stdout=subprocess.PIPE,
        )
        assert server.stdout is not None
        assert server.stdout.readline() == b"up\n"
        yield f"tcp:{there}:{_PORT}"
    finally:
        if server is not None:
            server.kill()
            server.communicate()
        subprocess.run(["ip", "netns", "del", name], check=False)
        subprocess.run(
            ["ip", "link", "del", outside], check=False, stderr=subprocess.DEVNULL
        )


def _ip(*args: str) -> None:
    subprocess.run(["ip", *args], check=True, timeout=PATIENCE_S)


@contextlib.contextmanager
def in_other_network(mark: str) -> Iterator[str]:
    """Yield a TCP target in a container on a second bridge network of that name."""
    label = {"org.chaindock.test": mark}

    async def make(engine: Engine) -> str:
        body = {"Name": mark, "Driver": "bridge", "Labels": label}
        network = await engine.create_network(body)
        inside = {
            "Image": need_image("runtime"),
            "Cmd": ["perl", "-MIO::Socket::INET", "-e", _LISTEN],
            "Labels": label,
            "HostConfig": {"NetworkMode": network},
        }
        container = await engine.create_container(None, inside)
        await engine.start_container(container)
        state = await engine.inspect_container(container)
        (net,) = state["NetworkSettings"]["Networks"].values()
        return f"tcp:{net['IPAddress']}:7777"

    async def clear(engine: Engine) -> None:
        for one in await engine.find_containers(f"org.chaindock.test={mark}"):
            await engine.remove_container(one)
        await engine.remove_network(mark)

    try:
        yield ask(make)
    finally:
        ask(clear)


def answers(target: str) -> bool:
    """Whether a target is reached from here."""
    kind, _, rest = target.partition(":")
    host, _, port = rest.rpartition(":")
    sort = socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, sort) as probe:
        probe.settimeout(2)
        try:
            probe.connect((host, int(port)))
            if kind == "udp":
                probe.send(b"there?")
                return probe.recv(64) == b"there?"
        except OSError:
            return False
        return True


def wait_for(target: str) -> None:
    """Wait until a target is reached from here."""
    eventually(lambda: answers(target), f"{target} answers", PATIENCE_S)
