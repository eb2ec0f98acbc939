"""The state of `_lifecycle`, and the system chaincode that writes it."""

from typing import Any

import pytest
from fabric_protos.ledger.queryresult import kv_query_result_pb2
from fabric_protos.peer import policy_pb2
from fabric_protos.peer.lifecycle import (
    chaincode_definition_pb2,
    db_pb2,
    lifecycle_pb2,
)

from chaindock.errors import LedgerCorrupt, NotFound, StartFailed
from chaindock.identity.msp import Role
from chaindock.ids import Ccid
from chaindock.lifecycle.definitions import (
    Approval,
    Definitions,
    LifecycleContract,
    read_definition,
)

CCID = Ccid("basic:" + "a" * 64)
Args = lifecycle_pb2.CommitChaincodeDefinitionArgs


class State(dict[tuple[str, str], bytes]):
    """Committed state; writes show at once, reads are remembered."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[Any] = []
        self.writes: list[Any] = []

    def get_state(self, ns: Any, key: Any) -> Any:
        self.reads.append((ns, key))
        return self.get((ns, key))

    def put_state(self, ns: Any, key: Any, value: Any) -> Any:
        self.writes.append(key)
        self[ns, key] = value

    def open_range(self, ns: Any, start: Any, end: Any) -> Any:
        rows = sorted(k for k in self if k[0] == ns and start <= k[1] < end)
        return Rows(kv_query_result_pb2.KV(key=k[1]).SerializeToString() for k in rows)


class Rows(list[bytes]):
    def take(self, n: Any) -> Any:
        taken, self[:] = self[:n], self[n:]
        return taken

    def close(self) -> Any:
        self.closed = True


class Approvals(dict[tuple[str, int], Approval]):
    stopped = False

    def approval(self, name: Any, sequence: Any) -> Any:
        return self.get((name, sequence))

    def is_stopped(self, name: Any) -> Any:
        return self.stopped


class Somebody:
    def __init__(self, role: Any) -> None:
        self.role = role


ADMIN = Somebody(Role.ADMIN)


@pytest.fixture
def state() -> Any:
    return State()


@pytest.fixture
def approvals() -> Any:
    return Approvals(
        {
            ("basic", 1): Approval("basic", 1, "1.0", CCID),
            ("basic", 2): Approval("basic", 2, "2.0", CCID),
        }
    )


@pytest.fixture
def contract(approvals: Any) -> Any:
    return LifecycleContract(approvals, "Org1MSP")


def call(
    contract: Any, state: Any, function: Any, message: Any, who: Any = ADMIN
) -> Any:
    raw = message if isinstance(message, bytes) else message.SerializeToString()
    return contract.execute(state, [function.encode(), raw], who)


def commit(contract: Any, state: Any, **fields: Any) -> Any:
    fields = {"name": "basic", "sequence": 1, "version": "1.0", **fields}
    return call(contract, state, "CommitChaincodeDefinition", Args(**fields))


def data(state: Any, field: Any) -> Any:
    raw = state["_lifecycle", f"namespaces/fields/basic/{field}"]
    return db_pb2.StateData.FromString(raw)


def test_a_definition_has_the_layout_of_fabric(contract, state):
    assert commit(contract, state).status == 200
    metadata = db_pb2.StateMetadata.FromString(
        state["_lifecycle", "namespaces/metadata/basic"]
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
    assert all(state.values())  # an empty value would be a delete


def test_an_upgrade_writes_only_what_differs(contract, state):
    commit(contract, state)
    state.writes.clear()
    assert commit(contract, state, sequence=2, version="2.0").status == 200
    assert sorted(state.writes) == [
        "namespaces/fields/basic/EndorsementInfo",
        "namespaces/fields/basic/Sequence",
    ]


def test_a_user_simulation_reads_the_sequence_alone(contract, state, approvals):
    commit(contract, state)
    state.reads.clear()
    found = Definitions(approvals).get(state, "basic")
    assert (found.version, found.sequence, found.ccid) == ("1.0", 1, CCID)
    assert state.reads == [("_lifecycle", "namespaces/fields/basic/Sequence")]


def test_undefined_uninstalled_and_stopped_are_told_apart(contract, state, approvals):
    definitions = Definitions(approvals)
    with pytest.raises(NotFound, match=r"^chaincode basic not found$"):
        definitions.get(state, "basic")
    commit(contract, state)
    approvals.stopped = True
    with pytest.raises(StartFailed):
        definitions.get(state, "basic")
    approvals.clear()
    with pytest.raises(NotFound) as caught:
        definitions.get(state, "basic")
    assert caught.value.message == (
        "chaincode definition for 'basic' exists, but chaincode is not installed"
    )


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (
            {"sequence": 3},
            "requested sequence is 3, but new definition must be sequence 1",
        ),
        (
            {"sequence": 0},
            "requested sequence is 0, but new definition must be sequence 1",
        ),
        ({"name": "a--b"}, "invalid chaincode name 'a--b'"),
        ({"version": ""}, "invalid chaincode version ''"),
        ({"version": "9"}, "chaincode definition not agreed to by this org (Org1MSP)"),
        ({"init_required": True}, "not agreed to by this org (Org1MSP)"),
        ({"name": "other"}, "not agreed to by this org (Org1MSP)"),
    ],
)
def test_a_commit_that_does_not_fit_is_refused(contract, state, fields, text):
    response = commit(contract, state, **fields)
    assert response.status == 500
    assert response.message.startswith(
        "failed to invoke backing implementation of 'CommitChaincodeDefinition': "
    )
    assert text in response.message
    assert state.writes == []


def test_only_writers_may_call(contract, state):
    for role in (Role.PEER, Role.ORDERER):
        response = call(
            contract, state, "CommitChaincodeDefinition", Args(), Somebody(role)
        )
        assert response.status == 500
        assert response.message.startswith(
            "Failed to authorize invocation due to failed ACL check: "
        )
    query = lifecycle_pb2.QueryChaincodeDefinitionsArgs()
    response = call(
        contract, state, "QueryChaincodeDefinitions", query, Somebody(Role.CLIENT)
    )
    assert response.status == 200


def test_definitions_can_be_queried(contract, state, approvals):
    query = lifecycle_pb2.QueryChaincodeDefinitionArgs(name="basic")
    missing = call(contract, state, "QueryChaincodeDefinition", query)
    assert (missing.status, missing.message) == (404, "namespace basic is not defined")
    commit(contract, state)
    response = call(contract, state, "QueryChaincodeDefinition", query)
    found = lifecycle_pb2.QueryChaincodeDefinitionResult.FromString(response.payload)
    assert (found.sequence, found.version) == (1, "1.0")
    assert dict(found.approvals) == {"Org1MSP": True}
    for n in range(205):
        name = f"cc{n:03d}"
        approvals[name, 1] = Approval(name, 1, "1.0", CCID)
        commit(contract, state, name=name)
    response = call(
        contract,
        state,
        "QueryChaincodeDefinitions",
        lifecycle_pb2.QueryChaincodeDefinitionsArgs(),
    )
    found = lifecycle_pb2.QueryChaincodeDefinitionsResult.FromString(response.payload)
    names = [d.name for d in found.chaincode_definitions]
    assert names == ["basic", *(f"cc{n:03d}" for n in range(205))]


def test_odd_calls_are_answered(contract, state):
    response = contract.execute(state, [b"X"], ADMIN)
    assert response.message == (
        "lifecycle scc operations require exactly two arguments but received 1"
    )
    response = call(contract, state, "NoSuchThing", b"")
    assert response.status == 500
    response = call(contract, state, "CommitChaincodeDefinition", b"\xff")
    assert "failed to decode input arg" in response.message
    response = contract.execute(state, [b"\xff\xfe", b""], ADMIN)
    assert response.status == 500


def test_a_damaged_definition_is_named(contract, state):
    commit(contract, state)
    state["_lifecycle", "namespaces/fields/basic/ValidationInfo"] = b"\x12\x01\xff"
    with pytest.raises(LedgerCorrupt, match="basic"):
        read_definition(state, "basic")
