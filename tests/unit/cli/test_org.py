"""`org`, and the options that name organisations."""

import json

import pytest

from chaindock.cli.call import next_step


@pytest.mark.usefixtures("node")
def test_an_organisation_is_added_and_listed(run):
    result = run("org", "add", "Org2MSP")
    assert result.exit_code == 0
    assert (
        result.stdout
        == "organisation Org2MSP is a member since block 7\nits files: /p\n"
    )
    lines = run("org", "ls").stdout.splitlines()
    assert [line.split() for line in lines] == [
        ["MSP", "DOMAIN", "ORDERS", "PEER", "FILES"],
        ["Org1MSP", "-", "yes", "-", "-"],
        ["Org2MSP", "d", "no", "127.0.0.1:9051", "/p"],
    ]
    assert [one["mspid"] for one in json.loads(run("org", "ls", "--json").stdout)] == [
        "Org1MSP",
        "Org2MSP",
    ]


@pytest.mark.usefixtures("node")
def test_a_member_is_not_added_twice(run):
    result = run("org", "add", "Org1MSP")
    assert result.exit_code == 5
    assert "is a member already" in result.stderr


@pytest.mark.usefixtures("node")
def test_the_peer_of_an_organisation_is_stopped_and_started(run):
    run("org", "add", "Org2MSP")
    assert run("org", "stop", "Org2MSP").stderr == "the peer of Org2MSP is stopped\n"
    assert run("org", "ls").stdout.splitlines()[-1].split()[3] == "stopped"
    result = run("org", "start", "Org2MSP")
    assert result.stderr == "the peer of Org2MSP serves at 127.0.0.1:9051\n"
    assert run("org", "ls").stdout.splitlines()[-1].split()[3] == "127.0.0.1:9051"


def test_a_call_names_organisations(run, basic):
    run("invoke", "basic", "echo", "x", "--org", "Org2MSP", "--endorsers", "A,,B")
    run("query", "basic", "echo", "x", "--org", "Org2MSP")
    run("invoke", "basic", "echo", "x")
    told = [(call.org, list(call.endorsers)) for call in basic.calls]
    assert told == [("Org2MSP", ["A", "B"]), ("Org2MSP", []), (None, [])]


def test_a_query_is_endorsed_by_nobody(run):
    assert run("query", "basic", "echo", "x", "--endorsers", "A").exit_code == 2


def test_a_policy_that_failed_is_followed_by_what_to_do(run, basic):
    result = run("invoke", "basic", "forbidden", "x")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "ENDORSEMENT_POLICY_FAILURE (10); nothing was written" in result.stderr
    assert "hint: the organisations whose keys this node has do not" in result.stderr
    result = run("invoke", "basic", "forbidden", "x", "--endorsers", "Org1MSP")
    assert "hint: leave out --endorsers" in result.stderr
    result = run("invoke", "basic", "stopped", "x")
    assert (
        "hint: start the peers that are stopped, too: chaindock org start Org2MSP, "
        "chaindock org start Org3MSP"
    ) in result.stderr
    assert len(basic.calls) == 3


def test_a_policy_that_changed_in_the_block_is_followed_by_another_try():
    unmet: dict[str, object] = {"policy": None, "stopped": []}
    refused = {"conflict": None, "code": 10, "unmet": unmet}
    for named in (False, True):
        told = next_step(refused, named=named)
        assert told.startswith("submit the transaction again")
