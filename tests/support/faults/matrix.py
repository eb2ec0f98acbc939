"""The node of the fault tests: chaincode `steady` serves while faults hit `victim`."""

from __future__ import annotations

import contextlib
import os
import random
import time
from typing import TYPE_CHECKING, Any

import pytest

from chaindock.errors import ChaindockError
from support.faults.clients import CallRecord
from support.faults.health import RUNNING, Healthy, assert_healthy
from support.faults.packages import misbehaves
from support.faults.world import CliWorld, last
from support.nodes.node import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.faults.world import World

SEED = int(os.environ.get("CHAINDOCK_SEED", "4"))  # noqa: TID251  # tests have no config
ROUNDS = int(os.environ.get("CHAINDOCK_FAULT_ROUNDS", "1"))  # noqa: TID251
"""How often each fault test runs, each time with another seed."""
STEADY, VICTIM = "steady", "victim"
GRACE_S, CONNECT_S = 1.0, 4.0
NEXT_CALL_S = 30.0
FLAGS = {
    "chaindock.launch.stopGrace": f"{GRACE_S:g}s",
    "chaindock.launch.connectTimeout": f"{CONNECT_S:g}s",
    "chaindock.launch.retryFirst": "100ms",
    "chaindock.launch.retryCap": "30s",
}
ROUND = pytest.mark.parametrize("round_", range(ROUNDS))


class Cell:
    """A running node with `steady`; a fault test deploys `victim` on it."""

    def __init__(self, world: World) -> None:
        self.world, self.calls = world, CallRecord()
        self.healthy: Healthy
        self.rng = random.Random(SEED)
        self.label = ""

    def set_up(self) -> None:
        """Start the node, deploy `steady`, and note what a healthy node holds."""
        self.world.up()
        self.world.deploy(STEADY, "good-0")
        self.note_healthy()

    def note_healthy(self) -> None:
        """Note what a healthy node holds: files, sockets, threads, rules."""
        for _ in range(8):
            self.calls.put(self.world, STEADY)
        self.calls.check(self.world, running=[STEADY])
        assert_healthy(self.world, {STEADY: RUNNING})
        self.healthy = Healthy.note(self.world, 1)

    def begin(self, number: int, test: str) -> None:
        """Choose a new label; the name of the test seeds the random numbers."""
        self.rng = random.Random(f"{SEED} {test}")
        self.label = f"good-{number}"

    def deploy_victim(self) -> str:
        """Deploy `victim` in a new version; return its ccid."""
        ccid: str = self.world.deploy(VICTIM, self.label)["package_id"]
        return ccid

    def package(self, label: str) -> Path:
        """Return a package of `misbehaves`."""
        return misbehaves(self.world.packages, label)

    def end(self) -> None:
        """Remove `victim`; afterwards the node is as it was before the test."""
        if any(one["name"] == VICTIM for one in self.world.admin.ps()):
            self.world.admin.remove(VICTIM)
        self.assert_healthy()

    def assert_healthy(self, **others: str) -> None:
        """Each contract that should run runs once; each acknowledged write is there."""
        assert_healthy(self.world, {STEADY: RUNNING, **others}, self.healthy)
        alive = [n for n, state in others.items() if state == RUNNING]
        self.calls.check(self.world, running=[STEADY, *alive])

    def pause(self, most_s: float) -> None:
        """Wait for a random time, so that the fault comes at any moment."""
        time.sleep(self.rng.uniform(0, most_s))

    def next_call(self, name: str = VICTIM) -> float:
        """Call once; the call must succeed within NEXT_CALL_S. Return its seconds."""
        began = time.monotonic()
        self.calls.put(self.world, name)
        spent_s = time.monotonic() - began
        assert spent_s < NEXT_CALL_S, f"the next call took {spent_s:.1f} s"
        return spent_s

    def wait_for_another(self, before: str, limit_s: float = NEXT_CALL_S) -> None:
        """Wait until `victim` runs in another process or container than `before`.

        A call that begins after that is served; an earlier one may be lost with the old.
        """
        eventually(
            lambda: self.world.place(VICTIM) not in {before, ""},
            "another one runs",
            limit_s,
        )

    def refused(
        self, package: Path, slug: str, match: str | None = None
    ) -> dict[str, Any]:
        """Deploy; that must fail with `slug` and a message like `match`. Return facts."""
        with pytest.raises(ChaindockError, match=match) as caught:
            last(self.world.deploying(VICTIM, package))
        error = caught.value
        assert error.slug == slug, f"{error.slug}: {error.message}"
        assert error.hint
        return error.facts


@contextlib.contextmanager
def cells(
    backend: str, folder: Path, flags: dict[str, str] | None = None
) -> Iterator[Cell]:
    """Yield a node with `steady`; afterwards nothing of the node may be left."""
    found = Cell(CliWorld(folder, backend, {**FLAGS, **(flags or {})}))
    try:
        found.set_up()
        yield found
        found.world.down()
        assert found.world.remains.all() == []
        assert not found.world.filter_rules()
    except BaseException as error:
        error.add_note(f"repeat it with CHAINDOCK_SEED={SEED}")
        raise
    finally:
        found.world.take_down()
