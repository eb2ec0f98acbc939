"""Long values and certificates lie in the file once; blocks and values are read as ever."""

from __future__ import annotations

import base64
import json
from operator import methodcaller
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from fabric_protos.common import common_pb2

from chaindock.errors import LedgerCorrupt
from chaindock.ledger.blocks import check_block
from chaindock.ledger.reader import LedgerReader
from support.ledgers.envelopes import rwset, transaction
from support.ledgers.ledger import (
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
    from collections.abc import Callable
    from pathlib import Path

    from chaindock.ledger.ledger import Ledger

RANDOM = Random(7)


def long(size: int = 1024) -> bytes:
    return RANDOM.randbytes(size)


async def put(ledger: Ledger, *sets: dict[str, bytes | None], args: bool = True) -> int:
    """Commit a block whose transactions have what they write in their arguments, too."""
    made = [
        transaction(rwset(writes=one), args=[v or b"" for v in one.values()] * args)
        for one in sets
    ]
    block = await ledger.commit(judged((tx.envelope, VALID) for tx in made))
    assert set(codes(block)) == {VALID}
    stored = common_pb2.Block.FromString(ledger.get_block(block.number))
    assert list(stored.data.data) == [tx.envelope for tx in made]
    return block.number


def certificate() -> bytes:
    lines = base64.encodebytes(long(600))
    return b"-----BEGIN CERTIFICATE-----\n%s-----END CERTIFICATE-----\n" % lines


@pytest.mark.parametrize("shape", [(200, 1), (1, 200), (20, 20)])
async def test_a_long_value_takes_its_size_once(
    tmp_path: Path, shape: tuple[int, int]
) -> None:
    """Whether it stands in the arguments, in the write set or in both."""
    transactions, writes = shape
    keys = iter(range(10**6))
    written = 0
    async with ledger_at(tmp_path) as ledger:
        while written < 2_000_000:
            sets: list[dict[str, bytes | None]] = [
                {f"k{next(keys)}": long() for _ in range(writes)}
                for _ in range(transactions)
            ]
            await put(ledger, *sets)
            written += 1024 * writes * transactions
        assert replay(ledger)[0] == state(ledger)
    assert (tmp_path / "ledger.db").stat().st_size < 1.6 * written


async def test_certificates_lie_in_the_file_once(tmp_path: Path) -> None:
    """A small block takes some hundred bytes, whoever of a few clients submitted it."""

    known = [certificate() for _ in range(4)]

    def made(number: int) -> bytes:
        args = [known[number % 4]] * 3
        return transaction(rwset(writes={"a": b"1"}), args=args).envelope

    envelopes = [made(number) for number in range(12)]
    async with ledger_at(tmp_path) as ledger:
        sizes = []
        for envelope in envelopes:
            block = await ledger.commit(judged([(envelope, VALID)]))
            stored = ledger._reader.one(
                "SELECT length(block) FROM blocks WHERE number=?", (block.number,)
            )[0]
            assert envelope in ledger.get_block(block.number)
            sizes.append(stored)
    assert max(sizes[4:]) < 330
    async with ledger_at(tmp_path) as ledger:
        assert envelopes[-1] in ledger.get_block(12)


@pytest.mark.parametrize("size", [8, 20_000])
async def test_a_block_comes_out_as_it_was_hashed(tmp_path: Path, size: int) -> None:
    """Also with text in it that looks like the id of a transaction."""
    args = [b"*@" + long(32).hex().encode() * 2, b"*@" + b"\0" * 64, long(size)]
    path = tmp_path / "ledger.db"
    async with ledger_at(tmp_path) as ledger, LedgerReader(path) as reader:
        envelopes = [
            transaction(rwset(writes={"a": b"1"}), args=args).envelope for _ in "123"
        ]
        for one in envelopes:
            await ledger.commit(judged([(one, VALID)]))
        before = b""
        for number, written in enumerate([None, *envelopes]):
            block_hash, data = await reader.run(methodcaller("block", number))
            assert await reader.run(methodcaller("block_of", block_hash)) == data
            assert await reader.run(methodcaller("block_of", bytes(32))) is None
            block = check_block(data, number, block_hash, before, path)
            assert written in {None, *block.data.data}
            before = block_hash


async def test_many_clients_that_submit_in_turn_take_no_more(tmp_path: Path) -> None:
    peers, clients = [certificate() for _ in "123"], [certificate() for _ in range(50)]
    async with ledger_at(tmp_path) as ledger:
        for number in range(200):
            args = [clients[number % 50], *peers, long(100)]
            tx = transaction(rwset(writes={"a": b"1"}), args=args)
            await ledger.commit(judged([(tx.envelope, VALID)]))
            assert tx.envelope in ledger.get_block(ledger.height - 1)
        sizes = "SELECT sum(length(block)) + (SELECT sum(length(bytes)) FROM contents)"
        (size,) = ledger._reader.one(f"{sizes} FROM blocks WHERE number>0", ())
    assert size < 200 * 1000


async def test_long_values_are_read_everywhere(tmp_path: Path) -> None:
    first, second, third = (
        json.dumps({"owner": "tom", "text": long(400).hex()}).encode() for _ in "123"
    )
    index = {
        "META-INF/statedb/couchdb/indexes/o.json": b'{"index":{"fields":["owner"]}}'
    }
    async with ledger_at(tmp_path) as ledger, LedgerReader(ledger._path) as reader:
        await put(ledger, {"a": first, "b": b"short"})
        await put(ledger, {"a": second})
        await ledger.take_snapshot("two")
        with ledger.new_simulator(transaction(b"").tx_id) as old:
            await commit(ledger, rwset(writes={"a": third}))
            await commit(ledger, rwset(metadata={"a": {"n": b"m"}}))
            assert old.get_state("cc", "a") == second
            (row,) = old.open_range("cc", "a", "b").take(9)
            assert second in row
        assert value(ledger, "a") == third
        assert [one.value for one in history(ledger, "a")] == [third, second, first]
        last = await reader.run(lambda v: v.last_change("cc", "", (b"a", b"b"), (9, 9)))
        assert last is not None
        assert last.entry.value == third
        assert (await reader.run(lambda v: v.get_state("cc", "a"))) == third
        await ledger.put_indexes("cc", index)
        await ledger.revert("two")
        assert state(ledger) == {"a": second, "b": b"short"}
        left = "SELECT count(*) FROM contents WHERE id NOT BETWEEN -2 AND 3<<24"
        assert ledger._reader.one(left, ()) == (0,)  # of the blocks that are gone
        with ledger.new_simulator(transaction(b"").tx_id) as simulator:
            query = simulator.open_query("cc", '{"selector":{"owner":"tom"}}')
            while not query.advance():
                pass
            (row,) = query.take(9)
            assert json.loads(second)["text"].encode() in row
        await put(ledger, {"a": first})
        assert replay(ledger)[0] == state(ledger)


async def test_a_reader_is_told_which_block_is_damaged(tmp_path: Path) -> None:
    async with ledger_at(tmp_path) as ledger:
        number = await put(ledger, {"a": long()})
        await put(ledger, {"b": long()})
    tamper(
        tmp_path / "ledger.db",
        "UPDATE contents SET bytes=zeroblob(1024) WHERE id=1<<24",
    )
    async with ledger_at(tmp_path) as ledger, LedgerReader(ledger._path) as reader:
        with pytest.raises(LedgerCorrupt, match=f"block {number} cannot be decoded"):
            await reader.run(lambda view: view.block(number))


READS: dict[str, Callable[[Ledger], Any]] = {
    "point": lambda ledger: value(ledger, "a"),
    "range": state,
    "history": lambda ledger: history(ledger, "a"),
}


@pytest.mark.parametrize("read", READS)
async def test_a_long_value_that_is_missing_is_damage_and_no_absent_key(
    tmp_path: Path, read: str
) -> None:
    async with ledger_at(tmp_path) as ledger:
        await put(ledger, {"a": long(), "b": b"short"})
        await put(ledger, {"c": long()})
    tamper(tmp_path / "ledger.db", "DELETE FROM contents WHERE id=1<<24")
    async with ledger_at(tmp_path) as ledger, LedgerReader(ledger._path) as reader:
        with pytest.raises(LedgerCorrupt, match="a long value of the state is") as told:
            READS[read](ledger)
        assert "chaindock ledger rebuild" in str(told.value.hint)
        with pytest.raises(LedgerCorrupt, match="a long value of the state is"):
            await reader.run(lambda view: view.get_state("cc", "a"))
        assert value(ledger, "b") == b"short"
        await put(ledger, {"a": b"new"})
        assert value(ledger, "a") == b"new"


async def test_a_block_that_claims_to_be_huge_is_damaged(tmp_path: Path) -> None:
    async with ledger_at(tmp_path) as ledger:
        number = await put(ledger, {"a": long(), "b": long(), "c": long()})
        stored = ledger._reader.one("SELECT block FROM blocks WHERE number=1", ())[0]
    start = 9 + 4  # the head, and the magic number of the frame: its descriptor
    huge = bytes([stored[start] | 0xC0]) + b"\xff" * 7
    damaged = stored[:start] + huge + stored[start + 8 :]
    tamper(tmp_path / "ledger.db", "UPDATE blocks SET block=? WHERE number=1", damaged)
    with pytest.raises(LedgerCorrupt, match=f"block {number} cannot be decoded"):
        async with ledger_at(tmp_path):
            pass
