"""What a chaincode name means on the channel, in the state of Fabric's `_lifecycle`.

A user simulation records one read, of `Sequence`; so an upgrade that
commits in between invalidates its transaction.
Source: docs/fabric/lifecycle.md
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

from fabric_protos.peer import policy_pb2
from fabric_protos.peer.collection_pb2 import CollectionConfigPackage
from fabric_protos.peer.lifecycle import chaincode_definition_pb2, db_pb2, lifecycle_pb2

from chaindock.errors import NotFound
from chaindock.ids import CHANNEL_ENDORSEMENT, Ccid
from chaindock.ledger.simulator import Simulator
from chaindock.lifecycle.records import (
    DEFINITIONS,
    NAMESPACE,
    Reads,
    Records,
    names_in,
    parsed,
)

Definition: TypeAlias = lifecycle_pb2.CommitChaincodeDefinitionArgs
"""All parts of a definition."""
_DEFAULT_POLICY: Final[bytes] = policy_pb2.ApplicationPolicy(
    channel_config_policy_reference=CHANNEL_ENDORSEMENT
).SerializeToString()
PARAMETERS: Final = ("EndorsementInfo", "ValidationInfo", "Collections")
_DEFINITIONS: Final = Records(
    DEFINITIONS, "ChaincodeDefinition", ("Sequence", *PARAMETERS)
)


@dataclass(frozen=True)
class Approval:
    """What a sequence of a definition runs on this node.

    `ccid` is "" when none of the node's organisations approved a package for it.
    """

    name: str
    sequence: int
    version: str
    ccid: Ccid
    init_required: bool = False


class DefinitionCommitter(Protocol):
    """Puts definitions on the ledger; endorser.DefinitionWriter is one."""

    async def commit(self, definition: Definition, ccid: Ccid) -> None:
        """Approve and commit a definition that runs the package `ccid`.

        Raises: ChaindockError: it may not be in effect.
        """

    async def put_indexes(self, name: str, files: Mapping[str, bytes]) -> None:
        """Make the indexes of rich queries that a package brings, by its file names."""

    def definition(self, name: str) -> Definition | None:
        """Return the committed definition of `name`; None when there is none."""


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
    """Return all fields of a definition; None when there is none.

    Raises: LedgerCorrupt.
    """
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
