"""`ledger verify` and `ledger rebuild` on the command line."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from chaindock.ledger.ledger import Ledger
from chaindock.node.home import Home
from support.ledgers.envelopes import CHANNEL, BlockKey, config, rwset
from support.ledgers.ledger import commit, state, tamper


def made(home: Any) -> Any:
    """A home with a ledger of three blocks; return how to look at its state."""
    place = Home(home)
    place.prepare()
    file = place.ledgers / f"{CHANNEL}.db"

    async def fill() -> None:
        async with Ledger(file, CHANNEL, BlockKey(), config) as ledger:
            await commit(ledger, rwset(writes={"a": b"1"}))
            await commit(ledger, rwset(writes={"a": b"2"}))

    async def look() -> Any:
        async with Ledger(file, CHANNEL, BlockKey(), config) as ledger:
            return state(ledger)

    asyncio.run(fill())
    return file, lambda: asyncio.run(look())


def test_without_a_ledger_there_is_nothing_to_check(run):
    for act in ("verify", "rebuild"):
        result = run("ledger", act)
        assert result.exit_code == 5
        assert "has no ledger" in result.stderr


def test_a_damaged_state_is_made_anew(run, home):
    file, look = made(home)
    result = run("ledger", "verify")
    assert f"channel {CHANNEL}, 3 blocks: no damage found" in result.stderr
    tamper(file, "UPDATE meta SET value=2 WHERE name='height'")
    result = run("ledger", "verify")
    assert result.exit_code != 0
    assert "the state is at height 2, there are 3 blocks" in result.stderr
    assert "chaindock ledger rebuild" in result.stderr
    tamper(file, "UPDATE versions SET value=x'00'")
    result = run("ledger", "rebuild", "--json")
    assert json.loads(result.stdout) == {CHANNEL: 3}
    assert "recorded height 2, its blocks give 3\n" in result.stderr
    assert run("ledger", "verify").exit_code == 0
    assert look() == {"a": b"2"}


def test_a_rebuild_tells_that_the_last_blocks_are_missing(run, home):
    file, look = made(home)
    tamper(file, "DELETE FROM blocks WHERE number=2")
    result = run("ledger", "rebuild")
    assert result.exit_code == 0
    assert "recorded height 3, its blocks give 2: block 2 and" in result.stderr
    assert look() == {"a": b"1"}
    result = run("ledger", "rebuild")
    assert "recorded" not in result.stderr


def test_a_damaged_block_is_named(run, home):
    file, _ = made(home)
    tamper(file, "UPDATE blocks SET block=x'0aff' WHERE number=1")
    for act in ("verify", "rebuild"):
        result = run("ledger", act)
        assert result.exit_code != 0
        assert "block 1 cannot be decoded" in result.stderr
        assert "chaindock load" in result.stderr
