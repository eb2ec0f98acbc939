"""The system chaincode `_lifecycle`: recordings of a peer, and the texts of refusals."""

import base64
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fabric_protos.peer import policy_pb2
from fabric_protos.peer.lifecycle import lifecycle_pb2

from chaindock.errors import Denied
from chaindock.identity.msp import Role
from chaindock.lifecycle.contract import LifecycleContract
from chaindock.lifecycle.definitions import Definition, set_defaults, write_definition
from chaindock.lifecycle.terms import parse_collections
from support.doubles.lifecycle_state import LifecycleState, recorded_in

RECORDED = Path(__file__).parents[2] / "fixtures" / "fabric31" / "lifecycle_calls.json"
PACKAGE = "basic:" + "a" * 64
NO_PACKAGES: Any = None  # test_installation.py has the calls about them


def somebody(role: Any, mspid: str = "Org1MSP") -> Any:
    return SimpleNamespace(role=role, mspid=mspid)


ADMIN = somebody(Role.ADMIN)


def writers(resource: str, identity: Any) -> None:
    """Let clients and admins call what is for writers of the channel."""
    if identity.role not in {Role.CLIENT, Role.ADMIN}:
        raise Denied(f"{resource} is not for {identity.role}")


@pytest.fixture
def contract() -> Any:
    return LifecycleContract("mychannel", lambda: ["Org1MSP"], NO_PACKAGES, writers)


def call(
    contract: Any, state: Any, function: str, message: Any, who: Any = ADMIN
) -> Any:
    raw = message if isinstance(message, bytes) else message.SerializeToString()
    state.begin()
    return execute(contract, state, [function.encode(), raw], who)


def execute(contract: Any, state: Any, args: Any, who: Any, peer: Any = None) -> Any:
    """Ask a peer, by default that of the caller; these functions wait for nothing."""
    asked = contract.execute(state, args, who, peer or who.mspid)
    with pytest.raises(StopIteration) as done:
        asked.send(None)
    return done.value.value


def terms(**fields: Any) -> Any:
    return {"name": "basic", "sequence": 1, "version": "1.0", **fields}


def approve(contract: Any, state: Any, package_id: str = PACKAGE, **fields: Any) -> Any:
    args = lifecycle_pb2.ApproveChaincodeDefinitionForMyOrgArgs(**terms(**fields))
    args.source.local_package.package_id = package_id
    return call(contract, state, "ApproveChaincodeDefinitionForMyOrg", args)


def commit(contract: Any, state: Any, **fields: Any) -> Any:
    return call(
        contract, state, "CommitChaincodeDefinition", Definition(**terms(**fields))
    )


def define(contract: Any, state: Any, **fields: Any) -> None:
    for step in (approve, commit):
        response = step(contract, state, **fields)
        assert response.status == 200, response.message
        state.commit()


# --- recordings


def test_recorded_calls_get_the_same_answers_reads_and_writes(contract):
    state: Any = LifecycleState(block=1)
    before = Definition(name="js", sequence=1, version="1")
    set_defaults(before)
    write_definition(state, before)
    state.commit()
    state.block = 3
    for one in json.loads(RECORDED.read_text()):
        name, function = one["name"], one["function"]
        if name == "approveformyorg vec2 upgrade":
            state.block = 132  # calls of other chaincodes are in between
        response = call(contract, state, function, base64.b64decode(one["args"]))
        assert (response.status, response.message) == (one["status"], one["message"])
        payload = base64.b64decode(one["payload"])
        assert decoded(function, response.payload) == decoded(function, payload), name
        if results := base64.b64decode(one["results"]):
            for ours, peers in zip(state.recorded(), recorded_in(results), strict=True):
                if response.status == 200 or not peers:
                    assert ours == peers, name
                else:  # what a refused call has read or written is dropped
                    assert ours.keys() <= peers.keys(), name
        if response.status == 200 and (state.writes or state.hashed_writes):
            state.commit()


def decoded(function: str, payload: bytes) -> Any:
    if function != "QueryChaincodeDefinitions":
        return payload
    found = lifecycle_pb2.QueryChaincodeDefinitionsResult.FromString(payload)
    # A peer answers in the order of a Go map.
    return sorted(one.SerializeToString() for one in found.chaincode_definitions)


# --- approvals and commits


@pytest.mark.statement(78, of="client")
def test_what_is_approved_can_be_committed_and_then_read(contract, state):
    assert commit(contract, state).message == (
        "failed to invoke backing implementation of 'CommitChaincodeDefinition': "
        "chaincode definition not agreed to by this org (Org1MSP)"
    )
    assert approve(contract, state).status == 200
    state.commit()
    definition = Definition(**terms())
    response = call(contract, state, "CheckCommitReadiness", definition)
    ready = lifecycle_pb2.CheckCommitReadinessResult.FromString(response.payload)
    assert dict(ready.approvals) == {"Org1MSP": True}
    assert commit(contract, state).status == 200
    state.commit()
    query = lifecycle_pb2.QueryChaincodeDefinitionArgs(name="basic")
    response = call(contract, state, "QueryChaincodeDefinition", query)
    found = lifecycle_pb2.QueryChaincodeDefinitionResult.FromString(response.payload)
    assert (found.sequence, found.version) == (1, "1.0")
    assert dict(found.approvals) == {"Org1MSP": True}


