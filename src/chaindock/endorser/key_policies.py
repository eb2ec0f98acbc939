"""The policies of keys: where one is stored, and how it is evaluated.

Contracts write them, so that any bytes may stand there; what is no policy never holds.
Source: docs/fabric/policies.md#what-is-checked
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Final

from fabric_protos.ledger.rwset.kvrwset import kv_rwset_pb2
from fabric_protos.peer import transaction_pb2 as codes

from chaindock.errors import InvalidInput
from chaindock.identity.msp import Identity
from chaindock.identity.policies import Evaluator, evaluator
from chaindock.ledger.snapshots import Snapshot
from chaindock.ledger.transaction import Broken, Space
from chaindock.ledger.validation import CommittedState

VALIDATION_PARAMETER: Final = "VALIDATION_PARAMETER"
"""Name of the metadata that holds the policy of a key."""

_MOST: Final = 1024 * 1024
"""Bytes of the distinct policies of keys that a transaction writes.

A transaction above it fails its policies: to compile them takes 1.4 s of the writer.
"""


class KeyPolicies:
    """The policies of keys that a transaction writes, each once; `size` in bytes."""

    def __init__(self) -> None:
        self._known: set[bytes] = set()
        self.size = 0

    def is_new(self, raw: bytes) -> bool:
        """Count a policy; whether it is new. Raises: Broken: they have more than 1 MiB."""
        if raw in self._known:
            return False
        self._known.add(raw)
        self.size += len(raw)
        if self.size > _MOST:
            raise Broken(codes.ENDORSEMENT_POLICY_FAILURE)
        return True


@dataclass(frozen=True, slots=True)
class Rule:
    """A policy that a transaction must satisfy; called as an Evaluator."""

    holds: Evaluator
    raw: bytes
    """A SignaturePolicyEnvelope of `key`, else an ApplicationPolicy; serialised."""
    collection: str = ""
    """Whose policy it is; "" = that of the chaincode, or of a public key."""
    key: bytes | None = None
    """Whose policy it is; a hash in a collection; None = not that of a key."""

    def __call__(self, identities: Sequence[Identity]) -> bool:
        """Tell whether identities satisfy the policy together."""
        return self.holds(identities)


class SnapshotState:
    """The state of a snapshot."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def get_state(self, ns: str, key: str) -> bytes | None:
        """Return a public value."""
        row = self._snapshot.get(ns, key.encode())
        return row and row[0]

    def metadata(self, ns: str, collection: str, key: bytes) -> bytes | None:
        """Return the serialised KVMetadataWrite of a key, or of a key hash."""
        row = self._snapshot.get_metadata(ns, collection, key)
        return row and row[0]

    def labelled(self, ns: str, collection: str) -> bool:
        """Whether any key of a namespace or collection may have metadata."""
        return self._snapshot.labelled(ns, collection)


State = CommittedState | SnapshotState
"""What a block, or a simulation, finds."""


def parameter(state: State, space: Space, key: bytes) -> bytes | None:
    """Return the policy of a key, a SignaturePolicyEnvelope; None = it has none.

    An empty one counts as none when a transaction is validated.
    """
    metadata = state.metadata(space.ns, space.collection, key)
    if metadata is None:
        return None
    for entry in kv_rwset_pb2.KVMetadataWrite.FromString(metadata).entries:
        if entry.name == VALIDATION_PARAMETER:
            return bytes(entry.value)
    return None


def key_policy(raw: bytes) -> Evaluator:
    """Return the policy of a key; it is compiled once, when it is evaluated first."""
    compiled = cache(partial(signature_policy, raw))

    def holds(identities: Sequence[Identity]) -> bool:
        return compiled()(identities)

    return holds


def signature_policy(raw: bytes) -> Evaluator:
    """Return the policy that a serialised SignaturePolicyEnvelope stands for."""
    try:
        return evaluator(raw)
    except InvalidInput:
        return never


def never(_: Sequence[Identity]) -> bool:
    """Stand for a policy that cannot be read."""
    return False
