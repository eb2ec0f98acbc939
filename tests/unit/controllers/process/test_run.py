"""A running chaincode: what it is told, how it ends, what it cannot leave behind."""

from __future__ import annotations

import asyncio
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from chaindock.container.attempt import Attempt
from chaindock.container.contracts import Cause, ClientTls, Dial
from chaindock.errors import ImageNotFound, StartFailed
from support.doubles.backend import WatchedAttempt
from support.doubles.scripts import hang, ignore_term, leave, say
from support.holds import watched
from support.nodes.process_backend import ProcessBackend

if TYPE_CHECKING:
    from chaindock.container.contracts import Instance
    from chaindock.controllers.process.instance import ProcessInstance
    from chaindock.packaging.store import StoredPackage

SHELL = {"PWD", "OLDPWD", "SHLVL", "_"}


async def scripted(
    backend: ProcessBackend, text: str, *, serves: bool = False
) -> tuple[Instance, StoredPackage]:
    """Build, then put `text` in the place of main.sh."""
    instance, package = await backend.built(hang(), serves=serves)
    folder = next(backend.root(backend.node_id).glob("cache/builds/[!.]*/output"))
    (folder / "main.sh").write_text(text)
    return instance, package


async def ran(
    backend: ProcessBackend, text: str, *, serves: bool = False, tls=None
) -> WatchedAttempt:
    instance, package = await scripted(backend, text, serves=serves)
    attempt = WatchedAttempt(package)
    peer = replace(
        backend.peer, tls=tls, logging={"CORE_CHAINCODE_LOGGING_LEVEL": "info"}
    )
    async with backend.within():
        await instance.start(peer, attempt)
        await instance.wait()
        await instance.stop(0)  # returns when the group is gone, too
    return attempt


