"""The account of what was started: complete, and never used against a stranger."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from chaindock.container.attempt import Attempt
from chaindock.errors import StartFailed
from chaindock.ids import Ccid
from chaindock.processes.child import Record
from chaindock.processes.spawner import Records
from chaindock.processes.table import find
from support.doubles.scripts import hang, say

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.nodes.process_backend import ProcessBackend

CCID = Ccid("cc:" + "0" * 64)


@pytest.fixture
def stranger() -> Iterator[psutil.Process]:
    """A process group that is nobody's."""
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as process:
        yield psutil.Process(process.pid)
        process.kill()


def record(pid: int, created: float, node_id: str = "n") -> Record:
    return Record("run1", node_id, CCID, "attempt", "run", pid, created)


def started(env: dict[str, str], **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["/bin/sleep", "60"], env=env, start_new_session=True, **options
    )


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_beginning_of_an_environment_is_read_and_of_the_own_user_only():
    """A program can make its environment as large as it likes."""
    marks = {"CHAINDOCK_NODE": "n-marked", "CHAINDOCK_RUN": "r"}
    filling = {f"x{number}": "x" * 100_000 for number in range(4)}
    others = [{"CHAINDOCK_NODE": "other"}, {"x": "CHAINDOCK_NODE=n-marked"}]
    programs = [started(env) for env in (marks, {**marks, **filling}, *others)]
    programs.append(started({**filling, **marks}))
    if os.geteuid() == 0:
        programs.append(started(marks, user=65534))
    try:
        limit = time.monotonic() + 10
        while len(find("n-marked", []).get("r", [])) < 2:
            assert time.monotonic() < limit
            time.sleep(0.01)
        found = {process.pid for process in find("n-marked", [])["r"]}
        assert found == {programs[0].pid, programs[1].pid}
    finally:
        for program in programs:
            program.kill()
            program.wait()


def test_records_are_read_back(tmp_path: Path):
    records = Records(tmp_path, "n")
    records.write(record(1, 2.5))
    assert records.all() == [record(1, 2.5)]
    records.remove(record(1, 2.5))
    records.remove(record(1, 2.5))
    assert list(tmp_path.iterdir()) == []


def test_damaged_and_foreign_records_are_passed_over(tmp_path: Path):
    (tmp_path / "1-a.json").write_text("{")
    (tmp_path / "2-b.json").write_text(json.dumps({"run_id": "x"}))
    (tmp_path / "3-c.json").write_text("[]")
    Records(tmp_path, "other").write(record(4, 1.0, "other"))
    assert Records(tmp_path, "n").all() == []


def test_a_recorded_leader_is_found_by_its_start_time(stranger: psutil.Process):
    found = find("n", [record(stranger.pid, stranger.create_time())])
    assert [p.pid for p in found["run1"]] == [stranger.pid]


def test_a_reused_pid_is_not_found(stranger: psutil.Process):
    assert find("n", [record(stranger.pid, stranger.create_time() - 60)]) == {}


def test_this_process_is_never_found():
    own = psutil.Process()
    assert find("n", [record(own.pid, own.create_time())]) == {}


async def test_reap_leaves_a_reused_pid_alone_and_forgets_the_record(
    backend: ProcessBackend, stranger: psutil.Process
):
    builder = await backend.builder()
    folder = backend.root(backend.node_id) / "process" / "runs" / backend.node_id
    Records(folder, backend.node_id).write(
        record(stranger.pid, stranger.create_time() - 60, backend.node_id)
    )
    assert await builder.reap() == 0
    assert stranger.is_running()
    assert list(folder.iterdir()) == []


async def test_reap_leaves_what_this_controller_runs_alone(backend: ProcessBackend):
    builder = await backend.builder()
    instance, package = await backend.built(hang(), builder=builder)
    async with backend.within():
        await instance.start(backend.peer, Attempt(package.ccid))
        before = await backend.owned(backend.node_id)
        assert await builder.reap() == 0
        assert await backend.owned(backend.node_id) == before
        await instance.stop(1)


async def test_nothing_runs_without_a_record(
    backend: ProcessBackend, monkeypatch: pytest.MonkeyPatch
):
    instance, package = await backend.built(say("ran"))

    def full(self: Records, record: Record) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Records, "write", full)
    attempt = Attempt(package.ccid)
    with pytest.raises(StartFailed, match="No space left"):
        await instance.start(backend.peer, attempt)
    async with backend.within():
        await backend.until_gone()
    assert attempt.tail() == []


CRASHING_NODE = """
import asyncio, os, sys
from pathlib import Path
from support.nodes.process_backend import ProcessBackend
from chaindock.container.attempt import Attempt
from support.doubles.backend import built
from support.doubles.scripts import fork, hang

async def main(folder, node_id):
    backend = ProcessBackend(Path(folder))
    builder = await backend.open_builder(node_id)
    package = await backend.packages.make(fork(), hang(), build=[fork()])
    print("ready", flush=True)
    while True:
        instance = await built(builder, package)
        await instance.start(backend.peer, Attempt(package.ccid))
        await instance.stop(0)
        package = await backend.packages.make(fork(), hang(), build=[fork()])

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("delay_s", [0.0, 0.004, 0.011, 0.023, 0.041])
async def test_a_node_killed_at_any_instant_leaves_nothing_after_reap(
    backend: ProcessBackend, delay_s: float
):
    """Builds, starts and stops in a loop are cut off by SIGKILL."""
    source = str(backend.folder)
    node = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        CRASHING_NODE,
        source,
        backend.node_id,
        stdout=asyncio.subprocess.PIPE,
        env={"PYTHONPATH": ":".join(sys.path), "PATH": "/usr/bin:/bin"},
    )
    assert node.stdout is not None
    assert await node.stdout.readline() == b"ready\n"
    time.sleep(delay_s)  # noqa: ASYNC251  # the point is when it is killed
    node.kill()
    await node.communicate()
    async with backend.within():
        await (await backend.builder()).reap()
        assert await backend.owned(backend.node_id) == set()
