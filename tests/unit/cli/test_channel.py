"""`channel`, and the option --channel of other commands."""

import json

import pytest

from chaindock.cli.client import AdminClient

COMMANDS = [
    ("state", "ls"),
    ("block", "ls"),
    ("block", "show", "0"),
    ("tx", "show", "ab"),
    ("events",),
    ("snapshot", "--list"),
    ("revert",),
    ("org", "ls"),
    ("state", "get", "basic", "k"),
]


def test_channels_are_made_listed_and_removed(run, node):
    made = run("channel", "create", "trades", "--orgs", "Org1MSP,Org2MSP")
    assert made.exit_code == 0
    assert "channel trades of Org1MSP, Org2MSP is made; next: chaindock" in made.stderr
    assert made.stderr.rstrip().endswith("deploy DIR --channel trades")
    lines = run("channel", "ls").stdout.splitlines()
    assert [line.split() for line in lines] == [
        ["CHANNEL", "BLOCKS", "CAPABILITY", "ORGANISATIONS"],
        ["mychannel", "1", "V2_5", "Org1MSP"],
        ["trades", "1", "V2_5", "Org1MSP,", "Org2MSP"],
    ]
    told = json.loads(run("channel", "ls", "--json").stdout)
    assert [one["name"] for one in told] == ["mychannel", "trades"]
    assert "exists already" in run("channel", "create", "trades").stderr
    refused = run("channel", "rm", "trades")
    assert refused.exit_code == 2
    assert "confirm it with --yes" in refused.stderr
    assert "trades" in node.known
    assert run("channel", "rm", "trades", "--yes").exit_code == 0
    assert "trades" not in node.known


def test_a_channel_of_another_capability_is_asked_for(run, node):
    assert run("channel", "create", "old", "--capability", "V2_0").exit_code == 0
    assert node.capabilities == {"old": "V2_0"}


@pytest.mark.parametrize("words", COMMANDS)
def test_a_channel_that_is_not_there_is_not_found(run, basic, words):
    done = run(*words, "--channel", "none")
    assert done.exit_code == 5, done.stderr
    assert "this node has no channel 'none'" in done.stderr


def test_a_call_is_sent_to_the_channel(run, basic):
    basic.known["trades"] = ["Org1MSP"]
    run("invoke", "basic", "echo", "x", "--channel", "trades")
    run("query", "-C", "trades", "basic", "echo", "x")
    run("query", "basic", "echo", "x")
    assert [call.channel for call in basic.calls] == ["trades", "trades", None]


def test_names_of_channels_are_completed(run, node):
    node.known["trades"] = []
    words = "chaindock --home " + str(node.home) + " invoke --channel tr"
    done = run(
        env={
            "_CHAINDOCK_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": "5",
        }
    )
    assert "trades" in done.stdout


def test_ps_names_the_channels_first_when_there_are_several(run, basic, monkeypatch):
    """At the end of a line the name would be below it on a narrow terminal."""
    (one,) = json.loads(run("ps", "--json").stdout)
    both = [one, {**one, "channel": "trades"}]
    monkeypatch.setattr(AdminClient, "ps", lambda _client: both)
    head, *rows = run("ps").stdout.splitlines()
    assert head.split()[:2] == ["CHANNEL", "NAME"]
    assert [row.split()[:2] for row in rows] == [
        ["mychannel", "basic"],
        ["trades", "basic"],
    ]


def test_ps_names_the_channel_that_is_not_the_first(run, basic, monkeypatch):
    """Commands without --channel are about another one."""
    (one,) = json.loads(run("ps", "--json").stdout)
    assert "CHANNEL" not in run("ps").stdout
    monkeypatch.setattr(AdminClient, "ps", lambda _: [{**one, "channel": "trades"}])
    head, row = run("ps").stdout.splitlines()
    assert (head.split()[0], row.split()[0]) == ("CHANNEL", "trades")
