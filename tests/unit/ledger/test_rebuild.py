"""Blocks are verified, and state and history can be made anew from them."""

from __future__ import annotations

import sqlite3
from hashlib import sha256
from random import Random
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from chaindock.errors import LedgerCorrupt, LedgerError, NotFound
from chaindock.ids import ChannelId, TxId
from chaindock.ledger.rebuild import rebuild_file
from chaindock.operations.health import Parts
from support.eventually import eventually
from support.ledgers.envelopes import CHANNEL, rwset, transaction
from support.ledgers.ledger import (
    VALID,
    codes,
    commit,
    history,
    judged,
    ledger_at,
    state,
    tamper,
)
from support.ledgers.recorded import CHANNEL as RECORDED
from support.ledgers.recorded import blocks, commit_recorded, ledger_of

if TYPE_CHECKING:
    from pathlib import Path

    from chaindock.ledger.ledger import Ledger


LONG = Random(1).randbytes(2000)


async def fill(ledger: Ledger) -> None:
    await commit(ledger, rwset(writes={"a": b"1", "b": LONG, "c": b"1"}))
    await commit(
        ledger,
        rwset({"a": (1, 0)}, {"a": b"2"}, metadata={"b": {"n": b"m"}}),
        rwset({"a": (1, 0)}, {"never": b"1"}),
        rwset(writes={"c": None}),
    )
    for key, value in (("p", b"secret"), ("q", b"gone"), ("q", b"")):
        with ledger.new_simulator(TxId("t")) as simulator:
            simulator.put_private("cc", "col", key, value)
            if not value:
                simulator.purge_private("cc", "col", key)
            tx = transaction(simulator.results())
            await ledger.keep_private(tx.tx_id, simulator.private_results())
        assert codes(await ledger.commit(judged([(tx.envelope, VALID)]))) == [VALID]
    await ledger.keep_private("to come", b"kept")


def seen(ledger: Ledger) -> Any:
    with ledger.new_simulator(TxId("t")) as simulator:
        return (
            ledger.height,
            state(ledger),
            [str(entry) for key in "abc" for entry in history(ledger, key)],
            simulator.get_metadata("cc", "b"),
            simulator.get_private("cc", "col", "p"),
            simulator.get_private("cc", "col", "q"),
            simulator.get_private_hash("cc", "col", "p"),
            ledger._reader.one("SELECT * FROM transient", ()),
        )


@pytest.mark.parametrize(
    "damage",
    [
        None,
        "DELETE FROM versions",
        "UPDATE versions SET value=x'00'",
        "UPDATE private SET superseded=NULL, value=x'00' WHERE name IS NULL",
        "DROP TABLE transactions",
        "UPDATE meta SET value=7 WHERE name='height'",
    ],
)
async def test_state_and_history_come_back_from_the_blocks(
    tmp_path: Path, damage: str | None
) -> None:
    async with ledger_at(tmp_path) as ledger:
        await fill(ledger)
        before = seen(ledger)
    if damage:
        tamper(tmp_path / "ledger.db", damage)
    assert rebuild_file(tmp_path / "ledger.db", CHANNEL) == 6
    assert [path.name for path in tmp_path.glob("ledger.db*")] == ["ledger.db"]
    async with ledger_at(tmp_path) as ledger:
        assert seen(ledger) == before
        block = await commit(ledger, rwset({"a": (2, 0), "b": (2, 0), "c": None}))
        assert codes(block) == [VALID]
    assert b"gone" not in (tmp_path / "ledger.db").read_bytes()


async def test_private_data_that_was_changed_is_not_taken_over(tmp_path: Path) -> None:
    async with ledger_at(tmp_path) as ledger:
        await fill(ledger)
    tamper(tmp_path / "ledger.db", "UPDATE private SET plain=x'00' WHERE plain NOTNULL")
    with capture_logs() as logs:
        rebuild_file(tmp_path / "ledger.db", CHANNEL)
    assert logs[0]["error"].endswith("private values that fit no hash in a block: 1")
    async with ledger_at(tmp_path) as ledger:
        assert state(ledger)["a"] == b"2"
        with ledger.new_simulator(TxId("t")) as simulator:
            assert simulator.get_private_hash("cc", "col", "p")
            with pytest.raises(LedgerError, match="Private data version = <nil>"):
                simulator.get_private("cc", "col", "p")


