"""Opening, closing, damage, a full disk, and when a commit is seen."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import pytest

from chaindock.errors import InvalidInput, LedgerClosed, LedgerCorrupt, LedgerError
from chaindock.ids import ChannelId, TxId
from chaindock.ledger.ledger import Ledger
from support.eventually import eventually
from support.ledgers.envelopes import CHANNEL, BlockKey, config, rwset, transaction
from support.ledgers.ledger import (
    DUPLICATE_TXID,
    VALID,
    codes,
    commit,
    history,
    judged,
    ledger_at,
    replay,
    state,
    tamper,
    value,
)

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path


async def test_everything_is_there_after_opening_again(tmp_path: Path) -> None:
    tx = transaction(rwset(writes={"k": b"1"}))
    async with ledger_at(tmp_path / "deep" / "er") as ledger:
        await ledger.commit(judged([(tx.envelope, VALID)]))
    async with ledger_at(tmp_path / "deep" / "er") as ledger:
        assert ledger.height == 2
        assert value(ledger, "k") == b"1"
        assert len(history(ledger, "k")) == 1
        assert codes(await ledger.commit(judged([(tx.envelope, VALID)]))) == [
            DUPLICATE_TXID
        ]
        await commit(ledger, rwset({"k": (1, 0)}, {"k": b"2"}))
        assert replay(ledger)[0] == {"k": b"2"}


async def test_genesis_is_asked_for_once(tmp_path: Path) -> None:
    calls = []

    def genesis() -> bytes:
        calls.append(1)
        return config()

    for _ in range(2):
        path = tmp_path / "ledger.db"
        async with Ledger(path, CHANNEL, BlockKey(), genesis):
            pass
    assert calls == [1]


@pytest.mark.parametrize("envelope", [b"", config("other"), transaction(b"").envelope])
async def test_a_wrong_genesis_leaves_an_empty_file_that_can_be_used(
    tmp_path: Path, envelope: bytes
) -> None:
    with pytest.raises(InvalidInput, match="genesis"):
        await Ledger(
            tmp_path / "ledger.db", CHANNEL, BlockKey(), lambda: envelope
        ).__aenter__()
    async with ledger_at(tmp_path) as ledger:
        assert ledger.height == 1


async def test_a_failing_genesis_is_reported_as_it_is(tmp_path: Path) -> None:
    def genesis() -> bytes:
        raise RuntimeError("no certificate")

    with pytest.raises(RuntimeError, match="no certificate"):
        await Ledger(tmp_path / "ledger.db", CHANNEL, BlockKey(), genesis).__aenter__()


async def test_another_channel_is_refused(tmp_path: Path) -> None:
    async with ledger_at(tmp_path):
        pass
    other = Ledger(tmp_path / "ledger.db", ChannelId("other"), BlockKey(), config)
    with pytest.raises(LedgerError, match="belongs to channel 'dev', not to 'other'"):
        await other.__aenter__()


async def test_another_schema_version_is_refused(tmp_path: Path) -> None:
    async with ledger_at(tmp_path):
        pass
    tamper(tmp_path / "ledger.db", "PRAGMA user_version=99")
    with pytest.raises(LedgerError, match="schema version 99") as caught:
        await ledger_at(tmp_path).__aenter__()
    assert caught.value.hint is not None
    assert not isinstance(caught.value, LedgerCorrupt)


@pytest.mark.parametrize("left", [None, b""])
async def test_a_ledger_that_is_gone_is_missed_and_not_begun_anew(
    tmp_path: Path, left: bytes | None
) -> None:
    """Issue 10: a deleted database started a new chain without a word."""
    path, marker = tmp_path / "ledger.db", tmp_path / "id" / "made"
    async with ledger_at(tmp_path):
        assert not marker.exists()
    for _ in range(2):  # a ledger from before there were markers gets one
        async with ledger_at(tmp_path, marker=marker):
            assert marker.exists()
    path.unlink() if left is None else path.write_bytes(left)
    for _ in range(2):
        with pytest.raises(
            LedgerError, match=r"ledger .*db' is missing or empty"
        ) as caught:
            await ledger_at(tmp_path, marker=marker).__aenter__()
        assert f"remove {str(marker)!r}" in (caught.value.hint or "")
        assert path.exists() == (left is not None)
    marker.unlink()
    async with ledger_at(tmp_path, marker=marker) as ledger:
        assert ledger.height == 1
        assert marker.exists()


async def test_each_value_of_1_kb_is_kept_once_beside_its_block(tmp_path: Path) -> None:
    """State, history and indexes together take less than 1.7 bytes per byte of value."""
    count, size = 1000, 1024
    async with ledger_at(tmp_path) as ledger:
        for _ in range(10):
            await commit(
                ledger,
                *(
                    rwset(writes={f"k{n:04}": random.randbytes(size)})
                    for n in random.sample(range(count), count // 10)
                ),
            )
        blocks = sum(len(ledger.get_block(n)) for n in range(ledger.height))
    taken = (tmp_path / "ledger.db").stat().st_size - blocks
    assert taken / (count * size) < 1.7


async def test_another_database_is_refused_untouched(tmp_path: Path) -> None:
    tamper(tmp_path / "ledger.db", "CREATE TABLE holidays (day)")
    before = (tmp_path / "ledger.db").read_bytes()
    with pytest.raises(LedgerError, match="not a ledger"):
        await ledger_at(tmp_path).__aenter__()
    assert (tmp_path / "ledger.db").read_bytes() == before


async def test_a_file_that_is_no_database_is_corrupt(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_bytes(b"hello" * 1000)
    with pytest.raises(LedgerCorrupt) as caught:
        await ledger_at(tmp_path).__aenter__()
    assert caught.value.hint is not None


async def test_an_unusable_path_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        LedgerError, match=r"the directory of ledger .* cannot be created"
    ):
        await ledger_at(tmp_path / "file").__aenter__()
    (tmp_path / "ledger.db").mkdir()
    with pytest.raises(LedgerError) as caught:
        await ledger_at(tmp_path).__aenter__()
    assert caught.value.hint is not None


DAMAGE = {
    "UPDATE meta SET value=7 WHERE name='height'": "state is at height 7",
    "DELETE FROM meta WHERE name='height'": "'height' is missing",
    "DELETE FROM meta WHERE name='channel'": "'channel' is missing",
    "DELETE FROM blocks WHERE number=2": "last block is 1",
    "DELETE FROM blocks": "last block is none",
    "DELETE FROM blocks WHERE number=1": "does not follow its predecessor",
    "UPDATE blocks SET hash=x'00' WHERE number=2": "hash it is indexed by",
    "UPDATE blocks SET block=x'0aff' WHERE number=2": "cannot be decoded",
    "UPDATE blocks SET block=x'' WHERE number=2": "has number 0",
}


@pytest.mark.parametrize("sql", DAMAGE)
async def test_damage_is_named(tmp_path: Path, sql: str) -> None:
    async with ledger_at(tmp_path) as ledger:
        await commit(ledger, rwset(writes={"a": b"1"}))
        await commit(ledger, rwset(writes={"a": b"2"}))
    tamper(tmp_path / "ledger.db", sql)
    with pytest.raises(LedgerCorrupt) as caught:
        await ledger_at(tmp_path).__aenter__()
    assert DAMAGE[sql] in str(caught.value)


async def test_a_flipped_byte_in_the_last_block_is_found(tmp_path: Path) -> None:
    async with ledger_at(tmp_path) as ledger:
        await commit(ledger, rwset(writes={"a": b"value"}))
        block = ledger.get_block(1)
    flipped = block.replace(b"value", b"valve")
    tamper(tmp_path / "ledger.db", "UPDATE blocks SET block=? WHERE number=1", flipped)
    with pytest.raises(LedgerCorrupt, match="data that does not fit its hash"):
        await ledger_at(tmp_path).__aenter__()


async def test_a_full_disk_is_an_error_and_nothing_is_half_written(
    tmp_path: Path,
) -> None:
    async with ledger_at(tmp_path) as ledger:
        await commit(ledger, rwset(writes={"k": b"1"}))
        db = ledger._committer._db
        assert db is not None
        await limit_pages(ledger, db, 1)  # SQLite raises it to what is in use
        big = transaction(rwset(writes={"k": b"2", "big": bytes(200_000)}))
        for _ in range(2):
            with pytest.raises(LedgerError, match="full") as caught:
                await ledger.commit(judged([(big.envelope, VALID)]))
            assert "space" in (caught.value.hint or "")
        assert ledger.height == 2
        assert state(ledger) == {"k": b"1"}
        assert ledger.find_transaction(big.tx_id) is None
        await limit_pages(ledger, db, 1 << 30)
        assert codes(await ledger.commit(judged([(big.envelope, VALID)]))) == [VALID]
        assert value(ledger, "k") == b"2"
    async with ledger_at(tmp_path) as ledger:
        assert replay(ledger)[0]["k"] == b"2"
        assert ledger.height == 3


async def limit_pages(ledger: Ledger, db: sqlite3.Connection, pages: int) -> None:
    def run() -> None:
        db.execute(f"PRAGMA max_page_count={pages}").fetchone()

    await ledger._write(run)


async def test_a_signer_that_fails_leaves_the_ledger_usable(tmp_path: Path) -> None:
    class Flaky(BlockKey):
        fails = True

        def sign(self, message: bytes) -> bytes:
            if self.fails:
                raise RuntimeError("token is locked")
            return super().sign(message)

    key = Flaky()
    async with Ledger(tmp_path / "ledger.db", CHANNEL, key, config) as ledger:
        with pytest.raises(RuntimeError, match="token is locked"):
            await commit(ledger, rwset(writes={"k": b"1"}))
        assert state(ledger) == {}
        key.fails = False
        await commit(ledger, rwset(writes={"k": b"1"}))
        assert ledger.height == 2


async def test_two_programs_cannot_both_add_a_block(tmp_path: Path) -> None:
    async with ledger_at(tmp_path) as one, ledger_at(tmp_path) as two:
        await commit(one, rwset(writes={"k": b"1"}))
        with pytest.raises(LedgerError, match="another program wrote to it"):
            await commit(two, rwset(writes={"k": b"2"}))
        await commit(one, rwset(writes={"k": b"3"}))
        assert replay(one)[0] == {"k": b"3"}


async def test_closing_finishes_what_was_asked_for_and_ends_simulators(
    tmp_path: Path,
) -> None:
    ledger = await ledger_at(tmp_path).__aenter__()
    simulator = ledger.new_simulator(TxId("t"))
    results = simulator.open_range("cc", "", "")
    pending = [
        asyncio.ensure_future(commit(ledger, rwset(writes={"k": b"1"})))
        for _ in range(5)
    ]
    await asyncio.sleep(0)  # let them be submitted
    await ledger.__aexit__()
    await ledger.__aexit__()
    assert [(await block).number for block in pending] == [1, 2, 3, 4, 5]
    for use in (
        lambda: simulator.get_state("cc", "k"),
        lambda: results.take(1),
        lambda: ledger.new_simulator(TxId("t")),
        lambda: ledger.get_block(0),
        lambda: ledger.find_transaction(TxId("t")),
    ):
        with pytest.raises(LedgerClosed):
            use()
    simulator.done()
    with pytest.raises(LedgerClosed):
        await commit(ledger, rwset())
    with pytest.raises(LedgerClosed):
        await ledger.__aenter__()


async def test_a_ledger_never_entered_closes(tmp_path: Path) -> None:
    ledger = ledger_at(tmp_path)
    with pytest.raises(LedgerClosed, match="not open"):
        ledger.new_simulator(TxId("t"))
    await ledger.__aexit__()
    assert list(tmp_path.iterdir()) == []


async def test_a_cancelled_commit_still_happens(ledger: Ledger) -> None:
    task = asyncio.ensure_future(commit(ledger, rwset(writes={"k": b"1"})))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await eventually(lambda: ledger.height == 2)
    assert value(ledger, "k") == b"1"


async def test_a_committed_value_is_seen_at_once(ledger: Ledger) -> None:
    async def write(number: int) -> None:
        key = f"k{number}"
        await commit(ledger, rwset(writes={key: b"1"}))
        assert value(ledger, key) == b"1"

    await asyncio.gather(*(write(number) for number in range(20)))


async def test_the_log_stays_short_while_a_simulation_is_held(tmp_path: Path) -> None:
    log = tmp_path / "ledger.db-wal"
    limit = 4 << 20
    async with ledger_at(tmp_path, wal_limit_bytes=limit) as ledger:
        with ledger.new_simulator(TxId("t")) as simulator:
            for _ in range(60):
                await commit(ledger, rwset(writes={"k": bytes(100_000)}))
                assert simulator.get_state("cc", "k") is None
        # SQLite itself copies the log into the file at 4 MB.
        assert log.stat().st_size <= limit + 500_000


async def test_the_log_stays_short_under_constant_load(tmp_path: Path) -> None:
    log = tmp_path / "ledger.db-wal"
    limit = 1 << 20
    async with ledger_at(tmp_path, wal_limit_bytes=limit) as ledger:
        longest = 0

        async def simulate() -> None:
            nonlocal longest
            while ledger.height < 120:
                with ledger.new_simulator(TxId("t")) as simulator:
                    await asyncio.sleep(0.005)  # what a chaincode takes
                    simulator.get_state("cc", "k")
                longest = max(longest, log.stat().st_size)

        async def write() -> None:
            while ledger.height < 120:
                await commit(ledger, rwset(writes={"k": bytes(50_000)}))

        async with asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(simulate())
            group.create_task(write())
        # Every block adds about 150 kB; SQLite alone would keep all of it.
        assert longest < 5 * limit
