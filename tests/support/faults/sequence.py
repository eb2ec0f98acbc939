"""Random faults and operations, one after another, on a node with three chaincodes.

After each step each chaincode that should run runs once, each acknowledged transaction is
on the ledger once, chaincode reads what a replay of the blocks gives, and nothing is left.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from chaindock.errors import (
    ChaindockError,
    ExecuteTimeout,
    LaunchFailed,
    LedgerError,
    StreamTerminated,
)
from support.engines.own_engine import OwnEngine
from support.faults.clients import Callers, CallRecord
from support.faults.disk import full
from support.faults.health import CRASH_LOOP, RUNNING, STOPPED, Healthy, assert_healthy
from support.faults.packages import FAIL, TALKS, builds, misbehaves
from support.faults.world import last

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.faults.world import World

NAMES = ("a", "b", "c")
STEPS = (6, 12)
STEP_S = 60.0
"""The most seconds of one step, on a loaded machine too."""
CUT_OFF = 50
"""The most calls in a row that may fail because chaincode dies."""
HANGS_S = 4.0
"""The most seconds that a failing deployment runs beside the other steps."""
BACK_S = 45.0
"""The most seconds until chaincode is back after the engine or the disk is."""
FLAGS = {
    "chaindock.launch.stopGrace": "1s",
    "chaindock.launch.connectTimeout": "3s",
    "chaindock.launch.retries": "10",  # more than the kills that one may meet in a row
    "chaindock.launch.retryFirst": "50ms",
    "chaindock.launch.retryCap": "200ms",
}
BAD = {"exits": "exited-early", "registers-as-another": "exited-early"}
_labels = itertools.count(1)


class Sequence:
    """One sequence; `steps` lists what was done.

    Args:
        world: not started yet.
        seed: of the random choice of steps.
        engine: an engine of this sequence alone, which it may stop; None = no such steps.
        small: the home is on a small file system, which the sequence may fill.
    """

    def __init__(
        self,
        world: World,
        seed: str,
        engine: OwnEngine | None = None,
        *,
        small: bool = False,
    ) -> None:
        self.world, self.calls = world, CallRecord()
        self._engine, self._small = engine, small
        self.rng = random.Random(seed)
        self.steps: list[str] = []
        self.targets: dict[str, str] = {}
        self.versions: dict[str, set[str]] = {}
        """Name → labels that may run; more than one after an interrupted upgrade."""
        self.healthy: Healthy
        self._waiting: list[threading.Thread] = []
        self._wrong: list[str] = []

    def play(self, steps: int | None = None) -> None:
        """Start the node, do the steps, end the node; nothing is left."""
        self.world.up()
        self._deploy("a")
        self._next_calls()
        self._remove("a")
        self.check()
        self.healthy = Healthy.note(self.world, 0)
        self._deploy("a")
        count = steps or self.rng.randint(*STEPS)
        for _ in range(count):
            self.step()
        self.finish()

    def step(self) -> None:
        """Do one of the possible acts, and check everything."""
        began = time.monotonic()
        act, words = self.rng.choice(list(self._possible()))
        self.steps.append(" ".join((act.__name__.strip("_"), *words)))
        act(*words)
        self._next_calls()
        self.check()
        spent_s = time.monotonic() - began
        assert spent_s < STEP_S, f"{self.steps[-1]} took {spent_s:.0f} s"

    def finish(self) -> None:
        """Remove all chaincodes, then end the node; nothing is left of either."""
        self._join()
        for name in list(self.targets):
            self._remove(name)
        assert_healthy(self.world, {}, self.healthy)
        self.calls.check(self.world, running=[])
        self.world.down()
        assert self.world.remains.all() == []

    def check(self) -> None:
        """What must hold after each step."""
        hanging = any(thread.is_alive() for thread in self._waiting)
        assert_healthy(self.world, self.targets, None, busy=hanging)
        for line in self.world.admin.ps():
            label = line["package_id"].partition(":")[0]
            assert label in self.versions[line["name"]], line
            self.versions[line["name"]] = {label}
        self.calls.check(self.world, running=self._running())
        assert not self._wrong, self._wrong

    # --- what is possible ---------------------------------------------------------------

    def _running(self) -> list[str]:
        return [name for name, target in self.targets.items() if target == RUNNING]

    def _possible(self) -> Iterator[tuple[Callable[..., None], tuple[str, ...]]]:
        for name in NAMES:
            yield self._deploy, (name,)
            yield self._fail_to_deploy, (name, self.rng.choice([*BAD, *BAD, "build"]))
        yield self._kill_node, ()
        yield self._kill_node, ()
        yield self._end_node, ()
        yield self._crash_loop, (self.rng.choice(NAMES),)
        if not self._waiting:
            yield self._never_registers, ()
            yield self._hang_in_build, ()
        if self._small:
            yield from [(self._fill_disk, ())] * 2
        if self._engine is not None:
            yield self._stop_engine, ()
            yield self._kill_engine, ()
        for name, target in self.targets.items():
            yield self._remove, (name,)
            if target == STOPPED:
                yield from [(self._start, (name,))] * 3
            elif target == RUNNING:
                yield self._stop, (name,)
                for act in (
                    self._kill_chaincode,
                    self._kill_under_calls,
                    self._crash,
                    self._hang_in_call,
                    self._freeze,
                    self._flood,
                    self._register_again,
                    self._upgrade_and_leave,
                    self._upgrade_and_kill,
                    self._start,
                ):
                    yield act, (name,)

    # --- operations ---------------------------------------------------------------------

    def _label(self, mode: str = "good") -> str:
        return f"{mode}-{next(_labels)}"

    def _deploy(self, name: str) -> None:
        label = self._label()
        self.world.deploy(name, label)
        self.targets[name], self.versions[name] = RUNNING, {label}

    def _start(self, name: str) -> None:
        self.world.start(name)
        self.targets[name] = RUNNING

    def _stop(self, name: str) -> None:
        self.world.admin.stop(name)
        self.targets[name] = STOPPED

    def _remove(self, name: str) -> None:
        self.world.admin.remove(name)
        del self.targets[name], self.versions[name]

    def _next_calls(self) -> None:
        """Call each running chaincode once; the call waits for a restart.

        A call to a chaincode that dies meanwhile fails with StreamTerminated.
        """
        for name in self._running():
            act = self.calls.add if self.rng.random() < 0.3 else self.calls.put
            for _ in range(CUT_OFF):
                try:
                    act(self.world, name)
                except StreamTerminated:
                    continue
                break
            else:
                pytest.fail(f"{CUT_OFF} calls to {name!r} were cut off")

    # --- faults -------------------------------------------------------------------------

    def _fail_to_deploy(self, name: str, how: str) -> None:
        if how == "build":
            package, slug = self._building(FAIL), "build-failed"
        else:
            package = misbehaves(self.world.packages, self._label(how))
            slug = BAD[how]
        with pytest.raises(LaunchFailed) as caught:
            last(self.world.deploying(name, package))
        assert caught.value.slug == slug, caught.value.message

    def _building(self, script: str) -> Path:
        return builds(self.world.packages, self._label("builds"), script)

    def _kill_node(self) -> None:
        self._pause(0.1)
        self.world.kill()
        self.world.up()

    def _end_node(self) -> None:
        self.world.down()
        self.world.up()

    def _kill_chaincode(self, name: str) -> None:
        self.world.signal_chaincode(name, signal.SIGKILL)

    def _kill_under_calls(self, name: str) -> None:
        with Callers(self.world, self.calls, self._running(), each=2) as callers:
            callers.wait(3)
            self._pause(0.05)
            self.world.signal_chaincode(name, signal.SIGKILL)
            callers.wait(6)

    def _crash(self, name: str) -> None:
        with pytest.raises(StreamTerminated):
            self.world.invoke(name, "crash")

    def _crash_loop(self, name: str) -> None:
        """Deploy chaincode that ends soon after each start: the node gives up."""
        label = self._label("leaves")
        self.world.deploy(name, label)
        self.targets[name], self.versions[name] = CRASH_LOOP, {label}

    def _hang_in_call(self, name: str) -> None:
        with pytest.raises(ExecuteTimeout):
            self.world.invoke(name, "hang", timeout_s=0.2)

    def _freeze(self, name: str) -> None:
        pid = self.world.signal_chaincode(name, signal.SIGSTOP)
        assert pid, f"{name} does not run: {self.world.line(name)}"
        try:
            with pytest.raises(ExecuteTimeout):
                self.world.query(name, "get", "any", timeout_s=0.2)
        finally:
            ends = self.rng.random() < 0.5
            if pid == self.world.chaincode_pid(name):
                number = signal.SIGKILL if ends else signal.SIGCONT
                self.world.signal_chaincode(name, number)

    def _flood(self, name: str) -> None:
        assert self.world.query(name, "flood", "1", "100", timeout_s=20) == "printed"

    def _register_again(self, name: str) -> None:
        other = self.world.line(self.rng.choice(list(self.targets)))["package_id"]
        assert self.world.query(name, "as", other, timeout_s=20) != "taken"

    def _upgrade_and_leave(self, name: str) -> None:
        """Upgrade, and have the client go away: either version may run afterwards.

        The next operation on the name waits until that is settled.
        """
        self._upgrade(name, lambda: None)
        self.world.start(name)

    def _upgrade_and_kill(self, name: str) -> None:
        self._upgrade(name, self.world.kill)
        self.world.up()

    def _upgrade(self, name: str, interrupt: Callable[[], None]) -> None:
        label = self._label()
        self.versions[name] = {*self.versions[name], label}
        events = self.world.deploying(name, misbehaves(self.world.packages, label))
        with contextlib.suppress(ChaindockError):
            for _ in itertools.islice(events, self.rng.randint(1, 16)):
                pass
        interrupt()
        events.close()  # type: ignore[attr-defined]  # it is a generator

    def _fill_disk(self) -> None:
        """Call, and kill a chaincode, while the disk is full."""
        self._join()
        running = self._running()
        with full(self.world.home):
            for name in running:
                with pytest.raises(LedgerError):
                    self._write_on(name)
            if running:
                self._kill_chaincode(self.rng.choice(running))
                self._pause(0.5)
        self._until_all_answer()

    def _write_on(self, name: str) -> None:
        """Write until the room in the ledger's own files is used up."""
        for _ in range(CUT_OFF):
            self.calls.put(self.world, name)

    def _stop_engine(self) -> None:
        self._without_engine(OwnEngine.stop)

    def _kill_engine(self) -> None:
        self._without_engine(OwnEngine.kill)

    def _without_engine(self, end: Callable[[OwnEngine], None]) -> None:
        """While the engine is gone, calls are answered or fail with the reason."""
        self._join()
        assert self._engine is not None
        end(self._engine)
        for name in self._running():
            failed = self._refused(name)
            assert failed is None or (failed.hint and failed.slug != "internal"), failed
        self._engine.start()
        self._until_all_answer()

    def _until_all_answer(self) -> None:
        """Wait until each running chaincode answers."""
        until = time.monotonic() + BACK_S
        for name in self._running():
            while (failed := self._refused(name)) is not None:
                assert time.monotonic() < until, f"{name}: {failed.message}"
                time.sleep(0.05)

    def _refused(self, name: str) -> ChaindockError | None:
        try:
            self.calls.put(self.world, name)
        except ChaindockError as error:
            return error
        return None

    # --- what goes on beside the next steps -------------------------------------------------

    def _never_registers(self) -> None:
        package = misbehaves(self.world.packages, self._label("never-registers"))
        self._beside(package)

    def _hang_in_build(self) -> None:
        self._beside(self._building(TALKS))

    def _beside(self, package: Path) -> None:
        """Start a deployment that will fail, under another name, and go on."""
        begun = threading.Event()
        thread = threading.Thread(target=self._try, args=(package, begun), daemon=True)
        thread.start()
        self._waiting.append(thread)
        assert begun.wait(30), "the deployment does not begin"

    def _try(self, package: Path, begun: threading.Event) -> None:
        until = time.monotonic() + self.rng.uniform(0.2, HANGS_S)
        events = self.world.deploying("hanging", package)
        try:
            for event in events:
                begun.set()
                if event["event"] == "result":
                    self._wrong.append(f"{package.name} came up")
                if time.monotonic() > until:
                    break
        except ChaindockError as error:
            if not isinstance(error, LaunchFailed) and "node" not in error.slug:
                self._wrong.append(f"{error.slug}: {error.message}")
        finally:
            begun.set()
            events.close()  # type: ignore[attr-defined]  # it is a generator

    def _join(self) -> None:
        for thread in self._waiting:
            thread.join(60)
            assert not thread.is_alive(), "a deployment does not end"
        self._waiting.clear()

    def _pause(self, most_s: float) -> None:
        time.sleep(self.rng.uniform(0, most_s))


def describe(sequence: Sequence, seed: Any) -> str:
    """Return the steps of a failed sequence, and how to repeat it."""
    done = "\n  ".join(sequence.steps)
    return f"CHAINDOCK_SEED={seed} repeats it; the steps were\n  {done}"