async def test_pages_that_cannot_be_read_come_back(tmp_path: Path) -> None:
    async with ledger_at(tmp_path) as ledger:
        await fill(ledger)
        await ledger.take_snapshot("mine")
        before = seen(ledger)
    db = sqlite3.connect(tmp_path / "ledger.db")
    sql = "SELECT rootpage FROM sqlite_master WHERE name LIKE 'versions%'"
    roots = [row[0] for row in db.execute(sql)]
    (size,) = db.execute("PRAGMA page_size").fetchone()
    db.close()
    with (tmp_path / "ledger.db").open("r+b") as file:
        for root in roots:
            file.seek((root - 1) * size)
            file.write(b"\xff" * size)
    rebuild_file(tmp_path / "ledger.db", CHANNEL)
    async with ledger_at(tmp_path) as ledger:
        assert seen(ledger) == before
        assert [mark.name for mark in await ledger.snapshots()] == ["mine"]


@pytest.mark.parametrize(
    ("damaged", "damage"),
    [
        (2, "UPDATE blocks SET block=x'0aff' WHERE number=2"),
        (2, "UPDATE blocks SET block=substr(block, 1, 60) WHERE number=2"),
        (2, "UPDATE blocks SET block='text' WHERE number=2"),
        (1, "DELETE FROM contents WHERE id>0"),
        (1, "UPDATE contents SET bytes=CAST(bytes AS INT) WHERE id>0"),
        (1, "UPDATE contents SET bytes=randomblob(2000) WHERE id>0"),
    ],
)
async def test_a_damaged_block_is_named_and_nothing_is_replaced(
    tmp_path: Path, damaged: int, damage: str
) -> None:
    async with ledger_at(tmp_path) as ledger:
        await fill(ledger)
    tamper(tmp_path / "ledger.db", damage)
    before = sha256((tmp_path / "ledger.db").read_bytes()).digest()
    with pytest.raises(LedgerCorrupt, match=f"block {damaged} cannot be decoded"):
        rebuild_file(tmp_path / "ledger.db", CHANNEL)
    assert sha256((tmp_path / "ledger.db").read_bytes()).digest() == before
    assert [path.name for path in tmp_path.glob("ledger.db.*")] == []


async def test_a_snapshot_of_a_block_that_is_missing_is_none_of_later_ones(
    tmp_path: Path,
) -> None:
    async with ledger_at(tmp_path) as ledger:
        for value, name in ((b"1", "kept"), (b"2", "lost"), (b"3", "last")):
            await commit(ledger, rwset(writes={"a": value}))
            await ledger.take_snapshot(name)
    tamper(tmp_path / "ledger.db", "DELETE FROM blocks WHERE number>=2")
    rebuild_file(tmp_path / "ledger.db", CHANNEL)
    async with ledger_at(tmp_path) as ledger:
        assert [mark.name for mark in await ledger.snapshots()] == ["kept"]
        for value in (b"4", b"5"):
            await commit(ledger, rwset(writes={"a": value}))
        with pytest.raises(NotFound, match="known: kept"):
            await ledger.revert("lost")
        await ledger.revert("kept")
        assert state(ledger) == {"a": b"1"}


async def test_an_index_whose_definition_is_damaged_is_left_out(tmp_path: Path) -> None:
    index = b'{"index":{"fields":["n"]},"ddoc":"d","name":"n"}'
    async with ledger_at(tmp_path) as ledger:
        await fill(ledger)
        before = seen(ledger)
        name = "META-INF/statedb/couchdb/indexes/n.json"
        await ledger.put_indexes("cc", {name: index})
    tamper(tmp_path / "ledger.db", "UPDATE document_indexes SET columns='[\"n'")
    with capture_logs() as logs:
        rebuild_file(tmp_path / "ledger.db", CHANNEL)
    assert logs[0]["part"] == "indexes of rich queries"
    async with ledger_at(tmp_path) as ledger:
        assert seen(ledger) == before


async def test_without_a_block_nothing_is_rebuilt(tmp_path: Path) -> None:
    async with ledger_at(tmp_path) as ledger:
        await fill(ledger)
    tamper(tmp_path / "ledger.db", "DELETE FROM blocks")
    with pytest.raises(LedgerCorrupt, match="it has no block"):
        rebuild_file(tmp_path / "ledger.db", CHANNEL)
    assert [path.name for path in tmp_path.glob("ledger.db.*")] == []


