"""Builds that hang, flood or fail: nobody else waits, and nothing is left of them."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import pytest

from chaindock.errors import ChaindockError
from support.faults.clients import Callers
from support.faults.health import RUNNING
from support.faults.matrix import NEXT_CALL_S, ROUND, ROUNDS, STEADY, VICTIM, Cell
from support.faults.packages import FAIL, HANG, builds, flood
from support.faults.world import last

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.slow,
    pytest.mark.golang,
    pytest.mark.nodejs,
    pytest.mark.network,
    pytest.mark.timeout(600),
]
BUILD_S = 8
LARGEST_LOG = 20 * 1024 * 1024
FLOOD_MB = 50 if ROUNDS > 1 else 25


@ROUND
def test_a_build_that_hangs_is_given_up_with_its_client(
    cell: Cell, round_: int
) -> None:
    cell.deploy_victim()
    package = builds(cell.world.packages, f"hangs-{cell.label}", HANG)
    with Callers(cell.world, cell.calls, [VICTIM, STEADY]) as callers:
        events = cell.world.deploying(VICTIM, package)
        for event in events:
            if event.get("line") == "it begins":
                break
        callers.wait(6)
        cell.pause(0.5)
        events.close()  # type: ignore[attr-defined]  # it is a generator
        callers.wait(6)
    cell.assert_healthy(victim=RUNNING)


@ROUND
def test_a_build_that_hangs_delays_no_other_deployment(cell: Cell, round_: int) -> None:
    package = builds(cell.world.packages, f"hangs-{cell.label}", HANG)
    events = cell.world.deploying("hanging", package)
    for event in events:
        if event.get("line") == "it begins":
            break
    began = time.monotonic()
    cell.deploy_victim()
    cell.next_call()
    assert time.monotonic() - began < NEXT_CALL_S
    events.close()  # type: ignore[attr-defined]  # it is a generator
    cell.assert_healthy(victim=RUNNING)


@ROUND
def test_a_build_that_fails_is_told_with_its_last_words(
    cell: Cell, round_: int
) -> None:
    package = builds(cell.world.packages, f"fails-{cell.label}", FAIL)
    facts = cell.refused(package, "build-failed")
    assert facts["phase"] == "compile"
    assert "no such thing" in facts["output"]
    assert facts["exit_code"]
    cell.assert_healthy()


@ROUND
def test_a_build_that_prints_much_is_kept_within_bounds(
    cell: Cell, round_: int
) -> None:
    package = builds(cell.world.packages, f"floods-{cell.label}", flood(FLOOD_MB))
    with Callers(cell.world, cell.calls, [STEADY], each=1) as callers:
        callers.wait(1)
        facts = cell.refused(package, "build-failed")
        callers.wait(1)
    assert "flood is over" in facts["output"]
    logs = list((cell.world.home / "output").glob(f"floods-{cell.label}*/*.log"))
    assert logs
    assert all(path.stat().st_size < LARGEST_LOG for path in logs)
    cell.assert_healthy()


@ROUND
def test_a_build_that_hangs_ends_at_its_limit(cell: Cell, round_: int) -> None:
    """The node is started anew with a short limit: that is a setting of it."""
    cell.deploy_victim()
    with restarted(cell, **{"chaincode.installTimeout": f"{BUILD_S}s"}):
        package = builds(cell.world.packages, f"hangs-{cell.label}", HANG)
        began = time.monotonic()
        with pytest.raises(ChaindockError) as caught:
            last(cell.world.deploying(VICTIM, package))
        spent_s = time.monotonic() - began
        error = caught.value
        assert error.slug == "launch-timeout", error.message
        assert error.facts["phase"] == "compile"
        assert "it begins" in error.facts["output"]
        assert BUILD_S <= spent_s < BUILD_S + NEXT_CALL_S
        cell.next_call()
        cell.assert_healthy(victim=RUNNING)


@contextlib.contextmanager
def restarted(cell: Cell, **flags: str) -> Iterator[None]:
    """A time in which the node runs with other settings."""
    before = dict(cell.world.flags)
    cell.world.down()
    cell.world.flags = {**before, **flags}
    cell.world.up()
    try:
        yield
    finally:
        cell.world.down()
        cell.world.flags = before
        cell.world.up()
