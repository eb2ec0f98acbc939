"""The system chaincode `_lifecycle`, as far as one node needs it.

A definition is committed only for what this node approved (targets.py), and only as the
next sequence.
Source: docs/fabric/lifecycle.md
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fabric_protos.peer import proposal_response_pb2
from fabric_protos.peer.lifecycle import lifecycle_pb2
from google.protobuf.message import DecodeError

from chaindock.errors import ChaindockError, Denied, InvalidInput, NotFound, Unsupported
from chaindock.identity.msp import Role
from chaindock.ids import require_chaincode_name, require_version
from chaindock.lifecycle.definitions import (
    defined_names,
    has_default_policy,
    read_definition,
    read_sequence,
    with_defaults,
    write_definition,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from chaindock.identity.msp import Identity
    from chaindock.lifecycle.definitions import Approvals, RangeState

    Function = Callable[[RangeState, bytes], bytes]

WRITERS: Final = "/Channel/Application/Writers"
_ERROR: Final = 500
_NOT_FOUND: Final = 404


class LifecycleContract:
    """Runs inside the node, with the simulator of the transaction.

    Args:
        approvals: what this organisation agreed to.
        mspid: of this organisation.
    """

    def __init__(self, approvals: Approvals, mspid: str) -> None:
        self._approvals = approvals
        self._mspid = mspid
        self._functions: Mapping[str, Function] = {
            "CommitChaincodeDefinition": self._commit,
            "QueryChaincodeDefinition": self._query,
            "QueryChaincodeDefinitions": self._query_all,
        }

    def execute(
        self, simulator: RangeState, args: Sequence[bytes], identity: Identity
    ) -> proposal_response_pb2.Response:
        """Return the answer to a call; never raises for what a caller can send.

        Args:
            simulator: of the transaction.
            args: name of the function, serialised argument message.
            identity: who signed the proposal.
        """
        if len(args) != 2:
            return _failed(
                "lifecycle scc operations require exactly two arguments but received "
                f"{len(args)}"
            )
        name = args[0].decode(errors="replace")
        try:
            payload = self._call(simulator, name, args[1], identity)
        except NotFound as error:
            return _failed(error.message, _NOT_FOUND)
        except Denied as error:
            return _failed(
                f"Failed to authorize invocation due to failed ACL check: {error.message}"
            )
        except DecodeError as error:
            return _failed(
                f"failed to invoke backing implementation of '{name}': "
                f"failed to decode input arg to {name}: {error}"
            )
        except ChaindockError as error:
            return _failed(
                f"failed to invoke backing implementation of '{name}': {error.message}"
            )
        return proposal_response_pb2.Response(status=200, payload=payload)

    def _call(
        self, simulator: RangeState, name: str, raw: bytes, identity: Identity
    ) -> bytes:
        if identity.role not in {Role.CLIENT, Role.ADMIN}:
            raise Denied(
                f"failed evaluating policy on signed data during check policy "
                f"[{WRITERS}]: [signature set did not satisfy policy]"
            )
        function = self._functions.get(name)
        if function is None:
            raise Unsupported(f"function {name!r} is not supported by Chaindock")
        return function(simulator, raw)

    def _commit(self, simulator: RangeState, raw: bytes) -> bytes:
        args = with_defaults(
            lifecycle_pb2.CommitChaincodeDefinitionArgs.FromString(raw)
        )
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
        if not has_default_policy(args):
            raise Unsupported(
                "endorsement policies other than the channel's default are not "
                "evaluated yet"
            )
        approval = self._approvals.approval(args.name, args.sequence)
        if (
            approval is None
            or approval.version != args.version
            or approval.init_required != args.init_required
        ):
            raise InvalidInput(
                f"chaincode definition not agreed to by this org ({self._mspid})"
            )
        write_definition(simulator, args)
        return bytes(
            lifecycle_pb2.CommitChaincodeDefinitionResult().SerializeToString()
        )

    def _query(self, simulator: RangeState, raw: bytes) -> bytes:
        name = lifecycle_pb2.QueryChaincodeDefinitionArgs.FromString(raw).name
        found = read_definition(simulator, name)
        if found is None:
            raise NotFound(f"namespace {name} is not defined")
        result = lifecycle_pb2.QueryChaincodeDefinitionResult(
            sequence=found.sequence,
            version=found.version,
            endorsement_plugin=found.endorsement_plugin,
            validation_plugin=found.validation_plugin,
            validation_parameter=found.validation_parameter,
            collections=found.collections,
            init_required=found.init_required,
            approvals={self._mspid: True},
        )
        return bytes(result.SerializeToString())

    def _query_all(self, simulator: RangeState, raw: bytes) -> bytes:
        lifecycle_pb2.QueryChaincodeDefinitionsArgs.FromString(raw)
        result = lifecycle_pb2.QueryChaincodeDefinitionsResult()
        for name in defined_names(simulator):
            found = read_definition(simulator, name)
            if found is not None:
                result.chaincode_definitions.add(
                    name=name,
                    sequence=found.sequence,
                    version=found.version,
                    endorsement_plugin=found.endorsement_plugin,
                    validation_plugin=found.validation_plugin,
                    validation_parameter=found.validation_parameter,
                    collections=found.collections,
                    init_required=found.init_required,
                )
        return bytes(result.SerializeToString())


def _failed(message: str, status: int = _ERROR) -> proposal_response_pb2.Response:
    return proposal_response_pb2.Response(status=status, message=message)
