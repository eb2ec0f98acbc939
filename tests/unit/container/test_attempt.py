"""Every launch runs through all its phases, in order."""

from __future__ import annotations

from chaindock.container.attempt import Attempt, Event, Phase
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