def test_collections_and_policy_are_part_of_what_is_agreed(contract, state):
    policy = policy_pb2.ApplicationPolicy(channel_config_policy_reference="/Channel/X")
    parameter = policy.SerializeToString()
    collections = parse_collections('[{"name":"c","policy":"OR(\'Org1MSP.member\')"}]')
    fields = {"validation_parameter": parameter, "collections": collections}
    assert approve(contract, state, **fields).status == 200
    state.commit()
    assert commit(contract, state).status == 500
    assert commit(contract, state, validation_parameter=parameter).status == 500
    assert commit(contract, state, **fields).status == 200
    state.commit()
    wrong = approve(contract, state, sequence=2)
    assert wrong.message == (
        "failed to invoke backing implementation of "
        "'ApproveChaincodeDefinitionForMyOrg': error validating chaincode definition: "
        "the proposed collection config does not contain previously defined collections"
    )


def test_each_organisation_approves_in_its_own_collection(state):
    contract = LifecycleContract(
        "mychannel", lambda: ["Org1MSP", "Org2MSP"], NO_PACKAGES, writers
    )
    second = somebody(Role.ADMIN, "Org2MSP")
    assert approve(contract, state).status == 200
    state.commit()
    definition = Definition(**terms())
    response = call(contract, state, "CheckCommitReadiness", definition)
    found = lifecycle_pb2.CheckCommitReadinessResult.FromString(response.payload)
    assert dict(found.approvals) == {"Org1MSP": True, "Org2MSP": False}
    assert list(found.mismatches["Org2MSP"].items) == ["ChaincodeParameters"]
    refused = call(contract, state, "CommitChaincodeDefinition", definition, second)
    assert refused.message.endswith("not agreed to by this org (Org2MSP)")
    assert commit(contract, state).status == 200


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"sequence": 1}, "currently defined sequence 2 is larger than requested seq"),
        ({"sequence": 4}, "requested sequence 4 is larger than the next available "),
        (
            {"sequence": 2, "version": "3"},
            (
                "attempted to redefine the current committed sequence (2) for namespace "
                "basic with different parameters: expected Version '2' does not match "
                "passed Version '3'"
            ),
        ),
        (
            {"sequence": 2, "version": "2", "init_required": True},
            "expected InitRequired 'false' does not match passed InitRequired 'true'",
        ),
        (
            {"sequence": 2, "version": "2"},
            "attempted to redefine the current committed sequence (2) for namespace basic",
        ),
    ],
)
def test_an_approval_that_does_not_fit_is_refused(contract, state, fields, text):
    define(contract, state)
    define(contract, state, sequence=2, version="2")
    response = approve(contract, state, **fields)
    assert response.status == 500
    assert text in response.message
    assert not state.hashed_writes


def test_the_first_sequence_is_1(contract, state):
    assert "first definable sequence number is 1" in (
        approve(contract, state, sequence=0).message
    )


def test_another_package_can_be_approved_for_the_committed_sequence(contract, state):
    define(contract, state)
    other = "basic:" + "b" * 64
    assert approve(contract, state, other).status == 200
    state.commit()
    query = lifecycle_pb2.QueryApprovedChaincodeDefinitionArgs(name="basic")
    response = call(contract, state, "QueryApprovedChaincodeDefinition", query)
    found = lifecycle_pb2.QueryApprovedChaincodeDefinitionResult.FromString(
        response.payload
    )
    assert found.source.local_package.package_id == other


