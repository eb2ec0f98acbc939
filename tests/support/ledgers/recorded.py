"""Recordings of a Fabric peer, and the operations of the recorded chaincode."""

from __future__ import annotations

import base64
import io
import json
import tarfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fabric_protos.common import common_pb2
from fabric_protos.ledger.queryresult.kv_query_result_pb2 import KV
from fabric_protos.ledger.rwset import rwset_pb2
from fabric_protos.ledger.rwset.kvrwset import kv_rwset_pb2

from chaindock.errors import ChaindockError
from chaindock.ids import ChannelId, TxId
from chaindock.ledger.ledger import Ledger
from chaindock.ledger.transaction import parse_transaction
from support.ledgers.envelopes import BlockKey

if TYPE_CHECKING:
    from chaindock.ledger.simulator import Simulator
    from chaindock.ledger.transaction import ParsedTransaction

_FOLDER = Path(__file__).parents[2] / "fixtures" / "fabric31"
CHANNEL = ChannelId("mychannel")
_PARAMETER = "VALIDATION_PARAMETER"
# The ledger decides these itself; other codes come from checks before it.
_DECIDED = {0, 9, 11, 12}


@cache
def recordings() -> dict[str, Any]:
    """Return `simulations.json`."""
    found: dict[str, Any] = json.loads((_FOLDER / "simulations.json").read_text())
    return found


@cache
def refused() -> list[dict[str, Any]]:
    """Return `refused.json`."""
    found: list[dict[str, Any]] = json.loads((_FOLDER / "refused.json").read_text())
    return found


@cache
def delivered() -> dict[str, Any]:
    """Return `delivered.json`."""
    found: dict[str, Any] = json.loads((_FOLDER / "delivered.json").read_text())
    return found


@cache
def blocks() -> list[bytes]:
    """Return all blocks, by number."""
    packed = io.BytesIO((_FOLDER / "blocks.tar.gz").read_bytes())
    with tarfile.open(fileobj=packed) as tar:
        files = [tar.extractfile(member) for member in tar]
        return [file.read() for file in files if file is not None]


def ledger_of(path: Path, **options: Any) -> Ledger:
    """Return a ledger with the recorded genesis block; the recorded peer has LevelDB."""
    genesis = common_pb2.Block.FromString(blocks()[0]).data.data[0]
    return Ledger(
        path / "ledger.db",
        CHANNEL,
        BlockKey(),
        lambda: genesis,
        strict=False,
        **options,
    )


def transactions(number: int) -> list[ParsedTransaction]:
    """Return the transactions of a block, with the codes that the ledger does not decide."""
    block = common_pb2.Block.FromString(blocks()[number])
    found = []
    for envelope, code in zip(block.data.data, block.metadata.metadata[2], strict=True):
        tx = parse_transaction(envelope, CHANNEL)
        if code not in _DECIDED:
            tx.code = code
        found.append(tx)
    return found


async def commit_recorded(ledger: Ledger, number: int) -> None:
    """Commit a block, with the private data that was delivered with it."""
    txs = transactions(number)
    delivered = recordings()["private"].get(str(number), {})
    for position, data in delivered.items():
        await ledger.keep_private(txs[int(position)].tx_id, decode(data))
    await ledger.commit(txs)


def decode(data: str) -> bytes:
    """Return what stands in base64."""
    return base64.b64decode(data)


def read_definitions(simulator: Simulator, results: bytes) -> None:
    """Read what the peer itself reads before a chaincode and its collections are used."""
    for ns in rwset_pb2.TxReadWriteSet.FromString(results).ns_rwset:
        if ns.namespace == "_lifecycle":
            for read in kv_rwset_pb2.KVRWSet.FromString(ns.rwset).reads:
                simulator.get_state("_lifecycle", read.key)


def run(simulator: Simulator, ns: str, ops: list[Any], transient: Any) -> list[Any]:
    """Return the answers of the recorded chaincode to a list of operations."""
    return [_attempt(simulator, ns, op, transient) for op in ops]


def _attempt(simulator: Simulator, ns: str, op: list[Any], transient: Any) -> Any:
    if op[0] != "try":
        return _operation(simulator, ns, op, transient)
    try:
        return _operation(simulator, ns, op[1], transient)
    except ChaindockError as error:
        return {"error": str(error)}


def _operation(s: Simulator, ns: str, op: list[Any], transient: Any) -> Any:
    name, *args = op
    collection = args.pop(0) if name[0] == "p" and name != "put" else ""
    if name == "transientput":
        s.put_private(ns, args[0], args[1], transient[args[2]].encode())
    elif name == "put":
        s.put_state(ns, args[0], _bytes(args[1]))
    elif name == "del":
        s.put_state(ns, args[0], b"")
    elif name == "pput":
        s.put_private(ns, collection, args[0], _bytes(args[1]))
    elif name == "pputck":
        s.put_private(ns, collection, _composite(args[0], args[1]), _bytes(args[2]))
    elif name == "pdel":
        s.put_private(ns, collection, args[0], b"")
    elif name == "ppurge":
        s.purge_private(ns, collection, args[0])
    elif name in {"setvp", "psetvp"}:
        s.put_metadata(ns, args[0], {_PARAMETER: _bytes(args[1])}, collection)
    elif name != "event":
        return _query(s, ns, name, collection, args)
    return "ok"


def _query(s: Simulator, ns: str, name: str, collection: str, args: list[Any]) -> Any:
    if name == "get":
        return _shown(s.get_state(ns, args[0]))
    if name == "pget":
        return _shown(s.get_private(ns, collection, args[0]))
    if name == "phash":
        return (s.get_private_hash(ns, collection, args[0]) or b"").hex()
    if name in {"getvp", "pgetvp"}:
        return _shown(s.get_metadata(ns, args[0], collection).get(_PARAMETER))
    if name == "rangep":
        rows = s.open_range(ns, args[0], args[1], page_size=args[2])
        found = _pairs(rows.take(args[2]))
        counted = {"bookmark": rows.bookmark, "fetchedRecordsCount": len(found)}
        return {"results": found, "metadata": counted}
    if name == "ppck":
        start = _composite(args[0], args[1])
        args = [start, start + "\U0010ffff"]
    assert name in {"prange", "ppck"}, name
    # The shim never asks for keys that begin with U+0000 with an open start.
    private = s.open_private_range(ns, collection, args[0] or "\x01", args[1])
    most = args[2]["n"] if len(args) > 2 else 1000
    return _pairs(private.take(most))


def _composite(kind: str, parts: list[str]) -> str:
    return "\0" + "".join(f"{part}\0" for part in [kind, *parts])


def _bytes(value: Any) -> bytes:
    return decode(value["b64"]) if isinstance(value, dict) else str(value).encode()


def _shown(value: bytes | None) -> str:
    return (value or b"").decode()


def _pairs(rows: list[bytes]) -> list[list[Any]]:
    found = []
    for row in map(KV.FromString, rows):
        try:
            found.append([row.key, row.value.decode()])
        except UnicodeDecodeError:
            shown = {"b64": base64.b64encode(row.value).decode()}
            found.append([row.key, shown])
    return found


def simulate(ledger: Ledger, recording: Any) -> tuple[list[Any], bytes, bytes]:
    """Return answers and read-write sets of one recorded call."""
    ops = json.loads(recording["args"][0])
    with ledger.new_simulator(TxId(recording["tx_id"])) as simulator:
        ns = recording["chaincode"]
        read_definitions(simulator, decode(recording.get("results", "")))
        answers = run(simulator, ns, ops, recording.get("transient"))
        return answers, simulator.results(), simulator.private_results()
