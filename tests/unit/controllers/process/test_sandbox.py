"""A contract in a sandbox: what it sees, what it reaches, and that limits still hold."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from chaindock.container.contracts import Cause, ClientTls
from chaindock.controllers.process.instance import SANDBOX
from chaindock.errors import StartFailed
from chaindock.processes import sandbox
from chaindock.processes.child import SETTLE_S, Child, Program
from chaindock.processes.sandbox import MOST_CONNECTIONS, find_bwrap
from support.doubles.backend import WatchedAttempt
from support.doubles.scripts import hang
from support.eventually import eventually
from support.nodes.process_backend import ProcessBackend, need_bwrap, started

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


PROBE = """\
import json, os, socket, sys
def can(act):
    try:
        act()
        return "yes"
    except OSError as error:
        return error.strerror
def dial(family, address):
    with socket.socket(family) as one:
        one.settimeout(2)
        one.connect(address)
host, _, port = sys.argv[1].rpartition(":")
print(json.dumps({
    "writes": [f for f in FOLDERS if can(lambda: open(f + "/probe", "w")) == "yes"],
    "reads": [f for f in FILES if can(lambda: open(f, "rb").read(1)) == "yes"],
    "sees": [f for f in PLACES if os.path.exists(f)],
    "pids": [int(one) for one in os.listdir("/proc") if one.isdigit()],
    "node": can(lambda: dial(socket.AF_INET, (host, int(port)))),
    "other": can(lambda: dial(socket.AF_INET, ("127.0.0.1", OTHER))),
    "unix": can(lambda: dial(socket.AF_UNIX, SOCKET)),
    "outside": can(lambda: dial(socket.AF_INET, ("192.0.2.1", 80))),
}), flush=True)
"""


@pytest.fixture(autouse=True)
def _needs_bwrap() -> None:
    need_bwrap()


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[ProcessBackend]:
    async with ProcessBackend(tmp_path, sandbox="require") as backend:
        yield backend


class Listens:
    """A listener that echoes, and counts who is connected."""

    def __init__(self) -> None:
        self.connected = 0
        self._servers: list[asyncio.Server] = []

    async def address_on(self, host: str, *names: str) -> str:
        self._servers.append(await asyncio.start_server(self._echo, host, 0))
        return f"{host}:{self._servers[-1].sockets[0].getsockname()[1]}"

    async def serve(self, listener: socket.socket, most: int, *names: str) -> None:
        self.most, self.names = most, names
        async with await asyncio.start_server(self._echo, sock=listener) as server:
            await server.serve_forever()

    async def _echo(self, reader: Any, writer: Any) -> None:
        self.connected += 1
        writer.write(b"hello ")
        with contextlib.suppress(ConnectionError):  # as of any program that is killed
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()
        self.connected -= 1

    async def aclose(self) -> None:
        for server in self._servers:
            server.close()
            await server.wait_closed()


async def test_it_sees_and_reaches_its_own_and_the_node_alone(
    backend: ProcessBackend, tmp_path: Path
):
    secret = tmp_path / "secret"
    secret.write_text("x")
    there = tmp_path / "s"
    with socket.socket() as other, socket.socket(socket.AF_UNIX) as unix:
        other.bind(("127.0.0.1", 0))
        other.listen()
        os.chdir(tmp_path)  # a socket's path is short
        unix.bind("s")
        unix.listen()
        head = {
            "FOLDERS": ["/", "/etc", "/usr", "/dev", "/proc/sys/kernel", "/tmp", "."],
            "FILES": ["/etc/shadow", str(secret), "/etc/hosts", "/proc/sysrq-trigger"],
            "PLACES": [str(tmp_path / "secret"), "/root/.ssh", "/run/docker.sock"],
            "OTHER": other.getsockname()[1],
            "SOCKET": str(there),
        }
        lines = "\n".join(f"{name} = {value!r}" for name, value in head.items())
        text = f"exec {os.path.realpath(sys.executable)} -I - $1 <<'END'\n{lines}\n{PROBE}END"
        async with backend.within():
            backend.listener = Listens()  # type: ignore[assignment]
            instance, attempt = await started(backend, text)
            await instance.wait()
            await instance.stop(0)
    assert attempt.of("stderr") == []
    seen = json.loads(attempt.of("stdout")[0])
    assert seen["writes"] == ["/tmp"]
    assert seen["reads"] == ["/etc/hosts"]
    assert seen["sees"] == []
    assert len(seen["pids"]) <= 3
    assert seen["node"] == "yes"
    assert seen["other"] == "Connection refused"
    assert seen["unix"] == "No such file or directory"
    assert seen["outside"] == "Network is unreachable"


TALK = """\
import socket, sys, threading, time
host, _, port = sys.argv[1].rpartition(":")
end, data = socket.create_connection((host, int(port))), bytes(range(256)) * 16384
got = end.recv(6)
threading.Thread(target=end.sendall, args=(data,), daemon=True).start()
back = b""
while len(back) < len(data):
    back += end.recv(1 << 20)
