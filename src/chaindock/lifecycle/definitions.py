"""What a chaincode name means on the channel, in the state of Fabric's `_lifecycle`.

A user simulation records one read, of `Sequence`; so an upgrade that
commits in between invalidates its transaction.
Source: docs/fabric/lifecycle.md
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, TypeAlias

from fabric_protos.peer import policy_pb2
from fabric_protos.peer.collection_pb2 import CollectionConfigPackage
from fabric_protos.peer.lifecycle import (
    chaincode_definition_pb2,
    db_pb2,
    lifecycle_pb2,
)

from chaindock.errors import NotFound, StartFailed
from chaindock.ids import CHANNEL_ENDORSEMENT
from chaindock.lifecycle.records import (
    DEFINITIONS,
    NAMESPACE,
    Records,
    names_in,
    parsed,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from chaindock.ids import Ccid
    from chaindock.ledger.simulator import Simulator
    from chaindock.lifecycle.records import Reads
    from chaindock.lifecycle.targets import TargetState

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
    """What this node agreed to run for one sequence of a definition.

    When that sequence is committed, it is the definition that is in force.
    """

    name: str
    sequence: int
    version: str
    ccid: Ccid
    init_required: bool = False


class Definitions:
    """Finds what a chaincode name means, as of a simulation."""

    def __init__(self, approvals: TargetState) -> None:
        self._approvals = approvals

    def get(self, simulator: Simulator, name: str) -> Approval:
        """Return the definition of `name` as `simulator` sees it.

        Raises:
            NotFound: not defined, or defined and not installed here.
            StartFailed: a user stopped it.
        """
        sequence = read_sequence(simulator, name)
        if sequence == 0:
            raise NotFound(
                f"chaincode {name} not found",
                hint="see what is there: chaindock ps",
                chaincode=name,
            )
        approval = self._approvals.approval(name, sequence)
        if approval is None:
            raise NotFound(
                f"chaincode definition for '{name}' exists, but chaincode is not "
                "installed",
                hint="deploy it again: chaindock deploy",
                chaincode=name,
                sequence=sequence,
            )
        if self._approvals.is_stopped(name):
            raise StartFailed(
                f"chaincode {name!r} was stopped",
                hint=f"start it: chaindock start {name}",
                ccid=approval.ccid,
            )
        # A snapshot of an older sequence gets what runs now, under its own number.
        return replace(approval, sequence=sequence)


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
