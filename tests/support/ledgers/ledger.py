"""Ledgers for tests, and a plain replay of their blocks."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from hashlib import sha256
from typing import TYPE_CHECKING

from fabric_protos.common import common_pb2
from fabric_protos.ledger.queryresult.kv_query_result_pb2 import KV, KeyModification
from fabric_protos.ledger.rwset import rwset_pb2
from fabric_protos.ledger.rwset.kvrwset import kv_rwset_pb2
from fabric_protos.peer import proposal_pb2, proposal_response_pb2, transaction_pb2

from chaindock.ids import TxId
from chaindock.ledger.ledger import Ledger
from chaindock.ledger.transaction import parse_transaction
from chaindock.lifecycle.definitions import read_definition
from support.ledgers.envelopes import CHANNEL, BlockKey, config, transaction

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path
    from typing import Any

    from chaindock.ledger.committer import CommittedBlock
    from chaindock.ledger.ledger import TxLocation
    from chaindock.ledger.queries import Results
    from chaindock.ledger.transaction import ParsedTransaction

VALID = 0
DUPLICATE_TXID = 9
ENDORSEMENT_POLICY_FAILURE = 10
MVCC = 11
PHANTOM = 12
NOT_VALIDATED = 254


def ledger_at(path: Path, **options: Any) -> Ledger:
    """Return a ledger to enter."""
    return Ledger(path / "ledger.db", CHANNEL, BlockKey(), config, **options)


def committed_definition(ledger: Ledger, name: str) -> Any:
    """Return the definition of a chaincode; None = it is not defined."""
    with ledger.new_simulator(TxId("")) as simulator:
        return read_definition(simulator, name)


async def commit(ledger: Ledger, *rwsets: bytes) -> CommittedBlock:
    """Commit one block with a transaction for each read-write set."""
    return await ledger.commit(
        judged([(transaction(r).envelope, VALID) for r in rwsets])
    )


def judged(envelopes: Iterable[tuple[bytes, int]]) -> list[ParsedTransaction]:
    """Return transactions to commit; VALID and NOT_VALIDATED leave it to the ledger."""
    txs = []
    for envelope, code in envelopes:
        tx = parse_transaction(envelope, CHANNEL)
        if code not in {VALID, NOT_VALIDATED}:
            tx.code = code
        txs.append(tx)
    return txs


def codes(block: CommittedBlock) -> list[int]:
    """Return the validation codes of a block."""
    return list(block.codes)


def value(ledger: Ledger, key: str, ns: str = "cc") -> bytes | None:
    """Return the committed value of a key."""
    with ledger.new_simulator(TxId("look")) as simulator:
        return simulator.get_state(ns, key)


def state(ledger: Ledger, ns: str = "cc") -> dict[str, bytes]:
    """Return the whole state of a namespace."""
    with ledger.new_simulator(TxId("look")) as simulator:
        return dict(pairs(simulator.open_range(ns, "", "")))


def pairs(results: Results, step: int = 100) -> list[tuple[str, bytes]]:
    """Return everything a range query gives."""
    out = []
    while batch := results.take(step):
        out += [(kv.key, kv.value) for kv in map(KV.FromString, batch)]
    return out


def history(ledger: Ledger, key: str, ns: str = "cc") -> list[KeyModification]:
    """Return the history of a key."""
    with ledger.new_simulator(TxId("look")) as simulator:
        results, found = simulator.open_history(ns, key), list[bytes]()
        while not results.exhausted:
            found += results.take(1000)
        return [KeyModification.FromString(entry) for entry in found]


def only_rwset(results: bytes, ns: str = "cc") -> kv_rwset_pb2.KVRWSet:
    """Return the `KVRWSet` of one namespace in a simulation's results."""
    found = {
        n.namespace: n.rwset
        for n in rwset_pb2.TxReadWriteSet.FromString(results).ns_rwset
    }
    return kv_rwset_pb2.KVRWSet.FromString(found.get(ns, b""))


def parsed(ledger: Ledger, number: int) -> Any:
    """Return a block as `common.Block`."""
    return common_pb2.Block.FromString(ledger.get_block(number))


def der_hash(header: Any) -> bytes:
    """Return a block hash, computed the long way (short lengths only)."""
    number = header.number.to_bytes(9, "big").lstrip(b"\0")
    if not number or number[0] & 0x80:
        number = b"\0" + number
    body = b"\x02" + bytes([len(number)]) + number
    for octets in (header.previous_hash, header.data_hash):
        body += b"\x04" + bytes([len(octets)]) + octets
    return sha256(b"\x30" + bytes([len(body)]) + body).digest()


def replay(ledger: Ledger) -> tuple[dict[str, bytes], list[str]]:
    """Check the chain block by block; return the state of `cc` and all valid tx ids."""
    values: dict[str, bytes] = {}
    ids: list[str] = []
    previous = b""
    for number in range(ledger.height):
        block = parsed(ledger, number)
        assert block.header.number == number
        assert block.header.previous_hash == previous
        assert block.header.data_hash == sha256(b"".join(block.data.data)).digest()
        previous = der_hash(block.header)
        filter_ = block.metadata.metadata[2]
        assert len(filter_) == len(block.data.data)
        for envelope, code in zip(block.data.data, filter_, strict=True):
            tx_id, sets = effects(envelope)
            if code == VALID and sets is not None:
                ids.append(tx_id)
                for write in sets.writes:
                    if write.is_delete:
                        values.pop(write.key, None)
                    else:
                        values[write.key] = write.value
    return values, ids


def check_chain(ledger: Ledger, acknowledged: Mapping[TxId, TxLocation]) -> None:
    """Check blocks, state and ids, and that what was acknowledged is there."""
    values, _ = replay(ledger)  # checks the chain as well
    assert state(ledger) == values
    ids = [
        effects(envelope)[0]
        for number in range(ledger.height)
        for envelope in common_pb2.Block.FromString(ledger.get_block(number)).data.data
    ]
    assert len(set(ids)) == len(ids)
    for tx_id, location in acknowledged.items():
        assert ledger.find_transaction(tx_id) == location


def effects(envelope: bytes) -> tuple[str, kv_rwset_pb2.KVRWSet | None]:
    """Return transaction id and the read-write set of `cc`; None for a config."""
    payload = common_pb2.Payload.FromString(
        common_pb2.Envelope.FromString(envelope).payload
    )
    header = common_pb2.ChannelHeader.FromString(payload.header.channel_header)
    if header.type == common_pb2.CONFIG:
        return header.tx_id, None
    action = transaction_pb2.ChaincodeActionPayload.FromString(
        transaction_pb2.Transaction.FromString(payload.data).actions[0].payload
    )
    response = proposal_response_pb2.ProposalResponsePayload.FromString(
        action.action.proposal_response_payload
    )
    results = proposal_pb2.ChaincodeAction.FromString(response.extension).results
    return header.tx_id, only_rwset(results)


def tamper(file: Path, sql: str, *values: object) -> None:
    """Change a ledger that is closed."""
    with closing(sqlite3.connect(file, isolation_level=None)) as db:
        db.execute(sql, values)
