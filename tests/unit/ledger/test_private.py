"""Private data: from the endorser to the state, until it expires or is purged."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest
from fabric_protos.ledger.queryresult.kv_query_result_pb2 import KV

from chaindock.errors import LedgerError
from chaindock.ledger import effects
from chaindock.ledger.committer import Committer
from support.eventually import eventually
from support.ledgers.envelopes import rwset, transaction
from support.ledgers.ledger import MVCC, VALID, codes, commit, judged, ledger_at
from support.ledgers.private import T, define, digest, everything, put, simulated, value

if TYPE_CHECKING:
    from pathlib import Path

    from chaindock.ledger.ledger import Ledger
    from chaindock.ledger.simulator import Simulator


async def test_private_data_is_written_read_and_deleted(ledger: Ledger) -> None:
    await simulated(ledger, put("a", b"1"))
    await simulated(ledger, put("b", b"2"))
    assert everything(ledger) == {"a": b"1", "b": b"2"}
    with ledger.new_simulator(T) as before:
        await simulated(ledger, put("a", b"3"))
        await simulated(ledger, put("b", b""))
        assert before.get_private("cc", "col", "a") == b"1"
        rows = before.open_private_range("cc", "col", "", "", limit=1)
        assert [KV.FromString(row).value for row in rows.take(5)] == [b"1"]
        assert rows.exhausted
    assert everything(ledger) == {"a": b"3"}
    assert (value(ledger, "b"), digest(ledger, "b")) == (None, None)
    with ledger.new_simulator(T) as simulator:
        assert simulator.get_private("cc", "other", "a") is None
        assert simulator.get_state("cc", "a") is None


@pytest.mark.statement(23, of="client")
async def test_a_block_holds_hashes_and_no_value(ledger: Ledger) -> None:
    await simulated(ledger, put("a private key", b"a private value"))
    block = ledger.get_block(ledger.height - 1)
    for part in (b"a private key", b"a private value"):
        assert part not in block
        assert sha256(part).digest() in block


async def test_hashes_conflict_like_keys(ledger: Ledger) -> None:
    await simulated(ledger, put("a", b"1"))

    def late(simulator: Simulator) -> bytes:
        simulator.get_private("cc", "col", "a")
        simulator.put_state("cc", "k", b"1")
        return simulator.results()

    with ledger.new_simulator(T) as simulator:
        stale = late(simulator)
    await simulated(ledger, put("a", b"2"))
    assert codes(await commit(ledger, stale)) == [MVCC]
    with ledger.new_simulator(T) as simulator:
        assert codes(await commit(ledger, late(simulator))) == [VALID]


@pytest.mark.parametrize("kept", [b"", "other"])
async def test_data_that_does_not_fit_its_hash_is_missing(
    ledger: Ledger, kept: bytes | str
) -> None:
    await simulated(ledger, put("a", b"1"))
    if isinstance(kept, str):
        with ledger.new_simulator(T) as simulator:
            simulator.put_private("cc", "col", "a", b"other")
            kept = simulator.private_results()
    assert await simulated(ledger, put("a", b"2"), kept=kept) == [VALID]
    with pytest.raises(
        LedgerError,
        match=r"^private data matching public hash version is not available. Public hash "
        r"version = \{BlockNum: 2, TxNum: 0\}, Private data version = \{BlockNum: 1, "
        r"TxNum: 0\}$",
    ):
        value(ledger, "a")
    with ledger.new_simulator(T) as simulator:
        assert simulator.get_private("cc", "col", "a", compare=False) is None
    assert digest(ledger, "a") is not None
    await simulated(ledger, put("a", b"3"))
    assert value(ledger, "a") == b"3"


async def test_metadata_of_a_private_key_changes_its_version_and_keeps_its_value(
    ledger: Ledger,
) -> None:
    label = {"VALIDATION_PARAMETER": b"policy"}
    await simulated(ledger, put("a", b"1"))
    with ledger.new_simulator(T) as simulator:
        simulator.get_private_hash("cc", "col", "a")
        stale = simulator.results()
    await simulated(ledger, lambda s: s.put_metadata("cc", "a", label, "col"))
    assert codes(await commit(ledger, stale)) == [MVCC]
    with ledger.new_simulator(T) as simulator:
        assert simulator.get_metadata("cc", "a", "col") == label
        assert simulator.get_metadata("cc", "a") == {}
    assert value(ledger, "a") == b"1"
    await simulated(ledger, put("a", b"2"))
    with ledger.new_simulator(T) as simulator:
        assert simulator.get_metadata("cc", "a", "col") == label
    await simulated(ledger, put("a", b""))
    with ledger.new_simulator(T) as simulator:
        assert simulator.get_metadata("cc", "a", "col") == {}


def bytes_on_disk(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.glob("ledger.db*")))


@pytest.mark.parametrize("how", ["purge", "expiry"])
async def test_of_removed_data_nothing_stays_in_the_files(
    tmp_path: Path, how: str
) -> None:
    """Not in the tables, the transient store, free pages or the log."""
    secrets = [b"secret-number-%d" % n * 30 for n in range(4)]
    async with ledger_at(tmp_path) as ledger:
        await define(ledger, 6 if how == "expiry" else 0)
        for secret in secrets:
            await simulated(ledger, put("a-private-key", secret))
            await simulated(ledger, put(secret.decode()[:20], b"1"))
        # The log may just be moved into the file, between the reads of both.
        await eventually(lambda: secrets[-1] in bytes_on_disk(tmp_path))
        with ledger.new_simulator(T) as simulator:
            simulator.get_private("cc", "col", "a-private-key")
            if how == "purge":
                await simulated(
                    ledger, lambda s: s.purge_private("cc", "col", "a-private-key")
                )
            else:
                for _ in range(7):
                    await commit(ledger, rwset())
            left = [] if how == "expiry" else [b"secret-number-0secre"]
            await eventually(
                lambda: not any(s in bytes_on_disk(tmp_path) for s in secrets)
            )
            assert b"a-private-key" not in bytes_on_disk(tmp_path)
            assert all(name in bytes_on_disk(tmp_path) for name in left)
        assert value(ledger, "a-private-key") is None
    assert not any(secret in bytes_on_disk(tmp_path) for secret in secrets)


async def test_a_busy_log_is_not_shortened_after_every_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A try holds the writer for 0.5 s; removed data goes when the readers are done."""
    tries = 0

    def counted(committer: Committer) -> None:
        nonlocal tries
        tries += 1
        trim_log(committer)

    trim_log = Committer.trim_log
    monkeypatch.setattr(Committer, "trim_log", counted)
    monkeypatch.setattr("chaindock.ledger.ledger._TRIM_AGAIN_S", 60)
    secret = b"secret-number-1" * 30
    async with ledger_at(tmp_path) as ledger:
        await simulated(ledger, put("a", secret))
        with closing(sqlite3.connect(tmp_path / "ledger.db")) as other:
            other.execute("BEGIN")
            other.execute("SELECT count(*) FROM private").fetchone()
            await simulated(ledger, lambda s: s.purge_private("cc", "col", "a"))
            for _ in range(4):
                await commit(ledger, rwset())
            assert tries == 1
            assert secret in bytes_on_disk(tmp_path)
            monkeypatch.setattr("chaindock.ledger.ledger._TRIM_AGAIN_S", 0.1)
            ledger._trim()
            await eventually(lambda: tries == 3)
        await eventually(lambda: not ledger._committer.trim_again)
        assert secret not in bytes_on_disk(tmp_path)
        done = tries
        await commit(ledger, rwset())
        assert tries == done