print(got, back == data, flush=True)
time.sleep(60)
"""


async def test_its_connections_reach_the_node_and_are_to_be_bounded(
    backend: ProcessBackend,
):
    python = os.path.realpath(sys.executable)
    text = f"exec {python} -I - $1 <<'END'\n{TALK}END"
    backend.listener = listener = Listens()  # type: ignore[assignment]
    async with backend.within():
        instance, attempt = await started(backend, text)
        await attempt.until(lambda: bool(attempt.lines))
        assert attempt.of("stdout") == ["b'hello ' True"]
        assert listener.connected == 1
        assert (listener.most, listener.names) == (MOST_CONNECTIONS, ("127.0.0.1",))
        await instance.stop(0)
        await eventually(lambda: listener.connected == 0)


async def test_a_kill_is_told_before_what_is_left_has_ended(
    backend: ProcessBackend, monkeypatch: pytest.MonkeyPatch
):
    """The program outlives bubblewrap for a moment: a call that it gets then is lost."""
    told, clear_up = asyncio.Event(), Child._clear_up

    async def late(child: Child, sweep: Any) -> None:
        if child.program.sandbox:
            await told.wait()
        await clear_up(child, sweep)

    monkeypatch.setattr(Child, "_clear_up", late)
    async with backend.within():
        instance, attempt = await started(backend, "echo begun; exec sleep 60")
        await attempt.until(lambda: bool(attempt.lines))
        os.kill(int(instance.describe()["pid"]), signal.SIGKILL)
        try:
            async with asyncio.timeout(SETTLE_S / 2):
                found = await instance.wait()
        finally:
            told.set()
        await backend.until_gone()
    assert found.signal == signal.SIGKILL


async def test_a_stop_while_it_begins_leaves_nothing_and_runs_nothing(
    backend: ProcessBackend,
):
    async with backend.within():
        instance, attempt = await started(backend, "echo ran; exec sleep 60")
        await instance.stop(20)  # before the loop could let it begin
        found = await instance.wait()
        await backend.until_gone()
    assert attempt.lines == []
    assert found.cause is Cause.STOPPED


@pytest.mark.parametrize(
    ("text", "code", "signal"),
    [
        ("exit 7", 7, None),
        ("exit 255", 255, None),
        ("kill -SEGV $$", None, 11),
        ("kill -KILL $$", None, 9),
    ],
)
async def test_its_end_is_told_as_without_a_sandbox(
    backend: ProcessBackend, text: str, code: int | None, signal: int | None
):
    async with backend.within():
        instance, _ = await started(backend, text)
        found = await instance.wait()
    assert (found.code, found.signal) == (code, signal)


async def test_sigterm_reaches_it_and_its_answer_counts(backend: ProcessBackend):
    text = "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.1; done"
    async with backend.within():
        instance, attempt = await started(backend, text)
        await attempt.until(lambda: bool(attempt.lines))
        await instance.stop(20)
        found = await instance.wait()
    assert attempt.of("stdout") == ["up", "bye"]
    assert (found.code, found.cause) == (3, Cause.STOPPED)


async def test_what_escapes_its_session_ends_with_it(backend: ProcessBackend):
    text = "env -i setsid setsid sleep 61 >/dev/null 2>&1 &\nsleep 0.2; exit 0"
    async with backend.within():
        instance, _ = await started(backend, text)
        await instance.wait()
        await instance.stop(0)
        found = await asyncio.create_subprocess_exec("pgrep", "-f", "^sleep 61$")
        assert await found.wait() == 1


@pytest.mark.parametrize("how", ["sleep", "setsid sleep"])
async def test_too_many_processes_end_it(backend: ProcessBackend, how: str):
    text = f"i=0; while [ $i -lt 700 ]; do {how} 60 & i=$((i+1)); done; wait"
    async with backend.within():
        instance, _ = await started(backend, text)
        found = await instance.wait()
    assert "512 processes" in found.reason


def test_a_home_behind_a_link_and_the_directories_of_a_node_are_no_toolchain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shown: list[Path] = []
    monkeypatch.setattr(sandbox, "_find_bwrap", lambda: (("bwrap",), ""))
    monkeypatch.setenv("HOME", str(tmp_path / "home" / "me"))
    for name in ("var/home/me/bin", "tools/bin", "node/bin", "node/runs/a"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "home").symlink_to("var/home")
    for name in ("var/home/me", "tools", "node"):
        (tmp_path / name / "bin" / "tool").touch()
        shown.append(tmp_path / name / "bin" / "tool")
    private = tmp_path / "node" / "runs" / "a"
    program = Program(["/bin/true"], cwd=private, env={}, kind="run")
    made = sandbox.in_sandbox(program, private, shown, None)
    assert made.sandbox is not None
    made.sandbox.close()
    assert str(tmp_path / "tools") in made.argv
    assert str(tmp_path / "var" / "home" / "me") not in made.argv
    assert str(tmp_path / "node") not in made.argv


def test_a_bubblewrap_that_could_not_be_run_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
):
    def refused(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    sandbox._find_bwrap.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", refused)
        words, why = find_bwrap("auto")
        assert (words, why.partition(":")[0]) == ((), "bubblewrap cannot be run")
    assert find_bwrap("auto")[0]


async def test_it_finds_the_files_that_it_is_told_of(backend: ProcessBackend):
    text = 'cat "$CORE_TLS_CLIENT_KEY_FILE"; ls -d "$HOME" "$TMPDIR" >/dev/null && echo'
    instance, package = await backend.built(hang())
    folder = next(backend.root(backend.node_id).glob("cache/builds/[!.]*/output"))
    (folder / "main.sh").write_text(text)
    attempt = WatchedAttempt(package)
    async with backend.within():
        tls = ClientTls("key", "cert", "root")
        await instance.start(replace(backend.peer, tls=tls), attempt)
        await instance.wait()
        await instance.stop(0)
    assert attempt.lines == [("stdout", "key")]


async def test_ps_says_what_is_in_force(backend: ProcessBackend):
    async with backend.within():
        instance, _ = await started(backend, "exec sleep 60")
        assert instance.describe()["isolation"] == SANDBOX
        await instance.stop(0)


@pytest.mark.parametrize("wanted", ["auto", "require"])
async def test_where_there_is_none_it_is_said_or_an_error(
    tmp_path: Path, wanted: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sandbox, "_PLACES", "/nowhere")
    # What a thread of an earlier test still finds must not be remembered.
    monkeypatch.setattr(sandbox, "_find_bwrap", sandbox._find_bwrap.__wrapped__)
    async with ProcessBackend(tmp_path, sandbox=wanted) as backend, backend.within():
        if wanted == "require":
            with pytest.raises(StartFailed, match="bubblewrap is not installed"):
                await started(backend, "exec sleep 60")
        else:
            # Wherever tests before this one have sent the log.
            with capture_logs() as logs:
                instance, _ = await started(backend, "exec sleep 60")
            told = instance.describe()
            assert told["isolation"].startswith("no isolation")
            assert "bubblewrap is not installed" in told["isolation"]
            assert "chaincode runs without a sandbox" in [one["event"] for one in logs]
            await instance.stop(0)


async def test_a_sandbox_that_cannot_be_made_ends_the_run_before_the_program(
    backend: ProcessBackend, monkeypatch: pytest.MonkeyPatch
):
    broken = ((*find_bwrap("auto")[0], "--ro-bind", "/nowhere", "/nowhere"), "")
    monkeypatch.setattr(sandbox, "_find_bwrap", lambda: broken)
    async with backend.within():
        instance, attempt = await started(backend, "echo ran")
        found = await instance.wait()
        await instance.stop(0)
    assert (found.code, attempt.of("stdout")) == (1, [])
    assert found.cause is Cause.NOT_STARTED
    assert found.text == "exited with 1 (its sandbox could not be made)"
    assert "/nowhere" in attempt.of("stderr")[0]
