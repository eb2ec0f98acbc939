"""What a chaincode name means on the channel, in records in Fabric's `_lifecycle`.

A record has a key for its metadata and one for each field; a write changes only those whose
value differs, so read-write sets are those of a peer. A user simulation records one read,
of `Sequence`; so an upgrade that commits in between invalidates its transaction.
Source: docs/fabric/lifecycle.md#definitions
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, Protocol, TypeAlias, TypeVar, cast

from fabric_protos.ledger.queryresult.kv_query_result_pb2 import KV
from fabric_protos.peer import policy_pb2
from fabric_protos.peer.collection_pb2 import CollectionConfigPackage
from fabric_protos.peer.lifecycle import chaincode_definition_pb2, db_pb2, lifecycle_pb2
from google.protobuf.message import DecodeError, Message

from chaindock.errors import LedgerCorrupt, NotFound
from chaindock.ids import CHANNEL_ENDORSEMENT, LIFECYCLE, Ccid
from chaindock.ledger.queries import Results
from chaindock.ledger.simulator import Simulator

M = TypeVar("M", bound=Message)
NAMESPACE: Final = LIFECYCLE
DEFINITIONS: Final = "namespaces"
SOURCES: Final = "chaincode-sources"
_PAGE: Final = 100
Definition: TypeAlias = lifecycle_pb2.CommitChaincodeDefinitionArgs
"""All parts of a definition."""
_DEFAULT_POLICY: Final[bytes] = policy_pb2.ApplicationPolicy(
    channel_config_policy_reference=CHANNEL_ENDORSEMENT
).SerializeToString()
PARAMETERS: Final = ("EndorsementInfo", "ValidationInfo", "Collections")


class Reads(Protocol):
    """What reads a state: a simulation, or the validator of a block."""

    def get_state(self, ns: str, key: str) -> bytes | None:
        """Return a committed value, None if the key is absent."""


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


_DEFINITIONS: Final = Records(
    DEFINITIONS, "ChaincodeDefinition", ("Sequence", *PARAMETERS)
)


@dataclass(frozen=True)
class Approval:
    """What a sequence of a definition runs on this node; `ccid` "" = none approved."""

    name: str
    sequence: int
    version: str
    ccid: Ccid
    init_required: bool = False


def not_installed(name: str, sequence: int) -> NotFound:
    """Say that a definition names no package that is here."""
    return NotFound(
        f"chaincode definition for '{name}' exists, but chaincode is not installed",
        hint="deploy it again: chaindock deploy; or install the package that was "
        "approved: peer lifecycle chaincode install",
        chaincode=name,
        sequence=sequence,
    )


def read_sequence(simulator: Reads, name: str) -> int:
    """Return the committed sequence of `name`; 0 when it is not defined."""
    return int(_DEFINITIONS.read_field(simulator, name, "Sequence").Int64)


def read_definition(simulator: Reads, name: str) -> Definition | None:
    """Return a definition; None when there is none. Raises: LedgerCorrupt."""
    fields = _DEFINITIONS.read(simulator, name)
    return None if fields is None else from_fields(name, fields)


def write_definition(simulator: Simulator, definition: Definition) -> None:
    """Record the writes that define, or redefine, a chaincode."""
    sequence = db_pb2.StateData(Int64=definition.sequence)
    fields = {"Sequence": sequence, **parameters(definition)}
    _DEFINITIONS.write(simulator, definition.name, fields)


def from_fields(name: str, fields: Mapping[str, db_pb2.StateData]) -> Definition:
    """Return the definition that fields of a record stand for. Raises: LedgerCorrupt."""
    endorsement = parsed(
        chaincode_definition_pb2.ChaincodeEndorsementInfo,
        fields["EndorsementInfo"].Bytes,
        name,
    )
    validation = parsed(
        chaincode_definition_pb2.ChaincodeValidationInfo,
        fields["ValidationInfo"].Bytes,
        name,
    )
    collections = parsed(CollectionConfigPackage, fields["Collections"].Bytes, name)
    return Definition(
        sequence=fields["Sequence"].Int64 if "Sequence" in fields else 0,
        name=name,
        version=endorsement.version,
        endorsement_plugin=endorsement.endorsement_plugin,
        validation_plugin=validation.validation_plugin,
        validation_parameter=validation.validation_parameter,
        collections=collections,
        init_required=endorsement.init_required,
    )


def parameters(definition: Definition) -> dict[str, db_pb2.StateData]:
    """Return the fields that organisations agree on, all but the sequence."""
    endorsement = chaincode_definition_pb2.ChaincodeEndorsementInfo(
        version=definition.version,
        init_required=definition.init_required,
        endorsement_plugin=definition.endorsement_plugin,
    )
    validation = chaincode_definition_pb2.ChaincodeValidationInfo(
        validation_plugin=definition.validation_plugin,
        validation_parameter=definition.validation_parameter,
    )
    messages = (endorsement, validation, definition.collections)
    return {
        field: db_pb2.StateData(Bytes=message.SerializeToString())
        for field, message in zip(PARAMETERS, messages, strict=True)
    }


def defined_names(simulator: Simulator) -> list[str]:
    """Return the names of all chaincodes that are defined."""
    prefix = _DEFINITIONS.key("")
    rows = simulator.open_range(NAMESPACE, prefix, f"{prefix}\x7f")
    return names_in(rows, prefix)


def set_defaults(definition: Definition) -> None:
    """Fill in what was not given: plugins, and the channel's own endorsement policy."""
    definition.endorsement_plugin = definition.endorsement_plugin or "escc"
    definition.validation_plugin = definition.validation_plugin or "vscc"
    definition.validation_parameter = definition.validation_parameter or _DEFAULT_POLICY
