"""Programs in namespaces of their own, made by bubblewrap: what they see and reach.

A program sees a read-only system, its build, and its own directory, which lies in memory
and is of limited size; no home, no socket, no other process. Its network is a loopback
interface on which the node listens.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from mmap import PAGESIZE
from pathlib import Path
from typing import Final

from chaindock.aio import Tasks, readable
from chaindock.container.contracts import CallbackListener
from chaindock.processes.child import Child, Program

MOST_CONNECTIONS: Final = 4
"""Connections of one run to the node at a time; further ones wait."""
PEER: Final = "127.0.0.1:7052"
"""What a program in a sandbox dials: nothing else is in its network."""
_PLACES: Final = "/usr/bin:/bin:/usr/local/bin"
_SYSTEM: Final = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
# Of /etc, what programs look up; nothing that only root may read.
_ETC: Final = """alternatives ca-certificates crypto-policies fonts group hosts ld.so.cache
ld.so.conf ld.so.conf.d localtime mime.types nsswitch.conf passwd pki/ca-trust
pki/tls/certs protocols services ssl/cert.pem ssl/certs ssl/openssl.cnf timezone"""
_NAMESPACES: Final = """--unshare-user --unshare-ipc --unshare-pid --unshare-net
--unshare-uts --unshare-cgroup-try --cap-drop ALL --die-with-parent"""
# The program may trace bubblewrap's process 1 beside it. So that one lies in an outer pid
# namespace, whose process 1 the program cannot see, and ends with it whatever it does.
# /etc is there whole, which is fast; / is not: bubblewrap fails if a mount below it goes.
_OUTER: Final = """--unshare-user --unshare-pid --die-with-parent --bind /proc /proc
--dev /dev --dir /tmp --ro-bind /etc /etc"""
# Runs in the sandbox and becomes the program. It makes the listening socket in the network
# of the program and hands it to the node, with the directory of the program. bubblewrap inherits that SIGTERM is ignored: if
# SIGTERM ended bubblewrap, the program would be killed without its grace. So SIGTERM gets
# its default here. One that came earlier is lost, and the node then closes the channel.
# The limit of open files comes after the sending: Linux refuses to send a descriptor if
# all processes of the user have more on their way than the sender's limit, and contracts
# may have as many on their way as the limit of a contract.
_ENTER: Final = """\
import _signal, _socket as s, os, resource, sys
channel, port = s.socket(s.AF_UNIX, s.SOCK_STREAM, 0, int(sys.argv[1])), int(sys.argv[2])
most = int(sys.argv[3])
files = [os.open(sys.argv[4], os.O_PATH)]
if port:
    listener = s.socket(s.AF_INET, s.SOCK_STREAM)
    listener.bind(("127.0.0.1", port))
    listener.listen(16)
    files.append(listener.fileno())
