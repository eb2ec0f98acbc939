"""Records in the state of `_lifecycle`, laid out as Fabric lays out its structures.

A record has a key for its metadata and one for each field; a write changes only those whose
value differs, so read-write sets are those of a peer.
Source: docs/fabric/lifecycle.md#definitions
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, Protocol, TypeVar, cast

from fabric_protos.ledger.queryresult.kv_query_result_pb2 import KV
from fabric_protos.peer.lifecycle import db_pb2
from google.protobuf.message import DecodeError, Message

from chaindock.errors import LedgerCorrupt
from chaindock.ids import LIFECYCLE
from chaindock.ledger.queries import Results
from chaindock.ledger.simulator import Simulator


class Reads(Protocol):
    """What reads a state: a simulation, or the validator of a block."""

    def get_state(self, ns: str, key: str) -> bytes | None:
        """Return a committed value, None if the key is absent."""


M = TypeVar("M", bound=Message)
NAMESPACE: Final = LIFECYCLE
DEFINITIONS: Final = "namespaces"
SOURCES: Final = "chaincode-sources"
_PAGE: Final = 100


@dataclass(frozen=True)
class Records:
    """Records of one kind of structure; `collection` "" = public."""

    space: str
    """First part of the keys, `DEFINITIONS` or `SOURCES`."""
    datatype: str
    """The structure's name."""
    fields: tuple[str, ...]
    """The structure's fields, in Fabric's order."""
    collection: str = ""

    def key(self, name: str, field: str | None = None) -> str:
        """Return the key of a field, or of the metadata."""
        if field is None:
            return f"{self.space}/metadata/{name}"
        return f"{self.space}/fields/{name}/{field}"

    def exists(self, simulator: Reads, name: str) -> bool:
        """Whether there is such a record."""
        return self._get(simulator, self.key(name)) is not None

    def read(self, simulator: Reads, name: str) -> dict[str, db_pb2.StateData] | None:
        """Return the fields; None when there is no such record. Raises: LedgerCorrupt."""
        if not self.exists(simulator, name):
            return None
        return {field: self.read_field(simulator, name, field) for field in self.fields}

    def read_field(self, simulator: Reads, name: str, field: str) -> db_pb2.StateData:
        """Return one field; empty when there is none. Raises: LedgerCorrupt."""
        raw = self._get(simulator, self.key(name, field))
        return parsed(db_pb2.StateData, raw or b"", name)

    def write(
        self, simulator: Simulator, name: str, values: Mapping[str, db_pb2.StateData]
    ) -> None:
        """Make the record have these values."""
        key = self.key(name)
        raw = self._get(simulator, key)
        former = parsed(db_pb2.StateMetadata, raw or b"", name)
        existing = {
            field: self._get(simulator, self.key(name, field))
            for field in former.fields
        }
        for field, value in values.items():
            data = value.SerializeToString()
            if existing.get(field) != data:
                self._put(simulator, self.key(name, field), data)
        if (metadata := self._metadata()) != raw:
            self._put(simulator, key, metadata)

    def differing(
        self, simulator: Simulator, name: str, values: Mapping[str, db_pb2.StateData]
    ) -> list[str]:
        """Return the fields whose hash is not that of `values`.

        Without such a record, the list holds the name of the structure alone.
        """
        wanted = {self.key(name): self._metadata()}
        for field, value in values.items():
            wanted[self.key(name, field)] = value.SerializeToString()
        ns, collection = NAMESPACE, self.collection
        wrong = [
            simulator.get_private_hash(ns, collection, key) != sha256(value).digest()
            for key, value in wanted.items()
        ]
        if wrong[0]:
            return [self.datatype]
        return [field for field, bad in zip(values, wrong[1:], strict=True) if bad]

    def _metadata(self) -> bytes:
        metadata = db_pb2.StateMetadata(datatype=self.datatype, fields=self.fields)
        return bytes(metadata.SerializeToString())

    def _get(self, simulator: Reads, key: str) -> bytes | None:
        if self.collection:
            private = cast("Simulator", simulator)  # a validator reads what is public
            return private.get_private(NAMESPACE, self.collection, key)
        return simulator.get_state(NAMESPACE, key)

    def _put(self, simulator: Simulator, key: str, value: bytes) -> None:
        if self.collection:
            simulator.put_private(NAMESPACE, self.collection, key, value)
        else:
            simulator.put_state(NAMESPACE, key, value)


def names_in(rows: Results, prefix: str) -> list[str]:
    """Return what follows `prefix` in the keys of a range, and close the range."""
    names: list[str] = []
    try:
        while batch := rows.take(_PAGE):
            keys = (KV.FromString(row).key for row in batch)
            names += [key.removeprefix(prefix) for key in keys]
    finally:
        rows.close()
    return names


def parsed(message: type[M], raw: bytes, name: str) -> M:
    """Return `raw` as a message. Raises: LedgerCorrupt: names the chaincode."""
    try:
        return message.FromString(raw)
    except DecodeError as error:
        raise LedgerCorrupt(
            f"the definition of {name!r} on the ledger cannot be read"
        ) from error
