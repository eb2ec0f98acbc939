"""The history of a key."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from fabric_protos.ledger.queryresult.kv_query_result_pb2 import KeyModification

from chaindock.ids import TxId
from chaindock.ledger import snapshots
from chaindock.ledger.reader import LedgerReader
from support.ledgers.envelopes import rwset, transaction
from support.ledgers.ledger import (
    ENDORSEMENT_POLICY_FAILURE,
    VALID,
    commit,
    history,
    judged,
)

if TYPE_CHECKING:
    from chaindock.ledger.ledger import Ledger


@pytest.mark.statement(48, of="client")
async def test_newest_first_with_deletes_and_the_clients_timestamps(
    ledger: Ledger,
) -> None:
    txs = [
        transaction(rwset(writes={"k": b"1"})),
        transaction(rwset(writes={"k": b"1"})),
        transaction(rwset(writes={"k": None})),
        transaction(rwset({"absent": (7, 7)}, {"k": b"conflict"})),
        transaction(rwset({"k": None}, {"other": b"1"})),
        transaction(rwset(writes={"k": b"refused"})),
        transaction(rwset(writes={"k": b"2"}), timestamp=(12, 345)),
    ]
    decided = [VALID] * 5 + [ENDORSEMENT_POLICY_FAILURE, VALID]
    envelopes = [tx.envelope for tx in txs]
    await ledger.commit(judged(zip(envelopes[:2], decided[:2], strict=True)))
    await ledger.commit(judged(zip(envelopes[2:], decided[2:], strict=True)))
    found = [
        (e.tx_id, e.value, e.is_delete, (e.timestamp.seconds, e.timestamp.nanos))
        for e in history(ledger, "k")
    ]
    assert found == [
        (txs[6].tx_id, b"2", False, (12, 345)),
        (txs[2].tx_id, b"", True, txs[2].timestamp),
        (txs[1].tx_id, b"1", False, txs[1].timestamp),
        (txs[0].tx_id, b"1", False, txs[0].timestamp),
    ]


async def test_it_comes_in_pieces_and_ends(ledger: Ledger) -> None:
    for number in range(3):
        block = [rwset(writes={"k": f"{number}{i}".encode()}) for i in range(3)]
        await commit(ledger, *block)
    with ledger.new_simulator(TxId("t")) as simulator:
        results = simulator.open_history("cc", "k")
        pieces = [results.take(4), results.take(4), results.take(4), results.take(4)]
        assert simulator.results() == b""
    values = [[KeyModification.FromString(e).value for e in piece] for piece in pieces]
    assert values == [
        [b"22", b"21", b"20", b"12"],
        [b"11", b"10", b"02", b"01"],
        [b"00"],
        [],
    ]


async def test_a_key_never_written_has_none(ledger: Ledger) -> None:
    await commit(ledger, rwset(writes={"k": b"1"}, ns="other"))
    assert history(ledger, "k") == []


async def test_the_timestamp_is_present_even_when_the_client_gave_zero(
    ledger: Ledger,
) -> None:
    tx = transaction(rwset(writes={"k": b"1"}), timestamp=(0, 0))
    await ledger.commit(judged([(tx.envelope, VALID)]))
    assert history(ledger, "k")[0].HasField("timestamp")


async def test_changes_of_metadata_alone_are_passed_in_steps(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there are: a history does not tell them."""
    monkeypatch.setattr(snapshots, "MOST_WALKED", 10)
    for written in (b"1", None, b"2"):
        await commit(ledger, rwset(writes={"k": written}))
        labels = [{"k": {"label": b"%d" % number}} for number in range(60)]
        if written:
            await commit(ledger, *(rwset(metadata=one) for one in labels))
    told = [(b"2", False), (b"", True), (b"1", False)]
    with ledger.new_simulator(TxId("t")) as simulator:
        results, found, steps = simulator.open_history("cc", "k"), [], 0
        while not results.exhausted:
            while not results.advance():
                steps += 1
            found += results.take(1)
    assert [(e.value, e.is_delete) for e in map(KeyModification.FromString, found)] == (
        told
    )
    assert steps == 12
    assert [(e.value, e.is_delete) for e in history(ledger, "k")] == told
    async with LedgerReader(ledger._path) as reader:
        changes = await reader.run(
            lambda view: list(view.history("cc", b"k", snapshots.END_OF_HISTORY))
        )
    assert [(e.entry.value, e.entry.is_delete) for e in changes] == told
