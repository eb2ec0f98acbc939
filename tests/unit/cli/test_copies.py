"""`dump`, `load` and `reset` on the command line."""

import json

import pytest


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


@pytest.mark.parametrize("words", [("load", "copy"), ("reset",), ("reset", "--json")])
def test_without_a_terminal_the_end_of_a_ledger_needs_yes(run, words):
    result = run(*words)
    assert result.exit_code == 2
    assert "confirm it with --yes" in result.stderr + result.stdout


def test_reset_says_what_it_removed(run, home):
    assert "no ledger was there" in run("reset", "--yes").stderr
    assert json.loads(run("reset", "--yes", "--json").stdout) == {"removed": []}
