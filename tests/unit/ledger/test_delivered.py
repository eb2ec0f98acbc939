"""Private data of blocks, put together again as a real peer delivered it."""

import json
from pathlib import Path
from typing import Any

import pytest
from fabric_protos.ledger.rwset import rwset_pb2
from fabric_protos.ledger.rwset.kvrwset import kv_rwset_pb2

from chaindock.ids import TxId
from chaindock.ledger.ledger import Ledger
from chaindock.ledger.reader import LedgerReader
from chaindock.ledger.rebuild import rebuild_file
from support.ledgers.envelopes import CHANNEL, transaction
from support.ledgers.ledger import VALID, judged, ledger_at
from support.ledgers.recorded import (
    blocks,
    commit_recorded,
    decode,
    delivered,
    ledger_of,
    recordings,
)

ENDORSEMENT_POLICY_FAILURE = 10
_PURGES_TOO = 283
"""What was delivered of a purge lacks the key, so a ledger does not accept the rest."""


def sets_of(data: bytes) -> list[Any]:
    """Return namespace, collection and content of a `TxPvtReadWriteSet`."""
    return [
        (ns.namespace, one.collection_name, one.rwset)
        for ns in rwset_pb2.TxPvtReadWriteSet.FromString(data).ns_pvt_rwset
        for one in ns.collection_pvt_rwset
    ]


async def private_of(reader: LedgerReader, number: int) -> dict[str, list[Any]]:
    """Return what the node delivers with a block, by position of the transaction."""
    found: dict[str, list[Any]] = {}
    for one in await reader.run(lambda view: view.private_of(number)):
        entry = (one.ns, one.collection, one.rwset)
        found.setdefault(str(one.position), []).append(entry)
    return found


@pytest.mark.statement(29, of="client")
async def test_private_data_is_delivered_like_that_of_the_peer(tmp_path: Path):
    """Also after a purge and the end of a block-to-live, and if a transaction failed."""
    recorded = recordings()["private"] | delivered()["private_later"]
    last = max(map(int, recorded))
    async with ledger_of(tmp_path) as ledger, LedgerReader(ledger._path) as reader:
        for number in range(1, len(blocks())):
            await commit_recorded(ledger, number)
        # Recorded when block 337 was the newest; of earlier ones nothing expires later.
        compared = 0
        for number in (n for n in range(152, last + 1) if n != _PURGES_TOO):
            expected = {
                position: sets_of(decode(data))
                for position, data in recorded.get(str(number), {}).items()
            }
            assert await private_of(reader, number) == expected, number
            compared += len(expected)
        assert compared > 20


async def write(ledger: Ledger, *steps: tuple[str, ...], code: int = VALID) -> int:
    """Commit puts, deletes and purges of collection `col`; return the block."""
    with ledger.new_simulator(TxId("t")) as simulator:
        for step, key, *value in steps:
            if step == "put":
                simulator.put_private("cc", "col", key, value[0].encode())
            elif step == "delete":
                simulator.put_private("cc", "col", key, b"")
            else:
                simulator.purge_private("cc", "col", key)
        tx = transaction(simulator.results())
        await ledger.keep_private(TxId(tx.tx_id), simulator.private_results())
    block = await ledger.commit(judged([(tx.envelope, code)]))
    assert list(block.codes) == [code]
    return block.number


def written(rwset: bytes) -> list[Any]:
    found = kv_rwset_pb2.KVRWSet.FromString(rwset).writes
    return [(one.key, one.is_delete, one.value) for one in found]


async def test_purged_keys_are_left_out_and_what_is_missing_is_absent(tmp_path: Path):
    async with ledger_at(tmp_path) as ledger, LedgerReader(ledger._path) as reader:
        one = await write(ledger, ("put", "b", "2"), ("put", "a", "1"))
        two = await write(ledger, ("delete", "a"))
        three = await write(ledger, ("put", "a", "3"))
        assert written((await private_of(reader, one))["0"][0][2]) == [
            ("a", False, b"1"),
            ("b", False, b"2"),
        ]
        assert written((await private_of(reader, two))["0"][0][2]) == [("a", True, b"")]
        purge = await write(ledger, ("purge", "a"))
        for number, left in (
            (one, [("b", False, b"2")]),
            (two, []),
            (three, []),
            (purge, []),
        ):
            ((_, collection, rwset),) = (await private_of(reader, number))["0"]
            assert (collection, written(rwset)) == ("col", left)
    rebuild_file(tmp_path / "ledger.db", CHANNEL)
    async with ledger_at(tmp_path) as ledger, LedgerReader(ledger._path) as reader:
        ((_, _, rwset),) = (await private_of(reader, one))["0"]
        assert written(rwset) == [("b", False, b"2")]
        tx = transaction(with_hashes(ledger))
        block = await ledger.commit(judged([(tx.envelope, VALID)]))
        assert await private_of(reader, block.number) == {}


@pytest.mark.parametrize("purged", [False, True])
async def test_private_data_of_a_failed_transaction_is_delivered_and_is_no_state(
    tmp_path: Path, purged: bool
):
    """A purge of the key removes it, too."""
    failed = {"code": ENDORSEMENT_POLICY_FAILURE}
    async with ledger_at(tmp_path) as ledger, LedgerReader(ledger._path) as reader:
        await write(ledger, ("put", "a", "1"))
        one = await write(ledger, ("put", "a", "2"), ("put", "b", "3"), **failed)
        two = await write(ledger, ("put", "a", "4"), ("delete", "b"), **failed)
        await write(ledger, ("purge", "a"), **failed)
        if purged:
            await write(ledger, ("purge", "a"))
        with ledger.new_simulator(TxId("t")) as simulator:
            state = [simulator.get_private("cc", "col", key) for key in "ab"]
            assert state == [None if purged else b"1", None]
            assert simulator.get_private_hash("cc", "col", "b") is None
        listed = await reader.run(lambda view: view.collections())
        assert listed == [("cc", "col")]
    rebuild_file(tmp_path / "ledger.db", CHANNEL)
    async with ledger_at(tmp_path) as ledger, LedgerReader(ledger._path) as reader:
        for number, a, b in (
            (one, ("a", False, b"2"), ("b", False, b"3")),
            (two, ("a", False, b"4"), ("b", True, b"")),
        ):
            ((_, collection, rwset),) = (await private_of(reader, number))["0"]
            assert collection == "col"
            assert written(rwset) == ([b] if purged else [a, b])


def with_hashes(ledger: Ledger) -> bytes:
    """Return the public results of a private write whose data the node does not get."""
    with ledger.new_simulator(TxId("t")) as simulator:
        simulator.put_private("cc", "col", "never", b"came")
        return simulator.results()


async def test_a_block_without_private_data_has_none(tmp_path: Path):
    async with ledger_at(tmp_path) as ledger, LedgerReader(ledger._path) as reader:
        assert await private_of(reader, 0) == {}
        assert json.dumps(await private_of(reader, ledger.height - 1)) == "{}"
