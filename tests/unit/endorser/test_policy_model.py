"""Blocks of random transactions: policies, ids and versions, against a simple model.

The model keeps values, versions and policies of keys in dictionaries, and decides each
transaction by the sentences of docs/fabric/policies.md and docs/fabric/ledger.md.
"""

import asyncio
import tempfile
from pathlib import Path
from typing import Any

from fabric_protos.ledger.rwset.kvrwset import kv_rwset_pb2
from fabric_protos.peer import policy_pb2
from fabric_protos.peer import transaction_pb2 as codes
from hypothesis import given, settings
from hypothesis import strategies as st

from chaindock.endorser.configuration import Configuration
from chaindock.endorser.validator import Validator
from chaindock.identity.msp import Identity, Role
from chaindock.identity.policies import parse_policy
from chaindock.ledger.transaction import ParsedTransaction, Space
from support.ledgers import recorded
from support.ledgers.held import HeldState

VALID, FAILED = int(codes.VALID), int(codes.ENDORSEMENT_POLICY_FAILURE)
DUPLICATE, CONFLICT = int(codes.DUPLICATE_TXID), int(codes.MVCC_READ_CONFLICT)
NEEDS: dict[str, set[str]] = {"both": {"A", "B"}, "none": set()}
"""Who has to endorse; any other policy is that of one organisation."""
POLICIES = {
    "A": "OR('A.peer')",
    "B": "OR('B.peer')",
    "both": "AND('A.peer', 'B.peer')",
    "none": "OutOf(0, 'A.peer')",
}
KEYS = st.sampled_from([b"k", b"l", b"m"])
# A policy of a key; "" removes it, "garbage" is satisfied by nobody.
LABELS = st.sampled_from([*POLICIES, "", "garbage"])
TRANSACTIONS = st.fixed_dictionaries(
    {
        "by": st.sampled_from([{"A", "B"}, {"A", "B"}, {"A"}, {"B"}, set()]),
        "reads": st.sets(KEYS, max_size=2),
        "age": st.integers(0, 2),
        "puts": st.dictionaries(KEYS, st.sampled_from([b"v", None]), max_size=2),
        "labels": st.dictionaries(KEYS, LABELS, max_size=1),
        "id": st.integers(0, 30),
    }
)
BLOCKS = st.lists(st.lists(TRANSACTIONS, min_size=1, max_size=4), max_size=6)


class Model:
    """What has been committed."""

    def __init__(self) -> None:
        self.values: dict[bytes, tuple[bytes, Any]] = {}
        self.labels: dict[bytes, str] = {}
        self.ids: set[int] = set()
        self.past: list[dict[bytes, Any]] = [{}]
        """Versions by key, after each block."""

    def block(self, number: int, made: Any) -> list[int]:
        before, used, ids = dict(self.labels), set(self.ids), set()
        relabelled: set[bytes] = set()
        changed: set[bytes] = set()
        found = []
        for position, tx in enumerate(made):
            code = self._code(tx, before, used, relabelled)
            if code == VALID:
                relabelled |= tx["labels"].keys()
                if tx["id"] in ids:
                    code = DUPLICATE
                elif self._conflicts(tx, changed):
                    code = CONFLICT
                else:
                    changed |= self._apply(tx, (number, position))
                ids.add(tx["id"])
            found.append(code)
            self.ids.add(tx["id"])
        self.past.append({key: at for key, (_, at) in self.values.items()})
        return found

    def _code(self, tx: Any, before: Any, used: Any, relabelled: Any) -> int:
        if tx["id"] in used:
            return DUPLICATE
        written = tx["puts"].keys() | tx["labels"].keys()
        if written & relabelled:
            return FAILED
        wanted = {before.get(key, "A") for key in written} or {"A"}
        if not set[str]().union(*(NEEDS.get(one, {one}) for one in wanted)) <= tx["by"]:
            return FAILED
        return VALID

    def seen(self, age: int) -> dict[bytes, Any]:
        """Versions that a simulation saw so many blocks ago."""
        return self.past[max(0, len(self.past) - 1 - age)]

    def _conflicts(self, tx: Any, changed: set[bytes]) -> bool:
        seen = tx["seen"]
        return any(
            key in changed or self.past[-1].get(key) != seen.get(key)
            for key in tx["reads"]
        )

    def _apply(self, tx: Any, at: Any) -> set[bytes]:
        changed = set(tx["puts"])
        for key, value in tx["puts"].items():
            if value is None:
                self.values.pop(key, None)
                self.labels.pop(key, None)
            else:
                self.values[key] = (value, at)
        for key, label in tx["labels"].items():
            if key not in self.values:
                continue  # metadata of an absent key is ignored
            self.values[key] = (self.values[key][0], at)
            self.labels[key] = label
            changed.add(key)
            if not label:
                del self.labels[key]
        return changed


def parsed(tx: Any) -> ParsedTransaction:
    facts: Any = (None, None, None)
    labels = [(key, metadata(label)) for key, label in sorted(tx["labels"].items())]
    reads = [(key, tx["seen"].get(key)) for key in sorted(tx["reads"])]
    space = Space("cc", "", reads, [], sorted(tx["puts"].items()), labels)
    made = ParsedTransaction(b"e", name="cc", version="1", spaces=[space])
    made.tx_id = f"{tx['id']:064x}"
    made.endorsers = [Identity(mspid, Role.PEER, *facts) for mspid in sorted(tx["by"])]
    return made


def metadata(label: str) -> Any:
    if not label:
        return None
    text = POLICIES.get(label)
    value = parse_policy(text).SerializeToString() if text else b"\xff"
    entry = kv_rwset_pb2.KVMetadataEntry(name="VALIDATION_PARAMETER", value=value)
    return kv_rwset_pb2.KVMetadataWrite(entries=[entry]).SerializeToString()


async def replay(folder: Path, made: Any) -> None:
    async with recorded.ledger_of(folder) as ledger:
        await define(ledger)
        ledger.check_with(Validator(Configuration.of(ledger)))
        model = Model()
        for number, block in enumerate(made, ledger.height):
            for tx in block:
                tx["seen"] = model.seen(tx["age"])
            done = await ledger.commit([parsed(tx) for tx in block])
            wanted = model.block(number, block)
            assert list(done.codes) == wanted
            with ledger.new_simulator(None) as simulator:  # type: ignore[arg-type]
                snapshot = simulator.snapshot()
                for key in (b"k", b"l", b"m"):
                    held = model.values.get(key)
                    assert snapshot.get("cc", key) == (held and (held[0], *held[1]))


async def define(ledger: Any) -> None:
    """Commit a definition of `cc`, which a peer of A endorses."""
    state = HeldState()
    rule = policy_pb2.ApplicationPolicy(signature_policy=parse_policy(POLICIES["A"]))
    state.define("cc", validation_parameter=rule.SerializeToString())
    writes = sorted((key, value) for (_, key), value in state.values.items())
    space = Space("_lifecycle", "", [], [], [*writes], [])
    tx = ParsedTransaction(b"d", name="_lifecycle", version="1", spaces=[space])
    tx.tx_id = "f" * 64
    await ledger.commit([tx])


@settings(max_examples=60, deadline=None)
@given(BLOCKS)
def test_blocks_end_as_the_model_says(made):
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(replay(Path(folder), made))
