"""What a crash leaves in a home, made on purpose, and what the next start does with it."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
from typing import TYPE_CHECKING

import psutil
import pytest

from chaindock.errors import (
    LedgerError,
    NodeAlreadyRunning,
    NodeNotRunning,
    NotFound,
    StartFailed,
    StorageError,
)
from chaindock.lifecycle.definitions import Approval
from chaindock.lifecycle.states import Placement, Target
from chaindock.lifecycle.targets import TargetState
from chaindock.packaging.store import PackageStore
from support.nodes.killable import CrashNode
from support.nodes.lives import NAME, Lives, lives_of
from support.nodes.node import environment
from support.nodes.traces import files_of
from support.shims.versions import version

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.golang, pytest.mark.network]

FIRST_STARTS = 8
BUILD_S = 300


@pytest.fixture
async def lives(tmp_path: Path) -> AsyncIterator[Lives]:
    """A node that is down, with version a of a chaincode, after a kill."""
    async with lives_of("process", tmp_path) as found:
        await found.begin("a")
        yield found


@pytest.fixture
async def empty(tmp_path: Path) -> AsyncIterator[CrashNode]:
    """A node that never was up."""
    env = environment("process", tmp_path / "tmp")
    async with CrashNode(tmp_path / "home", env, "process") as node:
        yield node


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with process:
        yield process
        process.kill()


@pytest.mark.timeout(BUILD_S)
async def test_a_package_without_its_definition_is_removed(lives: Lives) -> None:
    """Killed between the launch of version b and the commit of its definition."""
    home, package = lives.node.home, version(lives.folder, "b")
    (old,) = PackageStore(home / "packages").list()
    new = PackageStore(home / "packages").add(package)
    with TargetState(home / "desired.db") as targets:
        targets.place(new.ccid, Placement("auto", "process", "as asked"))
    await lives.start(1)
    assert list(await lives.traces.runs()) == [old]
    assert PackageStore(home / "packages").list() == [old]
    await lives.deploy(package)
    assert lives.sequence == 2
    await lives.call("after")


@pytest.mark.timeout(BUILD_S)
async def test_a_definition_that_was_committed_counts(lives: Lives) -> None:
    """Killed right after the commit of the definition of version b."""
    await lives.node.up()
    (first,) = PackageStore(lives.node.home / "packages").list()
    await lives.deploy(version(lives.folder, "b"))
    await lives.end()
    home = lives.node.home
    # The package of the old version goes only after the commit.
    PackageStore(home / "packages").add(version(lives.folder, "a"))
    await lives.start(2)
    (running,) = await lives.traces.runs()
    assert running != first
    assert PackageStore(home / "packages").list() == [running]


@pytest.mark.timeout(BUILD_S)
async def test_what_was_removed_stays_removed(lives: Lives) -> None:
    """Killed between forgetting a chaincode and stopping it."""
    (ccid,) = PackageStore(lives.node.home / "packages").list()
    with TargetState(lives.node.home / "desired.db") as targets:
        targets.set("mychannel", Approval(NAME, 1, "1.0", ccid), Target.REMOVED)
    await lives.node.up()
    assert await lives.traces.runs() == {}
    assert not list((lives.node.home / "packages").iterdir())
    async with lives.node.admin() as admin:
        assert await admin.get("/chaincodes") == {"chaincodes": []}
        with pytest.raises(NotFound, match="is not installed"):
            await admin.call("query", NAME, "get", "x")
    await lives.deploy(version(lives.folder, "a"))
    assert lives.sequence == 2
    async with lives.node.admin() as admin:
        assert await admin.value(NAME, "get", "u-probe-first") == "first"


@pytest.mark.timeout(BUILD_S)
async def test_what_was_stopped_stays_stopped(lives: Lives) -> None:
    await lives.node.up()
    async with lives.node.admin() as admin:
        await admin.post(f"/chaincodes/{NAME}/stop")
    await lives.end()
    await lives.node.up()
    async with lives.node.admin() as admin:
        with pytest.raises(StartFailed, match="was stopped"):
            await admin.call("query", NAME, "get", "x")
        assert await lives.traces.runs() == {}
        await lives.node.run("start", NAME)
        assert await admin.value(NAME, "get", "u-probe-first") == "first"


@pytest.mark.timeout(BUILD_S)
async def test_a_second_node_of_a_home_is_turned_away_and_harms_nothing(
    lives: Lives,
) -> None:
    await lives.node.up()
    await lives.settled()
    before, pid = await lives.traces.all(), lives.node.pid
    assert (await lives.node.run("up", "-d"))["pid"] == pid
    assert await lives.traces.all() == before
    await lives.call("after")


async def test_of_many_starts_at_once_one_wins(empty: CrashNode) -> None:
    starts = [empty.run("up", "-d", "--backend", "process") for _ in range(5)]
    results = await asyncio.gather(*starts, return_exceptions=True)
    won = [found for found in results if isinstance(found, dict)]
    assert len({found["pid"] for found in won}) == 1
    lost = [found for found in results if not isinstance(found, dict)]
    assert {type(error) for error in lost} <= {NodeAlreadyRunning}
    async with empty.admin() as admin:
        assert (await admin.get("/status"))["pid"] == won[0]["pid"]


async def test_socket_and_lock_of_a_killed_node_are_no_node(empty: CrashNode) -> None:
    await empty.up()
    empty.kill()
    await empty.gone()
    assert (empty.home / "admin.sock").exists()
    assert (empty.home / "node.lock").read_text().strip() == str(empty.pid)
    with pytest.raises(NodeNotRunning):
        await empty.run("status")
    assert (await empty.run("down"))["stopped"] is False
    await empty.up()
    assert (await empty.run("down"))["stopped"] is True


async def test_a_lock_that_names_another_program_by_now_harms_it_not(
    empty: CrashNode, stranger: subprocess.Popen[bytes]
) -> None:
    await empty.up()
    empty.kill()
    await empty.gone()
    lock = empty.home / "node.lock"
    lock.write_text(f"{stranger.pid}\n")
    before = psutil.Process(stranger.pid).create_time() - 60
    os.utime(lock, (before, before))
    assert (await empty.run("down", "--force"))["stopped"] is False
    await empty.up()
    await empty.run("down", "--force")
    assert stranger.poll() is None


@pytest.mark.parametrize("content", ["", "not a number\n", "\0" * 100, "-1\n", "0\n"])
async def test_a_torn_lock_is_no_obstacle(empty: CrashNode, content: str) -> None:
    empty.home.mkdir()
    (empty.home / "node.lock").write_text(content)
    assert (await empty.run("down", "--force"))["stopped"] is False
    await empty.up()


async def test_a_first_start_may_be_killed_at_any_instant(empty: CrashNode) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(FIRST_STARTS):
        await empty.up_here()
        await asyncio.sleep(rng.uniform(0.2, 1.0))
        empty.kill()
        await empty.gone()
    await empty.up()
    found = [path for path in files_of(empty.home) if "organizations" not in path]
    assert found == [
        "admin.sock",
        "connections",
        "connections/connection-org1.json",
        "connections/connection-org1.yaml",
        "connections/peer",
        "connections/peer/core.yaml",
        "desired.db",
        "ledgers",
        "node.json",
        "node.lock",
        "output",
        "packages",
        "process",
        "process/runs",
        f"process/runs/{empty.node_id}",
    ]
    names = [path.name for path in (empty.home / "organizations").rglob("*")]
    assert not [name for name in names if name.startswith(".")]


async def test_files_that_were_made_and_not_written_are_begun_anew(
    empty: CrashNode,
) -> None:
    (empty.home / "ledgers").mkdir(parents=True)
    for name in ("desired.db", "ledgers/mychannel.db", "node.new", "admin.sock"):
        (empty.home / name).touch()
    await empty.up()
    async with empty.admin() as admin:
        assert (await admin.get("/status"))["height"] == 1


async def test_a_ledger_that_was_deleted_is_missed(empty: CrashNode) -> None:
    await empty.up()
    await empty.run("down")
    (empty.home / "ledgers" / "mychannel.db").unlink()
    with pytest.raises(
        LedgerError, match=r"mychannel\.db' is missing or empty"
    ) as raised:
        await empty.up()
    assert "restore" in (raised.value.hint or "")
    (empty.home / "organizations" / "mychannel.ledger").unlink()
    await empty.up()


async def test_a_damaged_file_is_named_and_left_alone(empty: CrashNode) -> None:
    await empty.up()
    await empty.run("down")
    path = empty.home / "desired.db"
    path.write_bytes(b"damaged" * 1000)
    with pytest.raises(StorageError, match=r"desired\.db") as raised:
        await empty.up()
    assert "move it away" in (raised.value.hint or "")
    assert path.read_bytes() == b"damaged" * 1000
    assert json.loads((empty.home / "node.json").read_text())["node_id"]
