"""The scenarios of Fabric's client libraries: each library against one node."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING

import pytest

from support.clients.driver import LANGUAGES, Driver, Fault, driver
from support.clients.network import Network, deploy, network

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.slow,
    pytest.mark.nodejs,
    pytest.mark.golang,
    pytest.mark.network,
    pytest.mark.timeout(600),
]
UNKNOWN, ABORTED, PRECONDITION = 2, 10, 9
MVCC_READ_CONFLICT = 11
ORGS = ("Org1MSP", "Org2MSP", "Org3MSP")
NOT_COLLECTED = (
    "failed to collect enough transaction endorsements, see attached details for more "
    "info"
)
NOT_ENDORSED = "failed to endorse transaction, see attached details for more info"


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """A node of three organisations; `basic` needs two of them, `errors` all three."""
    with network(tmp_path_factory.mktemp("calls"), "Org2", "Org3") as net:
        deploy(net, "basic", "AND('Org1MSP.member', 'Org2MSP.member')")
        both = "'Org1MSP.member', 'Org2MSP.member', 'Org3MSP.member'"
        deploy(net, "errors", f"AND({both})")
        yield net


@pytest.fixture(scope="module", params=LANGUAGES)
def client(request: pytest.FixtureRequest, net: Network) -> Iterator[Driver]:
    """A client library that is connected as Org1, with and without a key."""
    with driver(request.param) as client:
        net.connect(client)
        keyless = {key: v for key, v in net.identity("Org1").items() if key != "key"}
        client.ask(
            "connect",
            **{
                "who": "keyless",
                "channel": "mychannel",
                **keyless,
                **net.place("Org1"),
            },
        )
        yield client


def call(client: Driver, op: str, fn: str, *args: str, **other: object) -> str:
    fields = {"who": "Org1@Org1", "contract": "basic", "fn": fn, "args": args}
    answer = client.ask(op, **{**fields, **other})
    result: str = answer["result"]
    return result


def new_key() -> str:
    return uuid.uuid4().hex


# --- transactions -----------------------------------------------------------------


def test_evaluate_returns_the_result(client: Driver):
    assert call(client, "evaluate", "echo", "conga") == "conga"


@pytest.mark.statement(62, of="client", by="go java node")
def test_submit_returns_the_result(client: Driver):
    assert call(client, "submit", "echo", "conga") == "conga"
    assert call(client, "submit", "nothing") == ""


def test_a_submitted_value_is_on_the_ledger(client: Driver):
    key = new_key()
    call(client, "submit", "put", key, "ledger")
    assert call(client, "evaluate", "get", key) == "ledger"


def test_transient_data_reach_the_contract(client: Driver):
    secrets = {"one": "1", "two": "2"}
    for verb in ("evaluate", "submit"):
        answer = call(client, verb, "echoTransient", transient=secrets)
        assert json.loads(answer) == secrets


def test_an_evaluate_tells_the_error_of_the_contract(client: Driver):
    with pytest.raises(Fault) as told:
        call(client, "evaluate", "errorMessage", "tell me")
    assert (told.value.kind, told.value.code) == ("GatewayError", UNKNOWN)
    assert "chaincode response 500, tell me" in told.value.message


def test_a_submit_tells_the_error_of_the_contract(client: Driver):
    with pytest.raises(Fault) as told:
        call(client, "submit", "errorMessage", "tell me")
    assert (told.value.kind, told.value.code) == ("EndorseError", ABORTED)
    assert NOT_ENDORSED in told.value.message
    (detail,) = told.value.details
    assert "chaincode response 500, tell me" in detail["message"]
    assert detail["mspid"] == "Org1MSP"
    assert told.value.tx_id


@pytest.mark.statement(63, of="client", by="go java node")
def test_a_conflict_is_a_commit_error(client: Driver):
    key = new_key()
    call(client, "submit", "add", key)
    fields = {"who": "Org1@Org1", "contract": "basic", "fn": "add", "args": [key]}
    first, second = (client.ask("endorse", **fields) for _ in range(2))
    assert client.ask("commit", tx_id=first["tx_id"])["successful"]
    lost = client.ask("commit", tx_id=second["tx_id"])
    assert (lost["successful"], lost["code"]) == (False, MVCC_READ_CONFLICT)
    assert call(client, "evaluate", "get", key) == "2"


# --- errors -------------------------------------------------------------------------


def test_a_wrong_number_of_arguments_is_told(client: Driver):
    with pytest.raises(Fault) as told:
        call(client, "evaluate", "exists", contract="errors")
    assert told.value.code == UNKNOWN
    expected = "chaincode response 500, Expected 1 parameters, but 0 have been supplied"
    assert expected in told.value.message


def test_a_contract_that_does_not_exist_is_told(client: Driver):
    with pytest.raises(Fault) as told:
        call(client, "submit", "echo", "x", contract="nonexistent")
    assert told.value.code == PRECONDITION
    expected = "No metadata was found for chaincode nonexistent in channel mychannel"
    assert expected in told.value.message


def test_a_function_that_does_not_exist_is_told(client: Driver):
    with pytest.raises(Fault) as told:
        call(client, "submit", "nonexistent", contract="errors")
    assert (told.value.code, told.value.kind) == (ABORTED, "EndorseError")
    expected = (
        "chaincode response 500, You've asked to invoke a function that does not exist: "
        "nonexistent"
    )
    assert expected in told.value.details[0]["message"]


@pytest.mark.statement(57, of="client", by="go java node")
def test_a_contract_that_crashes_is_told(client: Driver):
    with pytest.raises(Fault) as told:
        call(client, "evaluate", "crash", contract="errors")
    assert told.value.code == ABORTED
    expected = "failed to evaluate transaction, see attached details for more info"
    assert expected in told.value.message
    assert [one["mspid"] for one in told.value.details] == [*ORGS]  # all were tried
    for detail in told.value.details:
        assert "chaincode stream terminated" in detail["message"]


@pytest.mark.statement(56, of="client", by="go java node")
def test_a_creator_of_another_organisation_is_refused(client: Driver, net: Network):
    key = net.identity("Org3")["key"]
    net.connect(client, who="forged", key=key)
    with pytest.raises(Fault) as told:
        call(client, "evaluate", "echo", "x", who="forged")
    assert told.value.code == PRECONDITION
    expected = (
        "error validating proposal: access denied: channel [mychannel] creator org"
    )
    assert f"{expected} [Org1MSP]" in told.value.message
    assert len(told.value.details) == 1


def test_an_organisation_that_refuses_is_told(client: Driver):
    with pytest.raises(Fault) as told:
        call(client, "evaluate", "orgsFail", "Org1MSP", contract="errors")
    assert told.value.code == UNKNOWN
    assert (
        "chaincode response 500, Org1MSP refuses to endorse this" in told.value.message
    )


@pytest.mark.parametrize("orgs", [ORGS[2:], ORGS[1:]])
def test_organisations_that_refuse_to_endorse_are_told(
    client: Driver, orgs: tuple[str, ...]
):
    with pytest.raises(Fault) as told:
        call(client, "submit", "orgsFail", ",".join(orgs), contract="errors")
    assert (told.value.kind, told.value.code) == ("EndorseError", ABORTED)
    assert NOT_COLLECTED in told.value.message
    assert {one["mspid"]: one["message"] for one in told.value.details} == {
        org: f"chaincode response 500, {org} refuses to endorse this" for org in orgs
    }


def test_results_that_differ_between_peers_are_told(client: Driver):
    with pytest.raises(Fault) as told:
        call(client, "submit", "nondet", new_key(), contract="errors")
    assert (told.value.kind, told.value.code) == ("EndorseError", ABORTED)
    assert NOT_COLLECTED in told.value.message
    assert {
        one["mspid"]: one["message"] for one in told.value.details
    } == dict.fromkeys(ORGS[1:], "ProposalResponsePayloads do not match")


# --- signing offline ------------------------------------------------------------------


@pytest.mark.statement(64, of="client", by="go java node")
@pytest.mark.parametrize("verb", ["evaluate", "submit"])
def test_what_is_signed_elsewhere_is_accepted(client: Driver, net: Network, verb: str):
    with pytest.raises(Fault):
        call(client, verb, "echo", "conga", who="keyless")
    key = net.identity("Org1")["key"]
    fields = {"contract": "basic", "fn": "echo", "args": ["conga"], "verb": verb}
    done = client.ask("offline", **fields, who="keyless", key=key)
    assert done["result"] == "conga"
    assert done.get("successful", True)