def test_approvals_can_be_queried(contract, state):
    query = lifecycle_pb2.QueryApprovedChaincodeDefinitionArgs(name="basic", sequence=7)
    assert call(contract, state, "QueryApprovedChaincodeDefinition", query).message == (
        "failed to invoke backing implementation of 'QueryApprovedChaincodeDefinition': "
        "could not fetch approved chaincode definition (name: 'basic', sequence: '7') on "
        "channel 'mychannel'"
    )
    define(contract, state)
    approve(contract, state, "", sequence=2, version="2")
    state.commit()
    response = call(
        contract,
        state,
        "QueryApprovedChaincodeDefinitions",
        lifecycle_pb2.QueryApprovedChaincodeDefinitionsArgs(),
    )
    found = lifecycle_pb2.QueryApprovedChaincodeDefinitionsResult.FromString(
        response.payload
    ).approved_chaincode_definitions
    assert [(one.name, one.sequence, one.version) for one in found] == [
        ("basic", 1, "1.0"),
        ("basic", 2, "2"),
    ]
    assert found[0].source.local_package.package_id == PACKAGE
    assert found[1].source.HasField("unavailable")


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
        (
            {"name": "a--b"},
            (
                "error validating chaincode definition: invalid chaincode name 'a--b'. Names "
                "can only consist of alphanumerics, '_', and '-' and can only begin with "
            ),
        ),
        ({"name": "qscc"}, "chaincode name 'qscc' is the name of a system chaincode"),
        (
            {"version": ""},
            "invalid chaincode version ''. Versions can only consist of ",
        ),
        ({"version": "9"}, "chaincode definition not agreed to by this org (Org1MSP)"),
        ({"init_required": True}, "not agreed to by this org (Org1MSP)"),
        ({"name": "other"}, "not agreed to by this org (Org1MSP)"),
    ],
)
def test_a_commit_that_does_not_fit_is_refused(contract, state, fields, text):
    approve(contract, state)
    state.commit()
    response = commit(contract, state, **fields)
    assert response.status == 500
    assert response.message.startswith(
        "failed to invoke backing implementation of 'CommitChaincodeDefinition': "
    )
    assert text in response.message
    assert not state.writes


@pytest.mark.statement(79, of="client")
def test_a_sequence_cannot_be_left_out(contract, state):
    define(contract, state)
    assert commit(contract, state, sequence=3).message == (
        "failed to invoke backing implementation of 'CommitChaincodeDefinition': "
        "requested sequence is 3, but new definition must be sequence 2"
    )


# --- who may call, and how


def test_only_writers_may_call(contract, state):
    for role in (Role.PEER, Role.ORDERER):
        response = call(
            contract, state, "CommitChaincodeDefinition", Definition(), somebody(role)
        )
        assert response.status == 500
        assert response.message.startswith(
            "Failed to authorize invocation due to failed ACL check: "
            "_lifecycle/CommitChaincodeDefinition is not for "
        )
    query = lifecycle_pb2.QueryChaincodeDefinitionsArgs()
    response = call(
        contract, state, "QueryChaincodeDefinitions", query, somebody(Role.CLIENT)
    )
    assert response.status == 200


@pytest.mark.parametrize(
    ("who", "text"),
    [
        (
            somebody(Role.CLIENT),
            (
                "Failed verifying that proposal's creator satisfies local MSP principal "
                "during channelless check policy with policy [Admins]: [The identity is "
                "not an admin under this MSP [Org1MSP]: The identity does not contain OU "
                "[ADMIN], MSP: [Org1MSP]]"
            ),
        ),
        (
            somebody(Role.ADMIN, "Org2MSP"),
            (
                "Failed deserializing proposal creator during channelless check policy "
                "with policy [Admins]: [expected MSP ID Org1MSP, received Org2MSP]"
            ),
        ),
    ],
)
def test_only_admins_of_the_peer_may_approve(contract, state, who, text):
    for function in (
        "ApproveChaincodeDefinitionForMyOrg",
        "QueryApprovedChaincodeDefinition",
        "QueryApprovedChaincodeDefinitions",
    ):
        response = execute(contract, state, [function.encode(), b""], who, "Org1MSP")
        assert response.message == (
            f"Failed to authorize invocation due to failed ACL check: {text}"
        )


def test_many_definitions_can_be_queried(contract, state):
    for n in range(205):
        define(contract, state, name=f"cc{n:03d}")
    response = call(
        contract,
        state,
        "QueryChaincodeDefinitions",
        lifecycle_pb2.QueryChaincodeDefinitionsArgs(),
    )
    found = lifecycle_pb2.QueryChaincodeDefinitionsResult.FromString(response.payload)
    names = [d.name for d in found.chaincode_definitions]
    assert names == [f"cc{n:03d}" for n in range(205)]


def test_odd_calls_are_answered(contract, state):
    assert execute(contract, state, [], ADMIN).message == (
        "lifecycle scc must be invoked with arguments"
    )
    assert execute(contract, state, [b"X"], ADMIN).message == (
        "lifecycle scc operations require exactly two arguments but received 1"
    )
    assert call(contract, state, "Nope", b"").message == (
        "Failed to authorize invocation due to failed ACL check: Unmapped policy for "
        "_lifecycle/Nope"
    )
    assert call(contract, state, "QueryChaincodeDefinition", b"\xff" * 4).message == (
        "failed to invoke backing implementation of 'QueryChaincodeDefinition': could not "
        "decode input arg for *lifecycle.Invocation.QueryChaincodeDefinition: proto: "
        "cannot parse invalid wire-format data"
    )
    assert execute(contract, state, [b"\xff\xfe", b""], ADMIN).status == 500