sent = b"".join(one.to_bytes(4, sys.byteorder) for one in files)
_signal.signal(_signal.SIGTERM, _signal.SIG_DFL)
channel.sendmsg([b"1"], [(s.SOL_SOCKET, s.SCM_RIGHTS, sent)])
os.close(files[0])
if most:
    most = min(most, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
if not channel.recv(1):
    os._exit(143)
channel.close()
if port:
    listener.close()
os.execv(sys.argv[5], sys.argv[5:])
"""


def find_bwrap(wanted: str) -> tuple[tuple[str, ...], str]:
    """Return how bubblewrap is called, or () and why there is no sandbox.

    `wanted` is auto, require or off. The first call blocks for some milliseconds.
    """
    if wanted == "off":
        return (), "off"
    try:
        return _find_bwrap()
    except (OSError, subprocess.TimeoutExpired) as error:  # the next call tries again
        return (), f"bubblewrap cannot be run: {error}"


@functools.cache
def _find_bwrap() -> tuple[tuple[str, ...], str]:
    tool = shutil.which("bwrap", path=_PLACES) if sys.platform == "linux" else None
    if tool is None:
        return (), "bubblewrap is not installed"
    why = ""
    for more in (("--disable-userns",), ()):  # only bubblewrap 0.8 and newer have it
        words = (tool, *_NAMESPACES.split(), *more)
        binds = [word for one in _SYSTEM for word in ("--ro-bind-try", one, one)]
        argv = [tool, *_OUTER.split(), *binds, *words, *binds, "--proc", "/proc"]
        argv.append("/bin/true")
        done = subprocess.run(argv, capture_output=True, timeout=20, check=False)
        if done.returncode == 0:
            return words, ""
        why = done.stderr.decode(errors="replace").strip().removeprefix("bwrap: ")
    return (), f"bubblewrap: {why}"


def in_sandbox(
    program: Program,
    private: Path,
    seen: Iterable[Path],
    listener: CallbackListener | None,
    serves: str = "",
    tmp_bytes: int = 0,
) -> Program:
    """Return what starts `program` in a sandbox; only where `find_bwrap` found one.

    It can read what is `seen`, its build and its programs with their toolchains among
    that, and write to `private` alone. What it writes there is in memory, of
    `tmp_bytes` at most (0 = half of the memory of this machine), and gone with the
    sandbox. `listener` takes its connections to `PEER`; None = it serves, at `serves`:
    `unix:` and what may be another path of its own directory.
    """
    sandbox = Sandbox(listener, private, program.inherits)
    python, temp = Path(sys.executable).resolve(), str(private / "tmp")
    places = [Path(one) for one in _SYSTEM]
    homes = {Path.home(), Path("/root"), Path("/home"), private, program.cwd}
    homes |= {one.resolve() for one in homes}
    for path in sorted({p for one in (*seen, python) for p in _visible(one, homes)}):
        if not any(path.is_relative_to(place) for place in places):
            places.append(path)  # an outer directory is mounted before an inner one
    etc = [Path("/etc", one) for one in _ETC.split()]
    etc += Path("/etc").glob("java-*")
    own = {private}
    if serves:
        own.add(Path(serves.removeprefix("unix:")).parent)
    looked_up = [str(w) for one in etc for w in ("--ro-bind-try", one, one)]
    mounts = [str(w) for one in places for w in ("--ro-bind-try", one, one)]
    inner = _find_bwrap()[0]
    # An older bubblewrap has neither option; then LimitWatch alone keeps the size.
    newer = "--disable-userns" in inner
    mode = ("--perms", "0700") if newer else ()
    size = max(tmp_bytes // PAGESIZE, 1) * PAGESIZE
    sized = (*mode, "--size", str(size)) if newer and tmp_bytes else mode
    outer = [*mounts, *sized, "--tmpfs", str(private)]
    outer += [*mode, "--dir", temp, *mode, "--dir", str(private / "home")]
    outer += ["--ro-bind-try", str(private / "tls"), str(private / "tls")]
    mounts += [str(word) for one in own for word in ("--bind", private, one)]
    words = [
        *("--proc", "/proc", "--ro-bind", "/proc/sys", "/proc/sys", "--dev", "/dev"),
        # Of one size with its directory, and counted with it.
        *("--bind", temp, "/dev/shm", "--bind", temp, "/tmp"),  # noqa: S108
        *(*looked_up, *mounts),
        *("--remount-ro", "/dev", "--remount-ro", "/", "--chdir", str(program.cwd)),
        *("--", str(python), "-I", "-S", "-c", _ENTER, str(sandbox.theirs)),
        *(sandbox.port, str(program.max_open_files), str(private)),
    ]
    return replace(
        program,
        argv=[inner[0], *_OUTER.split(), *outer, *inner, *words, *program.argv],
        cwd=Path("/"),
        inherits=(sandbox.theirs,),
        sandbox=sandbox,
    )


def _visible(path: Path, homes: Iterable[Path]) -> Iterable[Path]:
    """Yield `path`, the targets of its links, and the directory of its toolchain.

    A directory that holds one of `homes`, or lies directly in one, is not a toolchain's.
    """
    yield path
    if path.is_dir():
        return
    while path.is_symlink():
        path = Path(os.path.normpath(path.parent / path.readlink()))
        yield path
    path = path.resolve()
    top = path.parent.parent if path.parent.name == "bin" else path.parent
    if not any(top in (one, *one.parents) or top.parent == one for one in homes):
        yield top


class Sandbox:
    """What the node has of the sandbox of one program, which begins when `serve` runs.

    The node takes the program's connections by `listener`; None = the program serves on
    `cc.sock` in `private`, where the node finds a link to that in the sandbox.
    `theirs` is a descriptor that the program inherits; `entered` says whether the sandbox
    is there and the program begins. Copies of `held`, locks of its build, stay open until
    the program has ended: it could open an inherited one again, for writing.
    """

    def __init__(
        self, listener: CallbackListener | None, private: Path, held: Iterable[int] = ()
    ) -> None:
        self.entered = False
        self._private, self._folder = private, -1
        self._held = [os.dup(fd) for fd in held]
        self._listener = listener
        self.port = PEER.rpartition(":")[2] if listener else "0"
        self._ours, self._inherited = socket.socketpair()
        self._ours.setblocking(False)
        self.theirs = self._inherited.fileno()

    def close(self) -> None:
        """Close both ends, and what is held. Idempotent."""
        self._ours.close()
        self._inherited.close()
        self.release()

    def release(self) -> None:
        """Close what is held, before anybody learns that the program is gone."""
        self._folder = -1
        while self._held:
            os.close(self._held.pop())

    def kept(self) -> tuple[int, int]:
        """Return the bytes and the number of files in the directory of the program."""
        if self._folder < 0:
            return 0, 0
        now = os.fstatvfs(self._folder)
        return (now.f_blocks - now.f_bfree) * now.f_frsize, now.f_files - now.f_ffree

    async def serve(self, child: Child) -> None:
        """Let the program begin, and take its connections until it has ended."""
        self._inherited.close()
        with contextlib.closing(self):
            async with Tasks("sandbox") as tasks:
                _ = tasks.start(self._enter(child), f"connections of {child.pid}")
                await child.wait_gone()

    async def _enter(self, child: Child) -> None:
        with self._ours as channel:
            await readable(channel)
            _, files, _, _ = socket.recv_fds(channel, 1, 2)
            self._held += files[:1]
            # Without a free descriptor one is missing.
            if len(files) == 1 + bool(self._listener) and not child.stopping:
                self._folder = files[0]
                if self._listener is None:
                    there = f"/proc/self/fd/{self._folder}/cc.sock"
                    (self._private / "cc.sock").symlink_to(there)
                self.entered = True
                channel.send(b"1")
        if self._listener is not None and len(files) > 1:
            dialled = socket.socket(fileno=files[1])
            host = PEER.rpartition(":")[0]
            await self._listener.serve(dialled, MOST_CONNECTIONS, host)
