"""A node that is killed at any instant comes back with all that it had acknowledged."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from chaindock.packaging.writer import write_package
from chaindock.platforms.registry import recognise
from chaindock.processes.sandbox import find_bwrap
from support.faults.matrix import ROUNDS
from support.nodes.lives import Lives, lives_of
from support.nodes.node import BACKENDS, FIXTURES, PROCESS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = [
    pytest.mark.slow,
    pytest.mark.golang,
    pytest.mark.network,
    pytest.mark.timeout(900),
]

KILLS = {"load": 8, "start": 4, "build": 3, "upgrade": 3, "down": 2}
"""How often each is done in `make faults`; `make test` does a quarter of that."""


@pytest.fixture(params=BACKENDS)
async def lives(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Lives]:
    async with lives_of(request.param, tmp_path) as found:
        yield found


async def test_kills_at_any_instant_lose_nothing_and_leave_nothing(
    lives: Lives,
) -> None:
    rounds = [
        what
        for what, times in KILLS.items()
        for _ in range(times if ROUNDS > 1 else -(-times // 4))
    ]
    lives.rng.shuffle(rounds)
    await lives.begin("a", "b")
    for number, what in enumerate(rounds):
        try:
            await lives.round(number, what)
        except (Exception, pytest.fail.Exception) as error:
            before = rounds[number - 1] if number else "begin"
            error.add_note(f"round {number}: {what}, after {before}")
            raise
    await lives.start(len(rounds))
    async with lives.node.admin() as admin:
        await lives.audit.read(admin, again=True)
    account = lives.account
    assert len(account.told) > 10 * len(rounds)
    print(
        f"{len(account.told)} acknowledged, {account.lost} in doubt, "
        f"{len(account.refused)} refused; ready after, and then the next call took: "
        + ", ".join(f"{ready_s:.2f}+{call_s:.2f}" for ready_s, call_s in lives.times)
    )


@pytest.mark.nodejs
async def test_chaincode_that_outlives_a_killed_node_is_ended_by_the_next(
    lives: Lives, request: pytest.FixtureRequest
) -> None:
    """What ignores signals and the end of its stream, and what has children."""
    for name in ("ignores-sigterm", "forks-a-grandchild"):
        await lives.deploy(packaged(name, lives.folder), name)
    for _ in range(3 if ROUNDS > 1 else 2):
        await lives.end()
        left = await lives.traces.all()
        # A sandbox ends with its node.
        confined = request.node.callspec.id == PROCESS and find_bwrap("auto")[0]
        assert left or confined, "nothing outlived the node: this test shows nothing"
        await lives.node.up()
        assert not left & await lives.traces.all()
        async with lives.node.admin() as admin:
            for name in ("ignores-sigterm", "forks-a-grandchild"):
                assert await admin.value(name, "who")
        runs = await lives.traces.runs()
        assert [len(found) for found in runs.values()] == [1, 1]
    await lives.traces.check_foreign()
    await lives.node.run("down")
    assert await lives.traces.all() == set()


def packaged(name: str, folder: Path) -> Path:
    """Return the package of a chaincode that misbehaves."""
    source, package = FIXTURES / "hostile" / name, folder / f"{name}.tar.gz"
    with package.open("wb") as out:
        write_package(recognise(source).select(source), name, out)
    return package
