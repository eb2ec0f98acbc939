"""Private data with a block-to-live."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

import pytest

from chaindock.errors import LedgerError
from chaindock.ledger.reader import LedgerReader
from chaindock.ledger.rebuild import rebuild_file
from support.ledgers.envelopes import CHANNEL, rwset
from support.ledgers.ledger import VALID, commit, ledger_at
from support.ledgers.private import T, define, digest, everything, put, simulated, value

if TYPE_CHECKING:
    from pathlib import Path

    from chaindock.ledger.ledger import Ledger


async def test_data_expires_with_its_hash_unless_it_was_written_again(
    ledger: Ledger,
) -> None:
    await define(ledger, 2)
    await simulated(ledger, put("a", b"1"))  # block 2
    await simulated(ledger, put("b", b"1"))  # block 3
    await simulated(ledger, put("b", b"2"))  # block 4
    assert value(ledger, "a") == b"1"
    await define(ledger, 5)  # block 5: what is written from now on stays longer
    assert (value(ledger, "a"), digest(ledger, "a")) == (None, None)
    assert everything(ledger) == {"b": b"2"}
    await simulated(ledger, put("c", b"3"))  # block 6
    assert everything(ledger) == {"b": b"2", "c": b"3"}
    for _ in range(5):
        assert value(ledger, "c") == b"3"
        await commit(ledger, rwset())
    assert everything(ledger) == {"c": b"3"}
    await commit(ledger, rwset())
    assert everything(ledger) == {}


@pytest.mark.statement(28, of="client")
async def test_with_a_limit_of_3_blocks_data_is_gone_with_the_fourth(
    ledger: Ledger,
) -> None:
    await define(ledger, 3)
    await simulated(ledger, put("a", b"1"))
    for _ in range(3):
        await commit(ledger, rwset())
        assert value(ledger, "a") == b"1"
    await commit(ledger, rwset())
    assert (value(ledger, "a"), digest(ledger, "a")) == (None, None)


async def test_of_expired_data_a_revert_brings_back_the_hash_and_a_rebuild_nothing_else(
    tmp_path: Path,
) -> None:
    """As at a peer of that height which lacks the value."""
    label = {"VALIDATION_PARAMETER": b"policy"}

    def seen(ledger: Ledger) -> object:
        with pytest.raises(LedgerError, match="Private data version = <nil>"):
            value(ledger, "a")
        with ledger.new_simulator(T) as simulator:
            labels = simulator.get_metadata("cc", "a", "col")
        return digest(ledger, "a"), digest(ledger, "b"), labels, everything(ledger)

    async with ledger_at(tmp_path) as ledger:
        await define(ledger, 2)
        await simulated(ledger, put("a", b"1"))
        await simulated(ledger, lambda s: s.put_metadata("cc", "a", label, "col"))
        await ledger.take_snapshot("base")  # height 4: "a" ends with block 6
        await simulated(ledger, put("b", b"2"))
        for _ in range(4):
            await commit(ledger, rwset())
        assert (value(ledger, "a"), digest(ledger, "a")) == (None, None)
        await ledger.revert("base")
        before = seen(ledger)
    assert before == (sha256(b"1").digest(), None, label, {})
    rebuild_file(tmp_path / "ledger.db", CHANNEL)
    async with ledger_at(tmp_path) as ledger:
        assert seen(ledger) == before
        for _ in range(3):
            assert digest(ledger, "a")
            await commit(ledger, rwset())
        assert (value(ledger, "a"), digest(ledger, "a")) == (None, None)
        await simulated(ledger, put("a", b"3"))
        assert value(ledger, "a") == b"3"
        with ledger.new_simulator(T) as simulator:
            assert simulator.get_metadata("cc", "a", "col") == {}


async def test_what_was_superseded_does_not_come_back_when_its_successor_expires(
    ledger: Ledger,
) -> None:
    await define(ledger, 100)
    await simulated(ledger, put("a", b"1"))
    await define(ledger, 1)
    await simulated(ledger, put("a", b"2"))
    for _ in range(2):
        assert everything(ledger) == {"a": b"2"}
        await commit(ledger, rwset())
    assert (value(ledger, "a"), digest(ledger, "a"), everything(ledger)) == (
        None,
        None,
        {},
    )


async def test_an_expired_key_is_found_absent_whatever_it_held_before(
    ledger: Ledger,
) -> None:
    """A read runs on the event loop: it must not walk the former versions of the key."""
    await define(ledger, 1)

    def steps() -> int:
        reader, found = ledger._reader, 0

        def step() -> None:
            nonlocal found
            found += 1

        assert digest(ledger, "other") is None  # the namespace is known from here on
        assert reader._db is not None
        reader._db.set_progress_handler(step, 1)
        assert digest(ledger, "a") is None
        reader._db.set_progress_handler(None, 1)
        return found

    await simulated(ledger, put("b", b"1"))
    before = steps()
    for number in range(30):
        await simulated(ledger, put("a", b"%d" % number))
    for _ in range(2):
        await commit(ledger, rwset())
    assert steps() < before + 30


@pytest.mark.parametrize("reverted", [False, True])
async def test_of_expired_data_nothing_is_delivered_with_its_block(
    tmp_path: Path, *, reverted: bool
) -> None:
    """Also of what was purged before, or had its metadata changed alone."""
    label = {"VALIDATION_PARAMETER": b"policy"}
    async with ledger_at(tmp_path) as ledger, LedgerReader(ledger._path) as reader:

        async def sets(number: int) -> int:
            return len(await reader.run(lambda view: view.private_of(number)))

        await define(ledger, 3)
        await simulated(ledger, put("a", b"1"))  # block 2
        await simulated(ledger, lambda s: s.put_metadata("cc", "a", label, "col"))
        await simulated(ledger, put("b", b"1"))
        await simulated(ledger, lambda s: s.purge_private("cc", "col", "b"))
        assert [await sets(number) for number in range(2, 6)] == [1, 1, 1, 1]
        await ledger.take_snapshot("base")
        for _ in range(4):
            await commit(ledger, rwset())
        assert [await sets(number) for number in range(2, 6)] == [0, 0, 0, 0]
        if reverted:
            await ledger.revert("base")
    rebuild_file(tmp_path / "ledger.db", CHANNEL)
    async with ledger_at(tmp_path) as ledger, LedgerReader(ledger._path) as reader:
        assert [await sets(number) for number in range(2, 6)] == [0, 0, 0, 0]


@pytest.mark.parametrize("blocks", [2**63 - 4, 2**63 - 1, 2**64 - 1])
async def test_data_that_would_expire_beyond_all_blocks_stays(
    ledger: Ledger, blocks: int
) -> None:
    """SQLite holds no integer above 2**63 - 1; the definition is a uint64."""
    await define(ledger, blocks)
    assert await simulated(ledger, put("a", b"1")) == [VALID]
    await commit(ledger, rwset())
    assert everything(ledger) == {"a": b"1"}
