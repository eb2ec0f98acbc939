"""Every launch runs through all its phases, in order."""

from __future__ import annotations

from typing import Literal

import pytest

from chaindock.container.attempt import TAIL_LINES, Attempt, Event, Phase
from chaindock.ids import Ccid


def test_it_connected_even_when_the_engine_says_late_that_it_runs():
    attempt = Attempt(Ccid("early:1"))
    seen: list[Event] = []
    attempt.watch(seen.append)
    for phase in (Phase.CREATE, Phase.START, Phase.REGISTER, Phase.READY):
        attempt.enter(phase)
    attempt.over()
    phases = ["create", "start", "connect", "register", "ready"]
    assert [one.data["phase"] for one in seen if one.kind == "phase"] == phases
    assert [str(one.phase) for one in attempt.phases] == phases


def attempt_of(lines: list[str], stream: Literal["build", "stderr"]) -> Attempt:
    attempt = Attempt(Ccid("dies:1"))
    attempt.enter(Phase.COMPILE if stream == "build" else Phase.CREATE)
    for line in lines:
        attempt.output(line, stream)
    return attempt


@pytest.mark.parametrize(
    ("line", "then"),
    [
        ("panic: runtime error: index out of range", "main.f(0x1)"),
        ("fatal error: all goroutines are asleep - deadlock!", "goroutine 1 [chan]:"),
        ("Error: Cannot find module 'x'", "    at Module._load (node:internal)"),
        ("Uncaught TypeError: a is not a function", "    at main (/src/a.js:1:2)"),
        ('Exception in thread "main" java.lang.Error', "\tat org.example.Main"),
        ("ValueError: not UTF-8", "  File 'server.py', line 3, in serve"),
    ],
)
def test_the_error_is_shown_however_many_stack_frames_follow(line: str, then: str):
    """Issue 9, 10."""
    found = attempt_of(["before", line, *[then] * 100], "stderr").tail()
    assert found[0] == line
    assert found[-1] == then
    assert len(found) <= TAIL_LINES


def test_an_error_long_before_the_end_is_no_cause_of_it():
    lines = ["Error: no such asset", *["served"] * 600]
    assert "Error: no such asset" not in attempt_of(lines, "stderr").tail()


@pytest.mark.parametrize(
    ("error", "chatter"),
    [
        (
            "npm error `npm ci` can only install with an existing package-lock.json",
            "npm error Options:",
        ),
        ("main.go:7:2: undefined: shim", "# get https://proxy.example/x/@v/list"),
        (
            "src/a.ts(3,5): error TS2304: Cannot find name 'x'.",
            "npm http fetch GET 200",
        ),
        ("ERROR: No matching distribution found for nothing", "  Downloading a.whl"),
    ],
)
def test_what_a_tool_says_was_wrong_comes_first(error: str, chatter: str):
    """Issue 9, 16: not npm's usage text, nor what go fetched."""
    found = attempt_of([*[chatter] * 30, error, *[chatter] * 30], "build").tail()
    assert found[0] == error


def test_only_the_output_of_the_failing_phase_is_shown():
    attempt = Attempt(Ccid("fails:1"))
    attempt.enter(Phase.DEPENDENCIES)
    attempt.output("ERROR: of a mirror that does not matter", "build")
    attempt.enter(Phase.COMPILE)
    attempt.output("main.go:7:2: undefined: shim", "build")
    assert attempt.tail() == ["main.go:7:2: undefined: shim"]
