"""`dump`, `load` and `reset` on the command line."""

import json

import click
import pytest

from chaindock.cli.client import AdminClient
from chaindock.cli.main import root
from chaindock.cli.session import Session
from chaindock.node.home import Home
from support.ledgers.envelopes import rwset, transaction


def test_a_ledger_goes_into_a_file_and_is_not_written_over(run, home, tmp_path):
    file = tmp_path / "copy"
    result = run("dump", str(file))
    assert result.exit_code == 5
    assert "has no ledger" in result.stderr
    file.write_text("mine")
    result = run("dump", str(file))
    assert result.exit_code == 5
    assert "--force" in result.stderr
    assert file.read_text() == "mine"


@pytest.mark.parametrize("words", [("load", __file__), ("reset",), ("reset", "--json")])
def test_without_a_terminal_the_end_of_a_ledger_needs_yes(run, words):
    result = run(*words)
    assert result.exit_code == 2
    assert "confirm it with --yes" in result.stderr + result.stdout


def test_a_home_that_is_not_there_has_nothing_to_lose(run, home):
    home.rmdir()
    for words in (("reset", "--yes"), ("load", __file__, "--yes")):
        result = run(*words)
        assert result.exit_code == 5
        assert f"there is no home at '{home}'" in result.stderr.replace("\n", " ")
    assert not home.exists()


def test_without_a_ledger_there_is_nothing_to_rebuild(run, home):
    result = run("ledger", "rebuild")
    assert result.exit_code == 5
    assert f"home '{home}' has no ledger" in result.stderr
    assert "up -d" in result.stderr


def test_reset_says_what_it_removed(run, home):
    assert "no ledger was there" in run("reset", "--yes").stderr
    assert json.loads(run("reset", "--yes", "--json").stdout) == {"removed": []}


def test_a_snapshot_is_taken_listed_gone_back_to_and_forgotten(run, ledger):
    run("state", "put", "cc", "k", "1")
    result = run("snapshot", "base")
    assert "snapshot base at 2 blocks; go back: chaindock --home" in result.stderr
    run("state", "put", "cc", "k", "2")
    assert "base" in run("snapshot", "--list").stdout
    assert run("snapshot", "ls").stdout == run("snapshot", "--list").stdout
    result = run("revert")
    assert "back at snapshot base; 1 block removed" in result.stderr
    assert run("state", "get", "cc", "k").stdout == "1"
    body = json.loads(run("revert", "base", "--json").stdout)
    assert (body["name"], body["height"], body["removed"]) == ("base", 2, 0)
    assert run("snapshot", "base", "--rm").exit_code == 0
    assert json.loads(run("snapshot", "--list", "--json").stdout) == []
    result = run("revert", "base")
    assert result.exit_code == 5
    assert "there is no snapshot 'base'; known: none" in result.stderr
    assert run("snapshot").exit_code == 2


def test_followers_of_events_see_the_blocks_that_come_instead(run, home, ledger):
    run("snapshot", "base")
    events = AdminClient(home).events(None, 0, follow=True)
    for name in ("one", "two"):
        ledger.commit(transaction(rwset(), event=(name, b"")))
        assert next(events)["name"] == name
    for name in ("three", "four"):
        run("revert", "base")
        ledger.commit(transaction(rwset(), event=(name, b"")))
        event = next(events)
        assert (event["block"], event["name"]) == (1, name)
    del events


def test_a_shell_completes_the_names_of_snapshots(run, ledger):
    for name in ("base", "before", "clean"):
        run("snapshot", name)
    command = root.get_command(click.Context(root, obj=Session()), "revert")
    assert command is not None
    session = Session()
    session.home_flag = str(ledger.home)
    found = command.params[0].shell_complete(click.Context(command, obj=session), "b")
    assert [one.value for one in found] == ["base", "before"]


def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chaindock.cli.show.is_terminal", lambda **_: True)


@pytest.mark.parametrize("answer", ["n\n", ""])
def test_an_answer_other_than_yes_changes_nothing(run, monkeypatch, answer):
    """Also the end of the input, as which click sees Ctrl-C at a question."""
    terminal(monkeypatch)
    result = run("reset", input=answer)
    assert result.exit_code == 130
    assert "defect" not in result.stderr
    assert ("nothing was changed" in result.stderr) == bool(answer)
    assert "removed" in run("reset", input="y\n").stderr


def test_load_says_what_is_wrong_before_it_asks(run, home, tmp_path, monkeypatch):
    terminal(monkeypatch)
    missing = tmp_path / "nofile"
    for more in ((), ("--yes",)):
        result = run("load", str(missing), *more, input="y\n")
        assert result.exit_code == 5
        told = f"error: '{missing}' cannot be read: No such file or directory\n"
        assert result.stderr == f"{told}hint: check the path\n"
    missing.write_text("")
    with Home(home).locked():
        for words in (("load", str(missing)), ("reset",)):
            result = run(*words, input="y\n")
            assert result.exit_code == 3
            assert result.stderr.startswith(f"error: home '{home}' is served by")
