"""What is defined on the channel: Fabric's `_lifecycle`, as far as one node needs it.

A definition is committed only for what this node approved (targets.py), and only as the
next sequence. A user simulation records one read, of `Sequence`; so an upgrade that
commits in between invalidates its transaction.
Source: docs/fabric/lifecycle.md
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Protocol

from fabric_protos.ledger.queryresult import kv_query_result_pb2
from fabric_protos.peer import policy_pb2, proposal_response_pb2
from fabric_protos.peer.lifecycle import (
    chaincode_definition_pb2,
    db_pb2,
    lifecycle_pb2,
)
from fabric_protos.peer.lifecycle.lifecycle_pb2 import (
    CommitChaincodeDefinitionArgs as Args,
)
from google.protobuf.message import DecodeError

from chaindock.errors import (
    ChaindockError,
    Denied,
    InvalidInput,
    LedgerCorrupt,
    NotFound,
    StartFailed,
    Unsupported,
)
from chaindock.identity.msp import Role
from chaindock.ids import require_chaincode_name, require_version

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from chaindock.identity.msp import Identity
    from chaindock.ids import Ccid
    from chaindock.ledger.simulator import Simulator
    from chaindock.lifecycle.targets import TargetState

    Function = Callable[[Simulator, bytes], bytes]


class Reads(Protocol):
    """What reads a state: a simulation, or the validator of a block."""

    def get_state(self, ns: str, key: str) -> bytes | None:
        """Return a committed value, None if the key is absent."""


NAMESPACE: Final = "_lifecycle"
ENDORSEMENT: Final = "/Channel/Application/Endorsement"
_DEFAULT_POLICY: Final[bytes] = policy_pb2.ApplicationPolicy(
    channel_config_policy_reference=ENDORSEMENT
).SerializeToString()
_DATATYPE: Final = "ChaincodeDefinition"
_FIELDS: Final = ("Sequence", "EndorsementInfo", "ValidationInfo", "Collections")
_METADATA: Final = "namespaces/metadata/"
_FIELD: Final = "namespaces/fields/"
_PAGE: Final = 100
_WRITERS: Final = "/Channel/Application/Writers"
_ERROR: Final = 500
_NOT_FOUND: Final = 404


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
    return int(_read_field(simulator, name, "Sequence").Int64)


def _write_definition(simulator: Simulator, args: Args) -> None:
    """Record the writes that define, or redefine, a chaincode.

    Only what differs from the committed state is written, as Fabric does.
    """
    name = args.name
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
    metadata = db_pb2.StateMetadata(datatype=_DATATYPE, fields=_FIELDS)
    wanted = {f"{_METADATA}{name}": metadata.SerializeToString()}
    for field, data in zip(_FIELDS, values, strict=True):
        wanted[f"{_FIELD}{name}/{field}"] = data.SerializeToString()
    for key, value in wanted.items():
        if simulator.get_state(NAMESPACE, key) != value:
            simulator.put_state(NAMESPACE, key, value)


def read_definition(simulator: Reads, name: str) -> Args | None:
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
        result = Args(
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


def _defined_names(simulator: Simulator) -> list[str]:
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


def _read_field(simulator: Reads, name: str, field: str) -> db_pb2.StateData:
    raw = simulator.get_state(NAMESPACE, f"{_FIELD}{name}/{field}")
    try:
        return db_pb2.StateData.FromString(raw or b"")
    except DecodeError as error:
        raise _corrupt(name) from error


def _corrupt(name: str) -> LedgerCorrupt:
    return LedgerCorrupt(f"the definition of {name!r} on the ledger cannot be read")


# --- the system chaincode -----------------------------------------------------------


class LifecycleContract:
    """The system chaincode `_lifecycle` of one organisation, inside the node."""

    def __init__(self, approvals: TargetState, mspid: str) -> None:
        self._approvals = approvals
        self._mspid = mspid
        self._functions: Mapping[str, Function] = {
            "CommitChaincodeDefinition": self._commit,
            "QueryChaincodeDefinition": self._query,
            "QueryChaincodeDefinitions": self._query_all,
        }

    def execute(
        self, simulator: Simulator, args: Sequence[bytes], identity: Identity
    ) -> proposal_response_pb2.Response:
        """Return the answer to a call; never raises for what a caller can send.

        `args`: name of the function, serialised argument message. `identity`: who signed.
        """
        if len(args) != 2:
            return _failed(
                "lifecycle scc operations require exactly two arguments but received "
                f"{len(args)}"
            )
        name = args[0].decode(errors="replace")
        failed = f"failed to invoke backing implementation of '{name}': "
        try:
            payload = self._call(simulator, name, args[1], identity)
        except NotFound as error:
            return _failed(error.message, _NOT_FOUND)
        except Denied as error:
            return _failed(
                f"Failed to authorize invocation due to failed ACL check: {error.message}"
            )
        except DecodeError as error:
            return _failed(f"{failed}failed to decode input arg to {name}: {error}")
        except ChaindockError as error:
            return _failed(failed + error.message)
        return proposal_response_pb2.Response(status=200, payload=payload)

    def _call(
        self, simulator: Simulator, name: str, raw: bytes, identity: Identity
    ) -> bytes:
        if identity.role not in {Role.CLIENT, Role.ADMIN}:
            raise Denied(
                f"failed evaluating policy on signed data during check policy "
                f"[{_WRITERS}]: [signature set did not satisfy policy]"
            )
        function = self._functions.get(name)
        if function is None:
            raise Unsupported(f"function {name!r} is not supported by Chaindock")
        return function(simulator, raw)

    def _commit(self, simulator: Simulator, raw: bytes) -> bytes:
        args = Args.FromString(raw)
        args.endorsement_plugin = args.endorsement_plugin or "escc"
        args.validation_plugin = args.validation_plugin or "vscc"
        args.validation_parameter = args.validation_parameter or _DEFAULT_POLICY
        require_chaincode_name(args.name)
        require_version(args.version)
        expected = read_sequence(simulator, args.name) + 1
        if args.sequence != expected:
            raise InvalidInput(
                f"requested sequence is {args.sequence}, but new definition must be "
                f"sequence {expected}"
            )
        if len(args.collections.config):
            raise Unsupported("private data collections are not supported by Chaindock")
        approval = self._approvals.approval(args.name, args.sequence)
        if (
            approval is None
            or approval.version != args.version
            or approval.init_required != args.init_required
        ):
            raise InvalidInput(
                f"chaincode definition not agreed to by this org ({self._mspid})"
            )
        _write_definition(simulator, args)
        result = lifecycle_pb2.CommitChaincodeDefinitionResult()
        return bytes(result.SerializeToString())

    def _query(self, simulator: Simulator, raw: bytes) -> bytes:
        name = lifecycle_pb2.QueryChaincodeDefinitionArgs.FromString(raw).name
        found = read_definition(simulator, name)
        if found is None:
            raise NotFound(f"namespace {name} is not defined")
        result = lifecycle_pb2.QueryChaincodeDefinitionResult(
            **_shown(found), approvals={self._mspid: True}
        )
        return bytes(result.SerializeToString())

    def _query_all(self, simulator: Simulator, raw: bytes) -> bytes:
        lifecycle_pb2.QueryChaincodeDefinitionsArgs.FromString(raw)
        result = lifecycle_pb2.QueryChaincodeDefinitionsResult()
        for name in _defined_names(simulator):
            found = read_definition(simulator, name)
            if found is not None:
                result.chaincode_definitions.add(name=name, **_shown(found))
        return bytes(result.SerializeToString())


def _shown(found: Args) -> dict[str, Any]:
    """Return the fields that answers to queries have, too."""
    names = (field.name for field in Args.DESCRIPTOR.fields)
    return {name: getattr(found, name) for name in names if name != "name"}


def _failed(message: str, status: int = _ERROR) -> proposal_response_pb2.Response:
    return proposal_response_pb2.Response(status=status, message=message)
