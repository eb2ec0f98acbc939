"""Scenarios of policies: who must endorse, who may read, and which peer is asked."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import pytest

from support.clients.driver import LANGUAGES, Driver, Fault, driver
from support.clients.network import SCENARIOS, Network, deploy, network

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.slow,
    pytest.mark.nodejs,
    pytest.mark.golang,
    pytest.mark.network,
    pytest.mark.timeout(600),
]
ORGS = ("Org1", "Org2", "Org3")
ENDORSEMENT_POLICY_FAILURE = 10
UNKNOWN, UNAVAILABLE = 2, 14


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    with network(tmp_path_factory.mktemp("policies"), "Org2", "Org3") as net:
        members = ", ".join(f"'{org}MSP.member'" for org in ORGS)
        collections = ("--collections-config", SCENARIOS / "collections.json")
        deploy(net, "private", f"OR({members})", *collections)
        deploy(net, "all", f"AND({members})")
        yield net


@pytest.fixture(scope="module", params=LANGUAGES)
def client(request: pytest.FixtureRequest, net: Network) -> Iterator[Driver]:
    with driver(request.param) as client:
        for org in ORGS:
            net.connect(client, org)
        net.connect(client, "Org2", at="Org1")
        yield client


@pytest.fixture
def key() -> str:
    return uuid.uuid4().hex


def call(client: Driver, op: str, who: str, fn: str, *args: str, **other: Any) -> str:
    fields = {"who": who if "@" in who else f"{who}@{who}", "contract": "private"}
    result: str = client.ask(op, **{**fields, "fn": fn, "args": args, **other})[
        "result"
    ]
    return result


# --- private data ---------------------------------------------------------------------


def write(client: Driver, who: str, collection: str, key: str, **other: Any) -> None:
    secrets = {"collection": collection, "key": key, "value": f"secret {key}"}
    call(client, "submit", who, "writePrivateData", transient=secrets, **other)


def read(client: Driver, who: str, collection: str, key: str, *at: str) -> str:
    """Read at the peer of the own organisation, or at that of another one."""
    chosen = {"orgs": [f"{org}MSP" for org in at]} if at else {}
    return call(client, "evaluate", who, "readPrivateData", collection, key, **chosen)


def test_a_member_writes_and_reads(client: Driver, key: str):
    write(client, "Org1", "Org1Collection", key, orgs=["Org1MSP"])
    assert read(client, "Org1", "Org1Collection", key) == f"secret {key}"


def test_a_member_reads_nothing_at_the_peer_of_another(client: Driver, key: str):
    write(client, "Org1", "Org1Collection", key, orgs=["Org1MSP"])
    with pytest.raises(Fault) as told:
        read(client, "Org1", "Org1Collection", key, "Org2")
    assert "private data matching public hash version is not" in told.value.message
    (detail,) = told.value.details
    assert (detail["mspid"], told.value.code) == ("Org2MSP", UNKNOWN)


def test_another_writes_what_only_members_read(client: Driver, key: str):
    write(client, "Org2", "Org1Collection", key, orgs=["Org1MSP"])
    assert read(client, "Org1", "Org1Collection", key) == f"secret {key}"
    with pytest.raises(Fault, match="does not have read access permission"):
        read(client, "Org2@Org1", "Org1Collection", key)


def test_no_other_reads_or_writes_what_is_for_members(client: Driver, key: str):
    write(client, "Org1", "SharedCollection", key, orgs=["Org1MSP"])
    with pytest.raises(Fault, match="does not have read access permission"):
        read(client, "Org2@Org1", "SharedCollection", key)
    with pytest.raises(Fault, match="does not have write access permission"):
        write(client, "Org2", "SharedCollection", key, orgs=["Org1MSP"])


def test_endorsers_are_found_for_a_collection(client: Driver, key: str):
    write(client, "Org1", "SharedCollection", key)
    assert read(client, "Org1", "SharedCollection", key) == f"secret {key}"


def test_endorsers_are_found_by_the_policy_of_a_collection(client: Driver, key: str):
    write(client, "Org1", "SharedCollection,Org3Collection", key)
    assert read(client, "Org1", "SharedCollection", key) == f"secret {key}"
    for who, at in (("Org3", ()), ("Org1", ("Org3",))):
        assert read(client, who, "Org3Collection", key, *at) == f"secret {key}"
    with pytest.raises(Fault, match="private data matching public hash version is not"):
        read(client, "Org1", "Org3Collection", key)


def test_private_data_is_delivered_by_the_peers_of_members_alone(
    client: Driver, key: str
):
    for org in ("Org1", "Org3"):
        listener = {"who": f"{org}@{org}", "stream": org + key, "kind": "private"}
        client.ask("listen", contract="private", **listener)
    write(client, "Org1", "Org3Collection", key, orgs=["Org3MSP"])
    told = [client.event(org + key) for org in ("Org1", "Org3")]
    for org in ("Org1", "Org3"):
        client.ask("close", stream=org + key)
        client.ended(org + key)
    assert told[0]["block"] == told[1]["block"]
    assert [one["private"] for one in told] == [0, 1]


# --- policies of keys -----------------------------------------------------------------


def put(client: Driver, key: str, value: str, *orgs: str) -> None:
    chosen = {"orgs": [f"{org}MSP" for org in orgs]} if orgs else {}
    call(client, "submit", "Org1", "put", key, value, **chosen)


def get(client: Driver, key: str) -> str:
    return call(client, "evaluate", "Org1", "get", key)


@pytest.mark.statement(67, of="client", by="go java node")
def test_a_key_is_changed_by_the_organisation_of_its_policy(client: Driver, key: str):
    words = (key, "old", "Org1MSP")
    call(client, "submit", "Org1", "setStateWithEndorser", *words, orgs=["Org1MSP"])
    put(client, key, "new", "Org1")
    assert get(client, key) == "new"
    with pytest.raises(Fault) as told:
        put(client, key, "newer", "Org2")
    assert (told.value.kind, told.value.code) == (
        "CommitError",
        ENDORSEMENT_POLICY_FAILURE,
    )
    assert get(client, key) == "new"


@pytest.mark.parametrize("orgs", [("Org1", "Org3"), ("Org2", "Org3")])
def test_endorsers_are_found_for_a_key(client: Driver, key: str, orgs: tuple[str, str]):
    put(client, key, "old")
    mspids = ",".join(f"{org}MSP" for org in orgs)
    call(client, "submit", "Org1", "setStateEndorsers", key, mspids)
    put(client, key, "new")
    assert get(client, key) == "new"


def test_named_endorsers_that_are_not_enough_change_nothing(client: Driver, key: str):
    put(client, key, "old")
    call(client, "submit", "Org1", "setStateEndorsers", key, "Org1MSP,Org3MSP")
    with pytest.raises(Fault) as told:
        put(client, key, "new", "Org1", "Org2")
    assert told.value.code == ENDORSEMENT_POLICY_FAILURE
    assert get(client, key) == "old"


# --- policies of the contract -----------------------------------------------------------


def test_endorsers_are_found_for_a_contract(client: Driver):
    assert call(client, "submit", "Org1", "echo", "conga", contract="all") == "conga"


@pytest.mark.parametrize("org", ORGS)
def test_each_organisation_endorses_at_its_own_peer(client: Driver, org: str, key: str):
    for verb in ("evaluate", "submit"):
        words = ("echo", key)
        assert call(client, verb, org, *words, orgs=[f"{org}MSP"]) == key


@pytest.mark.parametrize("verb", ["evaluate", "submit"])
@pytest.mark.parametrize("org", ORGS)
def test_a_contract_knows_whose_peer_runs_it(client: Driver, org: str, verb: str):
    mspid = f"{org}MSP"
    assert call(client, verb, "Org1", "getPeerOrg", orgs=[mspid]) == mspid
    assert call(client, verb, org, "getPeerOrg") == mspid


def test_each_peer_that_endorses_knows_its_organisation(client: Driver):
    secrets = {mspid: mspid for mspid in ("Org1MSP", "Org3MSP")}
    words = {"transient": secrets, "orgs": [*secrets]}
    assert call(client, "submit", "Org1", "checkEndorsingOrg", **words) == "success"
    words["orgs"] = ["Org1MSP", "Org2MSP"]
    with pytest.raises(Fault) as told:
        call(client, "submit", "Org1", "checkEndorsingOrg", **words)
    (detail,) = told.value.details
    assert detail["mspid"] == "Org2MSP"
    assert "Org2MSP was not to endorse this" in detail["message"]


@pytest.mark.statement(61, of="client", by="go java node")
def test_an_organisation_without_a_peer_is_told(client: Driver):
    with pytest.raises(Fault) as told:
        call(client, "submit", "Org1", "echo", "x", orgs=["Org9MSP"])
    expected = "failed to find any endorsing peers for org(s): Org9MSP"
    assert expected in told.value.message


# --- a peer that is down ----------------------------------------------------------------


@pytest.mark.usefixtures("client")
def test_a_peer_that_is_stopped_endorses_nothing_until_it_starts(
    net: Network, client: Driver
):
    words = ("echo", "conga")
    net.node.cli("org", "stop", "Org3")
    assert [one["stopped"] for one in net.node.ask("org", "ls")] == [False, False, True]
    others = [one["name"] for one in net.node.ask("ps")[1]["others"]]
    assert others in ([], ["private@Org2MSP"])  # that one begins with its first call
    with pytest.raises(Fault, match="no peer combination can satisfy the endorsement"):
        call(client, "submit", "Org1", *words, contract="all")
    with pytest.raises(Fault) as told:
        call(client, "submit", "Org1", *words, orgs=["Org3MSP"])
    assert "failed to find any endorsing peers for org(s): Org3MSP" in str(told.value)
    with pytest.raises(Fault) as told:
        call(client, "evaluate", "Org3", *words)
    assert told.value.code == UNAVAILABLE
    assert call(client, "submit", "Org1", *words) == "conga"
    served = [one["mspid"] for one in net.node.ask("status")["gateways"]]
    assert served == ["Org1MSP", "Org2MSP"]
    refused = net.node.cli("org", "stop", "Org1", code=None)
    assert "the node itself needs it" in refused.err
    net.node.cli("org", "start", "Org3")
    assert call(client, "submit", "Org1", *words, contract="all") == "conga"
    net.connect(client, "Org3")
    assert call(client, "submit", "Org3", "getPeerOrg") == "Org3MSP"
