"""Contracts that misbehave: what the user is told, and what is left of them: nothing."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.nodes.node import (
    BACKENDS,
    FIXTURES,
    PATIENCE_S,
    PROCESS,
    Node,
    eventually,
    is_there,
    started,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psutil

pytestmark = [
    pytest.mark.slow,
    pytest.mark.golang,
    pytest.mark.nodejs,
    pytest.mark.network,
    pytest.mark.timeout(600),
]
HOSTILE = FIXTURES / "hostile"
LARGEST_LOG = 16 * 1024 * 1024


@pytest.fixture(scope="module", params=BACKENDS)
def node(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Node]:
    flags = ("--set", "chaindock.launch.stopGrace=2s")
    with started(request.param, tmp_path_factory.mktemp("node"), *flags) as node:
        yield node


def nothing_is_left(node: Node, name: str) -> None:
    """No trace of a deployment that failed, though the node and others go on."""
    running = node.ask("ps")
    assert name not in {one["name"] for one in running}
    ids = [one["package_id"] for one in running]
    # Builds that a newer one has replaced are deleted in the background.
    eventually(lambda: node.remains.beside(ids) == [], "nothing of it is left")


# --- it does not come up --------------------------------------------------------------


def test_a_contract_that_crashes_before_registering_is_explained(node: Node):
    name = "crashes-before-register"
    told = node.ask("deploy", HOSTILE / name, code=4)
    assert told["error"] == "exited-early"
    facts = told["facts"]
    assert (facts["exit_code"], facts["signal"], facts["phase"]) == (3, None, "connect")
    for line in ("reading the settings", "settings: the licence key is missing"):
        assert line in facts["output"]
    assert [one["phase"] for one in facts["phases"]][-2:] == ["start", "connect"]
    nothing_is_left(node, name)


def test_people_are_told_the_same_in_words(node: Node):
    shown = node.cli("deploy", HOSTILE / "crashes-before-register", code=4)
    assert shown.out == b""
    assert "phase   connect, after" in shown.err
    assert "ended   exit code 3" in shown.err
    assert "| settings: the licence key is missing" in shown.err


def test_the_output_of_a_failed_deployment_can_be_read_later(node: Node):
    name = "crashes-before-register"
    told = node.ask("deploy", HOSTILE / name, code=4)
    hint: str = told["hint"]
    command = hint[hint.index("chaindock logs") :].split()[1:]
    for words in (command, ["logs", name]):
        assert b"settings: the licence key is missing\n" in node.cli(*words).out


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_contract_that_never_registers_times_out_and_leaves_nothing(
    backend: str, tmp_path: Path
):
    name, limit = "never-registers", {"CORE_CHAINCODE_STARTUPTIMEOUT": "6s"}
    with started(backend, tmp_path, **limit) as node:
        told = node.ask("deploy", HOSTILE / name, code=4)
        assert told["error"] == "launch-timeout"
        assert "phase connect did not end within" in told["message"]
        assert told["facts"]["phase"] == "connect"
        assert "waiting for something that will not come" in told["facts"]["output"]
        spent = {one["phase"]: one["seconds"] for one in told["facts"]["phases"]}
        assert 3 < spent["connect"] < 10
        nothing_is_left(node, name)


def test_a_contract_that_registers_as_another_is_refused(node: Node):
    name = "registers-as-another"
    told = node.ask("deploy", HOSTILE / name, code=4)
    assert told["facts"]["phase"] in {"connect", "register"}
    said = "\n".join(told["facts"]["output"])
    assert "Chaincode another:bbb" in said
    assert "belongs to a different chaincode" in said
    nothing_is_left(node, name)


@pytest.mark.parametrize(
    ("fixture", "phase", "lines"),
    [
        (
            "compile-error-ts",
            "compile",
            ["src/index.ts(1,7): error TS2322: Type 'string' is not assignable"],
        ),
        (
            "compile-error-go",
            "compile",
            ['./main.go:5:19: cannot use "forty-two"', "undefined: undefinedFunction"],
        ),
        (
            "npm-install-fails",
            "dependencies",
            ["No matching version found for fabric-shim@99.0.0"],
        ),
    ],
)
def test_what_a_failed_build_said_is_shown(
    node: Node, fixture: str, phase: str, lines: list[str]
):
    if fixture == "compile-error-go" and node.backend != PROCESS:
        pytest.skip("a failed build is never cached: Go takes long in a new container")
    told = node.ask("deploy", HOSTILE / fixture, code=4)
    assert told["error"] == "build-failed"
    assert told["facts"]["phase"] == phase
    assert told["facts"]["exit_code"] == 1
    for line in lines:
        assert line in "\n".join(told["facts"]["output"])
        assert line in node.cli("logs", fixture).out.decode()
    nothing_is_left(node, fixture)


# --- it dies, or does not want to -----------------------------------------------------


def test_a_contract_that_dies_is_started_again_and_the_next_call_works(node: Node):
    name = node.deploy(HOSTILE / "registers-then-crashes")["name"]
    height, before = node.ask("status")["height"], node.where(name)
    failed = node.ask("invoke", name, "crash", code=1)
    assert failed["error"] == "stream-terminated"
    assert node.ask("status")["height"] == height
    assert node.query(name, "anything") == b"alive"
    assert node.where(name) != before
    assert not node.runs(before)
    said = node.cli("logs", name, "--previous").out.decode()
    assert "the floor is lava" in said


def test_a_contract_that_dies_is_started_again_without_a_call(node: Node):
    name = node.deploy(HOSTILE / "registers-then-crashes")["name"]
    before = node.where(name)
    node.ask("invoke", name, "crash", code=1)

    def runs_anew() -> bool:
        line = node.ps(name)
        return line is not None and line["state"] == "running"

    eventually(lambda: not node.runs(before), "the dead one is gone")
    eventually(runs_anew, "it runs again", 60)
    assert node.query(name, "anything") == b"alive"


def test_a_call_that_hangs_ends_in_time_and_harms_no_other(node: Node):
    name = node.deploy(HOSTILE / "registers-then-crashes")["name"]
    told = node.ask("query", name, "hang", "--timeout", "1", code=1)
    assert told["error"] == "execute-timeout"
    assert node.query(name, "anything") == b"alive"


def test_a_contract_that_ignores_signals_is_ended(node: Node):
    name = node.deploy(HOSTILE / "ignores-sigterm")["name"]
    place = node.where(name)
    assert node.query(name, "pid").isdigit()
    node.cli("stop", name)
    assert not node.runs(place)
    assert b"SIGTERM? no" in node.cli("logs", name).out


def pid_inside(process: psutil.Process) -> int:
    """Return the number that a process has in its own sandbox."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    (line,) = (one for one in status.splitlines() if one.startswith("NSpid:"))
    return int(line.split()[-1])


