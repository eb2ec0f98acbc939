"""Private data of a ledger in tests: the collection "col" of the chaincode "cc"."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fabric_protos.ledger.queryresult.kv_query_result_pb2 import KV
from fabric_protos.peer import collection_pb2
from fabric_protos.peer.lifecycle import db_pb2

from chaindock.ids import TxId
from support.ledgers.envelopes import rwset, transaction
from support.ledgers.ledger import VALID, codes, commit, judged

if TYPE_CHECKING:
    from collections.abc import Callable

    from chaindock.ledger.ledger import Ledger
    from chaindock.ledger.simulator import Simulator

T = TxId("t")


async def simulated(
    ledger: Ledger, act: Callable[[Simulator], object], *, kept: bytes | None = None
) -> list[int]:
    """Simulate and commit one transaction; return its code.

    `kept` replaces the private data; b"" = it never came.
    """
    with ledger.new_simulator(T) as simulator:
        act(simulator)
        tx = transaction(simulator.results())
        data = simulator.private_results() if kept is None else kept
    if data:
        await ledger.keep_private(tx.tx_id, data)
    return codes(await ledger.commit(judged([(tx.envelope, VALID)])))


def put(key: str, value: bytes) -> Callable[[Simulator], object]:
    return lambda s: s.put_private("cc", "col", key, value)


def value(ledger: Ledger, key: str) -> bytes | None:
    with ledger.new_simulator(T) as simulator:
        return simulator.get_private("cc", "col", key)


def digest(ledger: Ledger, key: str) -> bytes | None:
    with ledger.new_simulator(T) as simulator:
        return simulator.get_private_hash("cc", "col", key)


def everything(ledger: Ledger) -> dict[str, bytes]:
    with ledger.new_simulator(T) as simulator:
        rows = simulator.open_private_range("cc", "col", "", "").take(100)
    return {kv.key: kv.value for kv in map(KV.FromString, rows)}


async def define(ledger: Ledger, block_to_live: int) -> None:
    """Commit a collection configuration, as `_lifecycle` does."""
    package = collection_pb2.CollectionConfigPackage()
    config = package.config.add().static_collection_config
    config.name, config.block_to_live = "col", block_to_live
    data = db_pb2.StateData(Bytes=package.SerializeToString()).SerializeToString()
    key = "namespaces/fields/cc/Collections"
    await commit(ledger, rwset(writes={key: data}, ns="_lifecycle"))
