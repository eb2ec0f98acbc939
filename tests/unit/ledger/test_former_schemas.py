"""Ledgers of earlier releases are taken over, or left as they were."""

from __future__ import annotations

import gzip
import sqlite3
from hashlib import sha256
from pathlib import Path

import pytest

from chaindock.errors import LedgerCorrupt, LedgerError
from chaindock.ids import TxId
from chaindock.ledger.ledger import TxLocation
from chaindock.ledger.reader import LedgerReader
from support.ledgers.envelopes import rwset
from support.ledgers.ledger import (
    VALID,
    codes,
    commit,
    history,
    ledger_at,
    replay,
    state,
)

FORMER = Path(__file__).parents[2] / "fixtures" / "ledgers"


def change(path: Path, sql: str, *values: object) -> None:
    """Tamper with a closed ledger."""
    db = sqlite3.connect(path / "ledger.db", isolation_level=None)
    db.execute(sql, values)
    db.close()


@pytest.mark.parametrize("schema", [1, 2, 3, 4, 5])
async def test_a_ledger_of_a_former_schema_is_taken_over_with_all_it_holds(
    tmp_path: Path, schema: int
) -> None:
    """What an earlier release wrote is still there after the tables were changed."""
    file = FORMER / f"schema-{schema}.db.gz"
    (tmp_path / "ledger.db").write_bytes(gzip.decompress(file.read_bytes()))
    for _ in range(2):
        async with ledger_at(tmp_path) as ledger:
            assert ledger.height >= 4
            assert state(ledger) == {"a": b"2", "b": bytes(2000), "é": b"x"}
            assert [entry.value for entry in history(ledger, "a")] == [b"2", b"1"]
            deleted, written = history(ledger, "gone")
            assert (deleted.is_delete, written.value) == (True, b"1")
            assert history(ledger, "never") == []
            found = ledger.find_transaction(TxId(written.tx_id))
            assert found == TxLocation(1, 0, VALID)
            with ledger.new_simulator(TxId("t")) as simulator:
                assert simulator.get_metadata("cc", "b") == {"n": b"m"}
            known = rwset({"a": (2, 0), "b": (2, 0), "é": (3, 1)})
            assert codes(await commit(ledger, known)) == [VALID]
            assert replay(ledger)[0] == state(ledger)


@pytest.mark.parametrize("schema", [3, 4, 5])
async def test_private_data_snapshots_and_limits_are_taken_over(
    tmp_path: Path, schema: int
) -> None:
    """Values and names, purges, block-to-live, what waits for its block."""
    file = FORMER / f"schema-{schema}.db.gz"
    (tmp_path / "ledger.db").write_bytes(gzip.decompress(file.read_bytes()))
    async with ledger_at(tmp_path) as ledger, LedgerReader(ledger._path) as reader:

        def get(collection: str, key: str) -> bytes | None:
            with ledger.new_simulator(TxId("t")) as simulator:
                found = simulator.get_private_hash("cc", collection, key)
                value = simulator.get_private("cc", collection, key)
                assert found == (value and sha256(value).digest())
                return value

        assert get("col", "p") == b"secret"
        assert len(get("col", "l") or b"") == 1000
        assert get("col", "r") is None
        assert get("short", "q") == b"soon"
        (delivered, *_) = await reader.run(lambda view: view.private_of(5))
        assert b"secret" in delivered.rwset
        assert b"purged" not in delivered.rwset
        sql = "SELECT tx_id, sets FROM transient"
        assert ledger._reader.one(sql, ())[0].startswith("to come/")
        with ledger.new_simulator(TxId("t")) as simulator:
            assert simulator.get_metadata("cc", "p", "col") == {"n": b"m"}
        for number in range(5):  # 5 blocks after its own it is gone
            assert get("short", "q") == b"soon"
            await commit(ledger, rwset(writes={"n": b"%d" % number}))
        assert get("short", "q") is None
        assert [mark.name for mark in await ledger.snapshots()] == ["mine"]
        await ledger.revert("mine")
        assert ledger.height == 7
        assert get("col", "p") == b"secret"


async def test_hashes_that_a_former_release_removed_come_back_for_a_revert(
    tmp_path: Path,
) -> None:
    """Schema 5 removed the hash of private data that had expired."""
    file = FORMER / "schema-5.db.gz"
    (tmp_path / "ledger.db").write_bytes(gzip.decompress(file.read_bytes()))
    async with ledger_at(tmp_path) as ledger:
        await ledger.revert("mine")
        with ledger.new_simulator(TxId("t")) as simulator:
            found = simulator.get_private_hash("cc", "short", "q")
        assert found == sha256(b"soon").digest()


async def test_a_former_ledger_whose_private_data_is_damaged_stays_as_it_was(
    tmp_path: Path,
) -> None:
    file = FORMER / "schema-3.db.gz"
    (tmp_path / "ledger.db").write_bytes(gzip.decompress(file.read_bytes()))
    change(tmp_path, "DROP TABLE private")
    before = (tmp_path / "ledger.db").read_bytes()
    with pytest.raises(LedgerError, match="private"):
        await ledger_at(tmp_path).__aenter__()
    assert (tmp_path / "ledger.db").read_bytes() == before


async def test_a_former_ledger_with_a_damaged_block_is_refused_and_left_as_it_was(
    tmp_path: Path,
) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(gzip.decompress((FORMER / "schema-2.db.gz").read_bytes()))
    change(tmp_path, "UPDATE blocks SET block=x'0aff' WHERE number=1")
    for _ in range(2):
        with pytest.raises(LedgerCorrupt, match="block 1 cannot be decoded"):
            await ledger_at(tmp_path).__aenter__()
    change(tmp_path, "DELETE FROM blocks WHERE number=1")
    with pytest.raises(LedgerCorrupt, match="block 1 is missing"):
        await ledger_at(tmp_path).__aenter__()
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA user_version").fetchone() == (2,)
    assert db.execute("SELECT count(*) FROM state").fetchone()[0] == 4
    db.close()


async def test_a_file_of_schema_3_gets_the_index_that_was_added_later(
    tmp_path: Path,
) -> None:
    def has_index() -> bool:
        db = sqlite3.connect(tmp_path / "ledger.db")
        sql = "SELECT 1 FROM sqlite_master WHERE name='private_held'"
        found = db.execute(sql).fetchone()
        db.close()
        return found is not None

    file = FORMER / "schema-3.db.gz"
    (tmp_path / "ledger.db").write_bytes(gzip.decompress(file.read_bytes()))
    change(tmp_path, "DROP INDEX private_held")
    async with ledger_at(tmp_path):
        pass
    assert has_index()