def test_no_grandchild_outlives_a_stop(node: Node):
    name = node.deploy(HOSTILE / "forks-a-grandchild")["name"]
    place = node.where(name)
    forked = json.loads(node.query(name, "pids"))
    assert [one["detached"] for one in forked] == [False, True]
    inside = {one["pid"] for one in forked} if node.backend == PROCESS else set()
    family = [
        one.pid
        for one in node.remains.processes()
        if name in one.environ()["CORE_CHAINCODE_ID_NAME"] and pid_inside(one) in inside
    ]
    assert len(family) == len(inside)
    assert all(is_there(pid) for pid in family)
    node.cli("stop", name)
    assert not node.runs(place)
    assert not any(is_there(pid) for pid in family)


# --- it prints ------------------------------------------------------------------------


def test_a_flood_of_output_is_kept_within_bounds(node: Node):
    name = node.deploy(HOSTILE / "prints-a-lot")["name"]
    assert node.query(name, "lines", "20000") == b"printed"

    def has_all() -> bool:
        said = node.cli("logs", name).out.decode().splitlines()
        return said.count("line 20000 of 20000") == 1 and "line 1 of 20000" in said

    eventually(has_all, "every line is in the logs")
    assert node.query(name, "line", str(20_000_000)) == b"printed"
    assert node.query(name, "lines", "3") == b"printed"
    eventually(lambda: b"line 3 of 3\n" in node.cli("logs", name).out, "it goes on")
    longest = max(map(len, node.cli("logs", name).out.splitlines()))
    assert longest < 1_000_000
    files = list(node.home.glob("output/prints-a-lot*/*.log"))
    assert files
    assert all(file.stat().st_size <= LARGEST_LOG for file in files)


def test_a_terminal_sees_no_control_characters_of_a_contract(node: Node):
    name = node.deploy(HOSTILE / "prints-a-lot")["name"]
    node.query(name, "bytes")
    clear_screen = b"\x1b[2J"
    eventually(
        lambda: clear_screen in node.cli("logs", name).out,
        "a pipe gets what was written",
    )
    shown = on_terminal(node, "logs", name)
    assert b"\\x1b[2J" in shown or b"\\x00" in shown
    assert clear_screen not in shown
    assert b"\x00" not in shown


def on_terminal(node: Node, *args: str) -> bytes:
    """Run a command as on a terminal; return what that gets."""
    ours, theirs = pty.openpty()
    try:
        child = subprocess.Popen(
            node.argv(*args), env=node.env, stdin=theirs, stdout=theirs, stderr=theirs
        )
    finally:
        os.close(theirs)
    shown = b""
    try:
        while data := os.read(ours, 1 << 16):
            shown += data
    except OSError:
        pass  # how a terminal ends on Linux
    finally:
        os.close(ours)
        assert child.wait(PATIENCE_S) == 0
    return shown
