"""The state of `_lifecycle` that holds definitions, and what a name means."""

from typing import Any

import pytest
from fabric_protos.peer import policy_pb2
from fabric_protos.peer.lifecycle import chaincode_definition_pb2, db_pb2

from chaindock.errors import LedgerCorrupt
from chaindock.ids import Ccid
from chaindock.lifecycle.definitions import (
    Definition,
    read_definition,
    set_defaults,
    write_definition,
)

CCID = Ccid("basic:" + "a" * 64)
FIELDS = "namespaces/fields/basic/"


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


def test_a_damaged_definition_is_named(state):
    commit(state)
    state.commit()
    state.public["_lifecycle", FIELDS + "ValidationInfo"] = (b"\x12\x01\xff", 1)
    with pytest.raises(LedgerCorrupt, match="basic"):
        read_definition(state, "basic")
