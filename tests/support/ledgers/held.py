"""A state that a test makes, for the validator."""

from __future__ import annotations

from typing import Any

from fabric_protos.ledger.rwset.kvrwset import kv_rwset_pb2
from fabric_protos.peer import policy_pb2

from chaindock.lifecycle.definitions import Definition, write_definition


class HeldState:
    """The state that a block finds, as a test makes it."""

    def __init__(self) -> None:
        self.values: dict[Any, bytes] = {}
        self.labels: dict[Any, bytes] = {}

    def metadata(self, ns: Any, collection: Any, key: Any) -> Any:
        return self.labels.get((ns, collection, key))

    def get_state(self, ns: Any, key: Any) -> Any:
        return self.values.get((ns, key.encode()))

    def labelled(self, ns: Any, collection: Any) -> Any:
        return any(label[:2] == (ns, collection) for label in self.labels)

    def label(self, ns: Any, key: Any, policy: bytes, collection: Any = "") -> None:
        """Give a key, or key hash, a policy."""
        entry = kv_rwset_pb2.KVMetadataEntry(name="VALIDATION_PARAMETER", value=policy)
        write = kv_rwset_pb2.KVMetadataWrite(entries=[entry])
        self.labels[ns, collection, key] = write.SerializeToString()

    def put_state(self, ns: Any, key: Any, value: Any) -> None:
        self.values[ns, key.encode()] = value

    def define(self, name: Any, **fields: Any) -> None:
        """Define a chaincode, with the channel's default policy unless told."""
        reference = policy_pb2.ApplicationPolicy(
            channel_config_policy_reference="/Channel/Application/Endorsement"
        )
        fields.setdefault("validation_parameter", reference.SerializeToString())
        write: Any = write_definition
        write(self, Definition(name=name, **fields))
