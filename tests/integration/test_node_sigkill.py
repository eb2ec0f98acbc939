"""A node that is killed at any instant comes back with all that it had acknowledged."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.lives import Lives, lives_of
from support.node import BACKENDS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = [
    pytest.mark.slow,
    pytest.mark.golang,
    pytest.mark.network,
    pytest.mark.timeout(900),
]

ROUNDS = {"load": 8, "start": 4, "build": 3, "upgrade": 3, "down": 2}


@pytest.fixture(params=BACKENDS)
async def lives(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Lives]:
    async with lives_of(request.param, tmp_path) as found:
        yield found


async def test_twenty_kills_lose_nothing_and_leave_nothing(lives: Lives) -> None:
    rounds = [what for what, times in ROUNDS.items() for _ in range(times)]
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
