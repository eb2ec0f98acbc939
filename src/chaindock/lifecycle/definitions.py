"""What is defined on the channel: Fabric's `_lifecycle` state, and how it is read.

A user simulation records one read, of `Sequence`; so an upgrade that commits in between
invalidates its transaction.
Source: docs/fabric/lifecycle.md
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from fabric_protos.ledger.queryresult import kv_query_result_pb2
from fabric_protos.peer import policy_pb2
from fabric_protos.peer.lifecycle import (
    chaincode_definition_pb2,
    db_pb2,
    lifecycle_pb2,
)
from google.protobuf.message import DecodeError

from chaindock.errors import LedgerCorrupt, NotFound, StartFailed

if TYPE_CHECKING:
    from chaindock.ids import Ccid

NAMESPACE: Final = "_lifecycle"
ENDORSEMENT: Final = "/Channel/Application/Endorsement"
_DEFAULT_POLICY: Final[bytes] = policy_pb2.ApplicationPolicy(
    channel_config_policy_reference=ENDORSEMENT
).SerializeToString()
_DATATYPE: Final = "ChaincodeDefinition"
_FIELDS: Final = ("Sequence", "EndorsementInfo", "ValidationInfo", "Collections")
_METADATA: Final = "namespaces/metadata/"
_PAGE: Final = 100


class State(Protocol):
    """The part of a simulator that is used here (ledger.Simulator)."""

    def get_state(self, ns: str, key: str) -> bytes | None:
        """Return the committed value; records the read."""

    def put_state(self, ns: str, key: str, value: bytes) -> None:
        """Record a write."""


class Rows(Protocol):
    """An open range query (ledger.Results)."""

    def take(self, n: int) -> list[bytes]:
        """Return up to `n` serialised queryresult.KV; fewer = exhausted."""

    def close(self) -> None:
        """Release it. Idempotent."""


class RangeState(State, Protocol):
    """State that can also be listed."""

    def open_range(self, ns: str, start: str, end: str) -> Rows:
        """Start a range query over `[start, end)`."""


@dataclass(frozen=True)
class Approval:
    """What this node agreed to run for one sequence of a definition."""

    name: str
    sequence: int
    version: str
    ccid: Ccid
    init_required: bool = False


class Approvals(Protocol):
    """Where approvals are kept; targets.TargetState is one."""

    def approval(self, name: str, sequence: int) -> Approval | None:
        """Return what to run for this sequence, from memory."""

    def is_stopped(self, name: str) -> bool:
        """Whether a user stopped the chaincode."""


@dataclass(frozen=True)
class Definition:
    """A committed definition, and what runs it here."""

    name: str
    version: str
    sequence: int
    ccid: Ccid
    init_required: bool = False


class Definitions:
    """Finds what a chaincode name means, as of a simulation."""

    def __init__(self, approvals: Approvals) -> None:
        self._approvals = approvals

    def get(self, simulator: State, name: str) -> Definition:
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
        return Definition(
            name, approval.version, sequence, approval.ccid, approval.init_required
        )


def sequence_key(name: str) -> str:
    """Return the key whose read ties a transaction to a definition."""
    return f"namespaces/fields/{name}/Sequence"


def read_sequence(simulator: State, name: str) -> int:
    """Return the committed sequence of `name`; 0 when it is not defined."""
    raw = simulator.get_state(NAMESPACE, sequence_key(name))
    return 0 if raw is None else _parse(raw, name).Int64


def write_definition(
    simulator: State, args: lifecycle_pb2.CommitChaincodeDefinitionArgs
) -> None:
    """Record the writes that define, or redefine, a chaincode.

    Only what differs from the committed state is written, as Fabric does.
    """
    name = args.name
    metadata = db_pb2.StateMetadata(datatype=_DATATYPE, fields=_FIELDS)
    wanted = {f"{_METADATA}{name}": metadata.SerializeToString()}
    for field, data in _fields_of(args).items():
        wanted[f"namespaces/fields/{name}/{field}"] = data.SerializeToString()
    for key, value in wanted.items():
        if simulator.get_state(NAMESPACE, key) != value:
            simulator.put_state(NAMESPACE, key, value)


def read_definition(
    simulator: State, name: str
) -> lifecycle_pb2.CommitChaincodeDefinitionArgs | None:
    """Return all fields of a definition; None when there is none."""
    if simulator.get_state(NAMESPACE, f"{_METADATA}{name}") is None:
        return None
    data = {field: _read_field(simulator, name, field) for field in _FIELDS}
    try:
        endorsement = chaincode_definition_pb2.ChaincodeEndorsementInfo.FromString(
            data["EndorsementInfo"].Bytes
        )
        validation = chaincode_definition_pb2.ChaincodeValidationInfo.FromString(
            data["ValidationInfo"].Bytes
        )
        result = lifecycle_pb2.CommitChaincodeDefinitionArgs(
            sequence=data["Sequence"].Int64,
            name=name,
            version=endorsement.version,
            endorsement_plugin=endorsement.endorsement_plugin,
            validation_plugin=validation.validation_plugin,
            validation_parameter=validation.validation_parameter,
            init_required=endorsement.init_required,
        )
        result.collections.MergeFromString(data["Collections"].Bytes)
    except DecodeError as error:
        raise _corrupt(name) from error
    return result


def defined_names(simulator: RangeState) -> list[str]:
    """Return the names of all definitions, sorted."""
    from_key, to_key = _METADATA, _METADATA[:-1] + "0"  # "0" follows "/"
    rows = simulator.open_range(NAMESPACE, from_key, to_key)
    names: list[str] = []
    try:
        while batch := rows.take(_PAGE):
            for row in batch:
                key = kv_query_result_pb2.KV.FromString(row).key
                names.append(key.removeprefix(_METADATA))
    finally:
        rows.close()
    return names


def with_defaults(
    args: lifecycle_pb2.CommitChaincodeDefinitionArgs,
) -> lifecycle_pb2.CommitChaincodeDefinitionArgs:
    """Return `args` with the plugins and the policy that Fabric fills in."""
    result = lifecycle_pb2.CommitChaincodeDefinitionArgs()
    result.CopyFrom(args)
    result.endorsement_plugin = args.endorsement_plugin or "escc"
    result.validation_plugin = args.validation_plugin or "vscc"
    result.validation_parameter = args.validation_parameter or _DEFAULT_POLICY
    return result


def has_default_policy(args: lifecycle_pb2.CommitChaincodeDefinitionArgs) -> bool:
    """Whether the definition refers to the channel's own endorsement policy."""
    return bool(args.validation_parameter == _DEFAULT_POLICY)