async def test_who_calls_back_is_told_this_and_nothing_else(
    backend: ProcessBackend, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("NODE_OPTIONS", "--inspect")
    monkeypatch.setenv("PYTHONPATH", "/evil")
    attempt = await ran(backend, "env")
    env = dict(line.split("=", 1) for line in attempt.of("stdout"))
    assert set(env) - SHELL == {
        "PATH",
        "HOME",
        "TMPDIR",
        "LANG",
        "CORE_CHAINCODE_ID_NAME",
        "CORE_CHAINCODE_LOGGING_LEVEL",
        "CORE_PEER_TLS_ENABLED",
        "CORE_PEER_LOCALMSPID",
        "SCRIPT_CCID",
        "CHAINDOCK_NODE",
        "CHAINDOCK_RUN",
    }
    assert env["CORE_CHAINCODE_ID_NAME"] == env["SCRIPT_CCID"] == attempt.ccid
    assert env["CORE_PEER_TLS_ENABLED"] == "false"
    assert env["CORE_PEER_LOCALMSPID"] == "DevMSP"
    toolchain = Path(shutil.which("sh") or "").parent
    assert env["PATH"].split(":")[0] == str(toolchain)
    assert "/bin" in env["PATH"].split(":")


async def test_who_is_dialled_gets_address_and_id_under_every_known_name(
    backend: ProcessBackend,
):
    attempt = await ran(backend, 'echo "listen $1"; env', serves=True)
    lines = attempt.of("stdout")
    listen = lines[0].removeprefix("listen ")
    env = dict(line.split("=", 1) for line in lines[1:])
    assert listen.startswith("unix:/")
    assert env["CHAINCODE_SERVER_ADDRESS"] == env["CORE_CHAINCODE_ADDRESS"] == listen
    names = ("CHAINCODE_ID", "CORE_CHAINCODE_ID", "CORE_CHAINCODE_ID_NAME")
    assert {env[name] for name in names} == {attempt.ccid}


async def test_tls_files_exist_while_it_runs_and_go_with_it(backend: ProcessBackend):
    tls = ClientTls("key", "cert", "root")
    text = "cat $CORE_TLS_CLIENT_KEY_FILE; echo; echo $CORE_PEER_TLS_ROOTCERT_FILE"
    attempt = await ran(backend, f"echo $CORE_PEER_TLS_ENABLED; {text}", tls=tls)
    enabled, key, root = attempt.of("stdout")
    assert (enabled, key) == ("true", "key")
    assert "upload" in attempt.entered
    assert not Path(root).exists()


async def test_limits_and_stdin(backend: ProcessBackend):
    attempt = await ran(backend, "ulimit -c; ulimit -n; cat; echo end")
    assert attempt.of("stdout") == ["0", "4096", "end"]


async def test_its_home_is_private_and_removed(backend: ProcessBackend):
    text = "echo $HOME; touch $HOME/x $TMPDIR/y; stat -c %a $HOME/.. $HOME $TMPDIR"
    attempt = await ran(backend, text)
    home, *modes = attempt.of("stdout")
    assert modes == ["700"] * 3
    assert not Path(home).exists()
    assert await backend.owned(backend.node_id) == set()


async def test_directories_without_end_do_not_keep_its_end_from_being_told(
    backend: ProcessBackend,
):
    """`cd` by one level each, so that no path is too long for the shell."""
    deep = "i=0; while [ $i -lt 1500 ]; do mkdir d; cd -P d; i=$((i+1)); done"
    attempt = await ran(backend, f"cd $TMPDIR; {deep} 2>/dev/null; echo made")
    assert attempt.of("stdout") == ["made"]
    assert await backend.owned(backend.node_id) == set()


@pytest.mark.parametrize(
    "text",
    [
        "setsid sh -c 'while :; do sleep 1; done' &",
        "env -i sleep 60 &",
        "(trap '' TERM; sleep 60) & (sleep 60; echo) &",
        "setsid setsid nohup sleep 60 >/dev/null 2>&1 &",
    ],
)
async def test_nothing_survives_its_leader(backend: ProcessBackend, text: str):
    await ran(backend, f"{text}\necho up")
    assert await backend.owned(backend.node_id) == set()


async def test_a_stop_in_a_hurry_cuts_a_patient_one_short(backend: ProcessBackend):
    instance, package = await backend.built(say("up"), ignore_term())
    attempt = WatchedAttempt(package)
    async with backend.within():
        await instance.start(backend.peer, attempt)
        await attempt.until(lambda: bool(attempt.lines))
        patient = asyncio.ensure_future(instance.stop(600))
        await asyncio.sleep(0.05)
        await instance.stop(0)
        await patient


async def test_a_cancelled_stop_still_ends_the_run(backend: ProcessBackend):
    instance, package = await backend.built(say("up"), ignore_term())
    attempt = WatchedAttempt(package)
    async with backend.within():
        await instance.start(backend.peer, attempt)
        await attempt.until(lambda: bool(attempt.lines))
        stop = asyncio.ensure_future(instance.stop(600))
        await asyncio.sleep(0.05)
        stop.cancel()
        assert (await instance.wait()).signal == 9


async def test_the_exit_is_still_known_after_stop(backend: ProcessBackend):
    instance, package = await backend.built(leave(7))
    async with backend.within():
        await instance.start(backend.peer, Attempt(package.ccid))
        await instance.wait()
        await instance.stop(1)
        result = await instance.wait()
    assert (result.code, result.text) == (7, "exited with 7")


async def test_a_missing_program_is_said_before_anything_starts(
    backend: ProcessBackend, tmp_path: Path
):
    instance, package = await backend.built(hang())
    build = as_process(instance)._build
    launch = replace(build.launch, argv=("{output}/chaincode",))
    as_process(instance)._build = replace(build, launch=launch)
    with pytest.raises(StartFailed, match=r"chaincode' of .* does not exist") as caught:
        await instance.start(backend.peer, Attempt(package.ccid))
    facts = caught.value.facts
    assert (facts["cause"], facts["exit_code"]) == ("not-found", 127)
    assert await backend.owned(backend.node_id) == set()


def as_process(instance: Instance) -> ProcessInstance:
    return instance  # type: ignore[return-value]


async def test_a_build_that_is_gone_asks_for_another(backend: ProcessBackend):
    instance, package = await backend.built(hang())
    for path in backend.root(backend.node_id).glob("cache/builds/*/launch.json"):
        path.unlink()
    with pytest.raises(ImageNotFound):
        await instance.start(backend.peer, Attempt(package.ccid))
    again = await backend._open[0].build(package, Attempt(package.ccid))
    await again.start(backend.peer, Attempt(package.ccid))


async def test_a_listener_that_cannot_listen_leaves_nothing(tmp_path: Path):
    """Without a sandbox; in one, the program's network has a listener of its own."""

    class Refuses:
        async def address_on(self, host: str, *names: str) -> str:
            raise StartFailed(f"cannot listen on {host}")

        async def serve(self, *_: object) -> None:
            raise NotImplementedError

    async with ProcessBackend(tmp_path, sandbox="off") as backend:
        instance, package = await backend.built(hang())
        peer = replace(backend.peer, listener=Refuses())
        with pytest.raises(StartFailed, match="cannot listen"):
            await instance.start(peer, Attempt(package.ccid))
        assert await backend.owned(backend.node_id) == set()


async def test_leaving_the_controller_ends_what_runs(backend: ProcessBackend):
    builder = await backend.open_builder(backend.node_id)
    instance, package = await backend.built(say("up"), hang(), builder=builder)
    attempt = WatchedAttempt(package)
    async with backend.within():
        await instance.start(backend.peer, attempt)
        await attempt.until(lambda: bool(attempt.lines))
        await backend.close_builder(builder)
        assert await backend.owned(backend.node_id) == set()
        assert (await instance.wait()).code == 0


async def test_every_dialled_run_gets_its_own_socket(backend: ProcessBackend):
    builder = await backend.builder()
    pair = [await backend.built(hang(), serves=True, builder=builder) for _ in range(2)]
    answers = [await i.start(backend.peer, Attempt(p.ccid)) for i, p in pair]
    assert all(isinstance(answer, Dial) for answer in answers)
    assert answers[0] != answers[1]
    for instance, _ in pair:
        await instance.stop(1)


async def test_a_flood_leaves_the_loop_responsive(backend: ProcessBackend):
    instance, package = await scripted(backend, "yes")
    async with backend.within():
        await instance.start(backend.peer, Attempt(package.ccid))
        with watched() as held:
            await asyncio.sleep(0.5)
        await instance.stop(0)
    assert held.cpu_s < 0.25, held.what


async def test_how_a_run_ended_is_known_before_what_it_left_is_cleared_up(
    backend: ProcessBackend,
):
    """Issue 9, 4: a pipe that stays open must not turn a crash into "stopped"."""
    instance, package = await scripted(
        backend, "env -i setsid setsid sleep 30 &\necho panic\nexit 3"
    )
    attempt = WatchedAttempt(package)
    await instance.start(backend.peer, attempt)
    async with asyncio.timeout(30):
        ended = asyncio.Event()
        attempt.watch(lambda event: ended.set() if event.kind == "output" else None)
        await ended.wait()
        began = asyncio.get_running_loop().time()
        found = await instance.wait()
        assert asyncio.get_running_loop().time() - began < 1.5
    assert (found.cause, found.code) == (Cause.EXITED, 3)
    assert attempt.of("stdout") == ["panic"]
    await instance.stop(1)
    assert (await instance.wait()).cause is Cause.EXITED


def _lives(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("grace_s", [0, 5])
async def test_a_crash_is_no_stop_though_a_stop_follows_at_once(
    backend: ProcessBackend, grace_s: float
):
    """Issue 9, 4: the loop may hear of the end only after it was told to stop."""
    instance, package = await scripted(backend, "echo up; sleep 0.3; kill -SEGV $$")
    attempt = WatchedAttempt(package)
    await instance.start(backend.peer, attempt)
    await attempt.until(lambda: bool(attempt.lines))
    pid = int(instance.describe()["pid"])
    while _lives(pid):
        time.sleep(0.005)  # noqa: ASYNC251  # the loop must hear nothing meanwhile
    await instance.stop(grace_s)
    found = await instance.wait()
    assert (found.cause, found.signal) == (Cause.SIGNAL, 11)
