"""`logspec`, and what `status` says of a node that starts."""

import json
from dataclasses import replace

import pytest

from chaindock import telemetry


@pytest.fixture(autouse=True)
def _same_levels_afterwards():
    before = telemetry.active()
    yield
    telemetry.activate(before)


def test_levels_are_shown_and_changed(run, node):
    assert run("logspec", "warn:docker=debug").stdout.endswith("docker=debug:warn\n")
    assert run("logspec").stdout == "docker=debug:warn\n"
    assert json.loads(run("logspec", "--json").stdout) == {"spec": "docker=debug:warn"}


def test_wrong_levels_say_what_is_expected(run, node):
    result = run("logspec", "loud")
    assert result.exit_code != 0
    assert "bad segment 'loud'" in result.stderr
    assert "levels: fatal" in result.stderr


def test_status_says_what_is_waited_for(run, node):
    now = node.status()
    waits = ({"component": "chaincode/a", "reason": "it is coming up"},)
    node.status = lambda: replace(now, state="starting", pending=waits)
    result = run("status")
    assert "starting, process" in result.stdout
    assert "waiting for chaincode/a: it is coming up" in result.stderr
    assert json.loads(run("status", "--json").stdout)["pending"] == list(waits)