def _fields_of(
    args: lifecycle_pb2.CommitChaincodeDefinitionArgs,
) -> dict[str, db_pb2.StateData]:
    endorsement = chaincode_definition_pb2.ChaincodeEndorsementInfo(
        version=args.version,
        init_required=args.init_required,
        endorsement_plugin=args.endorsement_plugin,
    )
    validation = chaincode_definition_pb2.ChaincodeValidationInfo(
        validation_plugin=args.validation_plugin,
        validation_parameter=args.validation_parameter,
    )
    values = (
        db_pb2.StateData(Int64=args.sequence),
        db_pb2.StateData(Bytes=endorsement.SerializeToString()),
        db_pb2.StateData(Bytes=validation.SerializeToString()),
        db_pb2.StateData(Bytes=args.collections.SerializeToString()),
    )
    return dict(zip(_FIELDS, values, strict=True))


def _read_field(simulator: State, name: str, field: str) -> db_pb2.StateData:
    raw = simulator.get_state(NAMESPACE, f"namespaces/fields/{name}/{field}")
    return _parse(raw or b"", name)


def _parse(raw: bytes, name: str) -> db_pb2.StateData:
    try:
        return db_pb2.StateData.FromString(raw)
    except DecodeError as error:
        raise _corrupt(name) from error


def _corrupt(name: str) -> LedgerCorrupt:
    return LedgerCorrupt(f"the definition of {name!r} on the ledger cannot be read")