async def test_a_damaged_record_whose_bytes_became_text_is_damage(
    tmp_path: Path,
) -> None:
    """The record says what is text; Python refuses what is not UTF-8 then."""
    async with ledger_at(tmp_path) as ledger:
        await fill(ledger)
    damage = "UPDATE blocks SET block=CAST(x'01ff' AS TEXT) WHERE number=2"
    tamper(tmp_path / "ledger.db", damage)
    with pytest.raises(LedgerCorrupt) as found:
        rebuild_file(tmp_path / "ledger.db", CHANNEL)
    assert "chaindock load FILE" in str(found.value.hint)


async def test_what_is_no_ledger_of_the_channel_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="there is no ledger"):
        rebuild_file(tmp_path / "ledger.db", CHANNEL)
    async with ledger_at(tmp_path):
        pass
    with pytest.raises(LedgerError, match="belongs to channel"):
        rebuild_file(tmp_path / "ledger.db", ChannelId("other"))


async def test_recorded_blocks_give_the_same_rows_again(tmp_path: Path) -> None:
    """Also what expired, was purged, or had only its metadata changed."""
    tables = {
        "versions": "block, tx, key, superseded, labelled, metadata, value",
        "private": "block, tx, key, superseded, labelled, expires, metadata, value, "
        "name, plain",
        "transactions": "block, position, tx_id, code, timestamp",
    }

    def rows() -> Any:
        db = sqlite3.connect(tmp_path / "ledger.db")
        found = {
            table: db.execute(
                f"SELECT {columns} FROM {table} ORDER BY 1, 2, 3"
            ).fetchall()
            for table, columns in tables.items()
        }
        db.close()
        return found

    async with ledger_of(tmp_path) as ledger:
        for number in range(1, len(blocks())):
            await commit_recorded(ledger, number)
    before = rows()
    rebuild_file(tmp_path / "ledger.db", RECORDED)
    after = rows()
    for table in tables:
        assert after[table] == before[table]


async def test_stored_blocks_are_verified_in_the_background(tmp_path: Path) -> None:
    def verified(ledger: Ledger) -> str:
        ledger._reader.renew()
        sql = "SELECT value FROM meta WHERE name='verified'"
        row = ledger._reader.one(sql, ())
        return str(row[0] if row else "").partition(":")[0]

    async with ledger_at(tmp_path) as ledger:
        await eventually(lambda: verified(ledger) == "1")
        await fill(ledger)
        assert ledger.damage is None
    async with ledger_at(tmp_path) as ledger:
        await eventually(lambda: verified(ledger) == "6")
        await commit(ledger, rwset(writes={"a": b"3"}))
        await commit(ledger, rwset(writes={"a": b"4"}))
    tamper(tmp_path / "ledger.db", "UPDATE blocks SET block=x'0aff' WHERE number=6")
    async with ledger_at(tmp_path) as ledger:
        await eventually(lambda: ledger.damage is not None)
        assert "block 6 cannot be decoded" in str(ledger.damage)
        assert (await commit(ledger, rwset(writes={"a": b"5"}))).number == 8


async def test_after_a_revert_other_blocks_are_no_damage(tmp_path: Path) -> None:
    async with ledger_at(tmp_path) as ledger:
        await commit(ledger, rwset(writes={"a": b"1"}))
        await ledger.take_snapshot("one")
        await commit(ledger, rwset(writes={"a": b"2"}))
    async with ledger_at(tmp_path) as ledger:
        await ledger.revert("one")
        for _ in range(3):
            await commit(ledger, rwset(writes={"a": b"3"}))
    async with ledger_at(tmp_path) as ledger:
        await eventually(lambda: ledger._committer._verified is not None)
        assert ledger._committer._verified is not None
        await eventually(lambda: ledger._committer._verified.number == 5)  # type: ignore[union-attr]
        assert ledger.damage is None


async def test_health_tells_that_a_block_is_damaged(tmp_path: Path) -> None:
    async with ledger_at(tmp_path) as ledger:
        await fill(ledger)
    tamper(tmp_path / "ledger.db", "UPDATE blocks SET block=x'0aff' WHERE number=2")
    tamper(tmp_path / "ledger.db", "DELETE FROM meta WHERE name='verified'")
    async with ledger_at(tmp_path) as ledger:
        none: Any = None
        channel: Any = SimpleNamespace(ledger=ledger)
        parts = Parts({"mychannel": channel}, none, none, none, tuple)
        await eventually(lambda: ledger.damage is not None)
        for _ in range(2):
            with pytest.raises(LedgerCorrupt, match="block 2 cannot be decoded"):
                await parts._check_ledger()
