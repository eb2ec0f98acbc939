"""A disk that is full costs the calls that need it, nothing that was acknowledged."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from chaindock.errors import ChaindockError, LedgerError, NodeError, StorageError
from support.nodes.killable import CrashNode
from support.nodes.lives import NAME, Lives, lives_of
from support.nodes.load import Told
from support.shims.versions import version

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.slow,
    pytest.mark.golang,
    pytest.mark.network,
    pytest.mark.timeout(300),
]

MIB = 1024 * 1024
SIZE = 24 * MIB
VALUE = "x" * 100_000
PATIENCE = 400
"""Calls until the disk has to be full: each is more than its value."""


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    mount = (
        "mount",
        "-t",
        "tmpfs",
        "-o",
        f"size={SIZE},mode=700",
        "tmpfs",
        str(folder),
    )
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no small file system can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(("umount", "--lazy", str(folder)), check=True)


@pytest.fixture
async def lives(tmp_path: Path, small: Path) -> AsyncIterator[Lives]:
    """A node that is up, its home on the small file system."""
    async with lives_of("process", tmp_path, home=small / "home") as found:
        await found.begin("a")
        await found.start(0)
        yield found


class Ballast:
    """A file that leaves no room for anything else."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "ballast"

    def fill(self) -> None:
        with self._path.open("ab", buffering=0) as file:
            for size in (MIB, 4096, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(b"\0" * size)

    def drop(self) -> None:
        self._path.unlink()


async def fill_with_transactions(lives: Lives) -> ChaindockError:
    """Submit until one fails."""
    async with lives.node.admin() as admin:
        for number in range(PATIENCE):
            key = f"u-big-{number}"
            lives.account.asked[key] = VALUE
            try:
                answer = await admin.call("invoke", NAME, "put", key, VALUE)
            except ChaindockError as error:
                return error
            told = Told(answer["tx_id"], answer["block"], answer["code"], key)
            lives.account.told.append(told)
    raise AssertionError("the disk is not full yet")


async def check(lives: Lives) -> None:
    async with lives.node.admin() as admin:
        await lives.audit.read(admin)
        lives.audit.check_account(lives.account)
        await lives.audit.check_state(admin)


async def test_a_node_outlasts_a_full_disk(lives: Lives, small: Path) -> None:
    pid, ballast = lives.node.pid, Ballast(small)
    error = await fill_with_transactions(lives)
    assert isinstance(error, LedgerError)
    assert "full" in error.message
    assert "free some space" in (error.hint or "")
    assert len(lives.account.told) > 10
    ballast.fill()
    with pytest.raises(LedgerError, match="full"):  # noqa: PT012
        for _ in range(500):  # the log of the database may have room left in itself
            await lives.call("while it is full")
    for _ in range(2):
        with pytest.raises(LedgerError, match="full"):
            await lives.call("while it is full")
    await check(lives)  # reading goes on
    ballast.drop()
    enlarge(small)  # it was the ledger itself that filled it
    await lives.call("with room again")
    await check(lives)
    async with lives.node.admin() as admin:
        assert (await admin.get("/status"))["pid"] == pid


def enlarge(folder: Path) -> None:
    options = f"remount,size={2 * SIZE}"
    subprocess.run(("mount", "-o", options, str(folder)), check=True)


async def test_deploying_without_room_changes_nothing(
    lives: Lives, small: Path
) -> None:
    ballast, package = Ballast(small), version(lives.folder, "b")
    ballast.fill()
    before = await lives.traces.runs()
    for _ in range(2):
        with pytest.raises(StorageError, match=r"No space left"):
            await lives.deploy(package)
    async with lives.node.admin() as admin:
        with pytest.raises(StorageError, match="full"):
            await admin.post(f"/chaincodes/{NAME}/stop")
        assert await admin.value(NAME, "get", "u-probe-first") == "first"
    assert await lives.traces.runs() == before
    ballast.drop()
    await lives.settled()
    await lives.deploy(package)
    assert lives.sequence == 2
    await lives.call("after")
    await lives.end()
    await lives.start(1)


async def test_chaincode_is_started_again_when_there_is_room(
    lives: Lives, small: Path
) -> None:
    ballast = Ballast(small)
    ballast.fill()
    async with lives.node.admin() as admin:
        (found,) = (await admin.get("/chaincodes"))["chaincodes"]
        pid = found["details"]["pid"]
        os.kill(int(pid), 9)
        # What the dead one had may be enough for another.
        with clear_errors():
            await admin.call("query", NAME, "get", "u-probe-first")
        async with asyncio.timeout(20):  # until the node has noticed the end
            while found["details"].get("pid") == pid:
                await asyncio.sleep(0.05)
                (found,) = (await admin.get("/chaincodes"))["chaincodes"]
    ballast.drop()
    await lives.call("after")
    await lives.settled()


async def test_a_node_that_was_killed_starts_when_there_is_room(
    lives: Lives, small: Path
) -> None:
    ballast = Ballast(small)
    await lives.end()
    ballast.fill()
    with clear_errors():
        await lives.node.up()
        await check(lives)
    await lives.node.take_down()  # it may be up, and without its chaincode
    ballast.drop()
    await lives.start(1)


async def test_a_new_node_without_room_says_so(lives: Lives, small: Path) -> None:
    ballast, new = Ballast(small), small / "new"
    ballast.fill()
    async with CrashNode(new, lives.node.env, "process") as node:
        with pytest.raises((NodeError, StorageError, LedgerError)) as raised:
            await node.up()
        assert understandable(raised.value), raised.value
        ballast.drop()
        await node.up()


@contextlib.contextmanager
def clear_errors() -> Iterator[None]:
    """What fails in the block, if anything does, fails with what a user understands."""
    failed: ChaindockError | None = None
    try:
        yield
    except ChaindockError as error:
        failed = error
    assert failed is None or understandable(failed), failed


def understandable(error: ChaindockError) -> bool:
    unplanned = "unexpected" in error.message or "ended before" in error.message
    return bool(error.hint) and not unplanned