@pytest.mark.statement(29, of="client")
async def test_a_key_can_be_written_again_after_a_purge(ledger: Ledger) -> None:
    await simulated(ledger, put("a", b"1"))
    with ledger.new_simulator(T) as before:
        await simulated(ledger, lambda s: s.purge_private("cc", "col", "a"))
        with pytest.raises(LedgerError, match="Private data version = <nil>"):
            before.get_private("cc", "col", "a")
    assert (value(ledger, "a"), everything(ledger)) == (None, {})
    await simulated(ledger, put("a", b"2"))
    assert value(ledger, "a") == b"2"


async def test_what_was_kept_goes_with_its_block_or_when_it_is_old(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kept() -> int:
        return int(ledger._reader.one("SELECT count(*) FROM transient", ())[0])

    await simulated(ledger, put("a", b"1"))
    assert kept() == 0
    await ledger.keep_private("never submitted", b"x")
    await ledger.keep_private("never submitted", b"x")
    monkeypatch.setattr(effects, "RETAINED_BLOCKS", 3)
    for _ in range(5):
        ledger._reader.renew()
        assert kept() == 1
        await commit(ledger, rwset())
    assert kept() == 0


@pytest.mark.parametrize("submitted", range(3))
async def test_of_several_endorsements_the_data_of_the_submitted_one_is_found(
    ledger: Ledger, submitted: int
) -> None:
    """A client may have one proposal endorsed again, with other private values."""

    def kept() -> int:
        return int(ledger._reader.one("SELECT count(*) FROM transient", ())[0])

    endorsed = []
    for number in range(3):
        with ledger.new_simulator(T) as simulator:
            simulator.put_private("cc", "col", "a", b"%d" % number)
            tx = transaction(simulator.results(), tx_id="5" * 64)
            await ledger.keep_private(tx.tx_id, simulator.private_results())
            endorsed.append(tx)
    assert len({tx.tx_id for tx in endorsed}) == 1
    ledger._reader.renew()
    assert kept() == 3
    envelope = endorsed[submitted].envelope
    assert codes(await ledger.commit(judged([(envelope, VALID)]))) == [VALID]
    assert everything(ledger) == {"a": b"%d" % submitted}
    assert kept() == 0


async def test_of_one_proposal_the_newest_endorsements_are_kept(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(effects, "MOST_KEPT", 2)
    for sets in (b"a", b"b", b"a", b"c"):
        await ledger.keep_private("one", sets)
    await ledger.keep_private("two", b"d")
    rows = ledger._reader.execute("SELECT sets FROM transient ORDER BY rowid", ())
    assert [row[0] for row in rows] == [b"a", b"c", b"d"]


async def test_private_data_survives_a_restart(tmp_path: Path) -> None:
    async with ledger_at(tmp_path) as ledger:
        await simulated(ledger, put("a", b"1"))
        with ledger.new_simulator(T) as simulator:
            simulator.put_private("cc", "col", "b", b"2")
            tx = transaction(simulator.results())
            await ledger.keep_private(tx.tx_id, simulator.private_results())
    async with ledger_at(tmp_path) as ledger:
        await ledger.commit(judged([(tx.envelope, VALID)]))
        assert everything(ledger) == {"a": b"1", "b": b"2"}
