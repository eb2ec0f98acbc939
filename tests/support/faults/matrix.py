"""The node of the fault matrix: one chaincode that is left in peace, one that is not."""

from __future__ import annotations

import contextlib
import os
import random
import time
from typing import TYPE_CHECKING, Any

import pytest

from chaindock.errors import ChaindockError
from support.faults.clients import Books
from support.faults.health import RUNNING, Healthy, assert_well
from support.faults.packages import misbehaves
from support.faults.world import CliWorld, last

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.faults.world import World

SEED = int(os.environ.get("CHAINDOCK_SEED", "4"))  # noqa: TID251  # tests have no config
ROUNDS = int(os.environ.get("CHAINDOCK_FAULT_ROUNDS", "1"))  # noqa: TID251
"""How often a cell is repeated, each time under another seed."""
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
    """One fault, done to `victim` while `steady` serves."""

    def __init__(self, world: World) -> None:
        self.world, self.books = world, Books()
        self.healthy: Healthy
        self.rng = random.Random(SEED)
        self.label = ""

    def found(self) -> None:
        """Bring up `steady`, and note what belongs to a node that is well."""
        self.world.up()
        self.world.deploy(STEADY, "good-0")
        self.again()

    def again(self) -> None:
        """The node was started anew: note again what it holds."""
        for _ in range(8):
            self.books.put(self.world, STEADY)
        self.books.check(self.world, running=[STEADY])
        assert_well(self.world, {STEADY: RUNNING})
        self.healthy = Healthy.note(self.world, 1)

    def begin(self, number: int, test: str) -> None:
        """Take a label nobody had; the test says what chances there are."""
        self.rng = random.Random(f"{SEED} {test}")
        self.label = f"good-{number}"

    def fresh(self) -> str:
        """Deploy `victim`, in a version that nobody ran before; return its ccid."""
        ccid: str = self.world.deploy(VICTIM, self.label)["package_id"]
        return ccid

    def package(self, label: str) -> Path:
        """Return a package of `misbehaves`."""
        return misbehaves(self.world.packages, label)

    def end(self) -> None:
        """Whatever happened: `victim` can be removed, and then all is as before."""
        if any(one["name"] == VICTIM for one in self.world.admin.ps()):
            self.world.admin.remove(VICTIM)
        self.well()

    def well(self, **others: str) -> None:
        """All that should run does, once; all that was acknowledged is there."""
        assert_well(self.world, {STEADY: RUNNING, **others}, self.healthy)
        alive = [n for n, state in others.items() if state == RUNNING]
        self.books.check(self.world, running=[STEADY, *alive])

    def pause(self, most_s: float) -> None:
        """Wait for a random time: the fault is to come at any moment."""
        time.sleep(self.rng.uniform(0, most_s))

    def next_call(self, name: str = VICTIM) -> float:
        """The next call succeeds, in time; return how long it took."""
        began = time.monotonic()
        self.books.put(self.world, name)
        spent_s = time.monotonic() - began
        assert spent_s < NEXT_CALL_S, f"the next call took {spent_s:.1f} s"
        return spent_s

    def refused(
        self, package: Path, slug: str, match: str | None = None
    ) -> dict[str, Any]:
        """Deploying fails with this error, which tells `match`; return its facts."""
        with pytest.raises(ChaindockError, match=match) as caught:
            last(self.world.deploying(VICTIM, package))
        error = caught.value
        assert error.slug == slug, f"{error.slug}: {error.message}"
        assert error.hint
        return error.facts


@contextlib.contextmanager
def cells(backend: str, folder: Path) -> Iterator[Cell]:
    """Yield the node; at the end nothing is left of it."""
    found = Cell(CliWorld(folder, backend, FLAGS))
    try:
        found.found()
        yield found
        found.world.down()
        assert found.world.remains.all() == []
        assert not found.world.filter_rules()
    except BaseException as error:
        error.add_note(f"repeat it with CHAINDOCK_SEED={SEED}")
        raise
    finally:
        found.world.take_down()
