"""The state of `_lifecycle` that holds definitions, and what a name means."""

from typing import Any

import pytest
from fabric_protos.peer import policy_pb2
from fabric_protos.peer.lifecycle import chaincode_definition_pb2, db_pb2

from chaindock.errors import LedgerCorrupt, NotFound, StartFailed
from chaindock.ids import Ccid
from chaindock.lifecycle.definitions import (
    Approval,
    Definition,
    Definitions,
    read_definition,
    set_defaults,
    write_definition,
)
from support.doubles.lifecycle_state import LifecycleState

CCID = Ccid("basic:" + "a" * 64)
FIELDS = "namespaces/fields/basic/"


class Approvals(dict[tuple[str, int], Approval]):
    stopped = False

    def approval(self, name: Any, sequence: Any) -> Any:
        return self.get((name, sequence))

    def is_stopped(self, name: Any) -> Any:
        return self.stopped


@pytest.fixture
def state() -> Any:
    return LifecycleState()


@pytest.fixture
def approvals() -> Any:
    return Approvals({("basic", 1): Approval("basic", 1, "1.0", CCID)})


def commit(state: Any, **fields: Any) -> None:
    fields = {"name": "basic", "sequence": 1, "version": "1.0", **fields}
    definition = Definition(**fields)
    set_defaults(definition)
    write_definition(state, definition)


def data(state: Any, field: Any) -> Any:
    raw = state.public["_lifecycle", FIELDS + field][0]
    return db_pb2.StateData.FromString(raw)


def test_a_definition_has_the_layout_of_fabric(state):
    commit(state)
    state.commit()
    metadata = db_pb2.StateMetadata.FromString(
        state.public["_lifecycle", "namespaces/metadata/basic"][0]
    )
    assert metadata.datatype == "ChaincodeDefinition"
    assert list(metadata.fields) == [
        "Sequence", "EndorsementInfo", "ValidationInfo", "Collections"
    ]  # fmt: skip
    assert data(state, "Sequence").Int64 == 1
    info = chaincode_definition_pb2.ChaincodeEndorsementInfo.FromString(
        data(state, "EndorsementInfo").Bytes
    )
    assert (info.version, info.endorsement_plugin) == ("1.0", "escc")
    validation = chaincode_definition_pb2.ChaincodeValidationInfo.FromString(
        data(state, "ValidationInfo").Bytes
    )
    assert validation.validation_plugin == "vscc"
    policy = policy_pb2.ApplicationPolicy.FromString(validation.validation_parameter)
    assert policy.channel_config_policy_reference == "/Channel/Application/Endorsement"
    assert data(state, "Collections").WhichOneof("Type") == "Bytes"
    assert all(value for value, _ in state.public.values())  # empty would be a delete


def test_an_upgrade_writes_only_what_differs(state):
    commit(state)
    state.commit()
    commit(state, sequence=2, version="2.0")
    assert sorted(key for _, key in state.writes) == [
        FIELDS + "EndorsementInfo",
        FIELDS + "Sequence",
    ]


def test_a_user_simulation_reads_the_sequence_alone(state, approvals):
    commit(state)
    state.commit()
    found = Definitions(approvals).get(state, "basic")
    assert (found.version, found.sequence, found.ccid) == ("1.0", 1, CCID)
    assert list(state.reads) == [("_lifecycle", FIELDS + "Sequence")]


def test_undefined_uninstalled_and_stopped_are_told_apart(state, approvals):
    definitions = Definitions(approvals)
    with pytest.raises(NotFound, match=r"^chaincode basic not found$"):
        definitions.get(state, "basic")
    commit(state)
    state.commit()
    approvals.stopped = True
    with pytest.raises(StartFailed):
        definitions.get(state, "basic")
    approvals.clear()
    with pytest.raises(NotFound) as caught:
        definitions.get(state, "basic")
    assert caught.value.message == (
        "chaincode definition for 'basic' exists, but chaincode is not installed"
    )


def test_a_damaged_definition_is_named(state):
    commit(state)
    state.commit()
    state.public["_lifecycle", FIELDS + "ValidationInfo"] = (b"\x12\x01\xff", 1)
    with pytest.raises(LedgerCorrupt, match="basic"):
        read_definition(state, "basic")
