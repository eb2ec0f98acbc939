"""Where a chaincode runs: what `auto` comes to, and that it never changes unasked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest

from chaindock.errors import EngineError, EngineUnavailable, InvalidInput
from chaindock.ids import Ccid
from chaindock.lifecycle.states import Placement
from chaindock.lifecycle.targets import TargetState
from chaindock.node import backends as module
from chaindock.node.backends import Backends
from support.doubles.fakes import InMemoryBuilder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OLD, NEW = Ccid("old:" + "1" * 64), Ccid("new:" + "2" * 64)


class Engine(InMemoryBuilder):
    """A controller whose engine may be away."""

    name = "docker"
    endpoint = "unix:///engine"
    away = True
    connected = False
    connects = reaps = 0

    async def connect(self) -> None:
        if self.connected:
            return
        self.connects += 1
        if self.away:
            raise EngineUnavailable("unix:///engine: no such file", hint="start it")
        self.connected = True

    async def reap(self) -> int:
        self.reaps += 1
        return 0


class Process(InMemoryBuilder):
    name = "process"


@pytest.fixture
def targets(tmp_path: Path) -> Iterator[TargetState]:
    with TargetState(tmp_path / "desired.db") as targets:
        yield targets


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK_EVERY_S", 0.0)


def backends(
    targets: TargetState,
    engine: Engine | None,
    default: str = "auto",
    *,
    named: bool = False,
) -> Backends:
    return Backends(
        default, cast("Any", engine), cast("Any", Process()), targets, named=named
    )


async def test_without_any_engine_auto_means_processes_and_says_so(targets, engine):
    found = backends(targets, engine)
    builder = await found.builder_for(NEW)
    assert builder.name == found.outlook[0] == "process"
    assert "no such file" in targets.placement(NEW).why
    assert "less isolated" in found.outlook[1]


async def test_what_runs_as_a_process_stays_one_when_an_engine_appears(targets, engine):
    found = backends(targets, engine)
    await found.builder_for(NEW)
    engine.away = False
    assert (await found.builder_for(NEW)).name == "process"
    assert (await found.builder_for(OLD)).name == "docker"
    assert found.outlook[0] == "docker"
    assert engine.reaps == 1, "leftovers go before the first build"


async def test_what_runs_in_a_container_waits_for_its_engine(targets, engine):
    engine.away = False
    await backends(targets, engine).builder_for(OLD)
    engine.away, engine.connected = True, False
    found = backends(targets, engine)  # after a restart
    with pytest.raises(EngineUnavailable, match="no such file") as caught:
        await found.builder_for(OLD)
    assert caught.value.retryable
    assert "--backend process" in (caught.value.hint or "")


async def test_new_chaincode_waits_for_an_engine_that_other_chaincode_runs_on(
    targets, engine
):
    targets.place(OLD, Placement("auto", "docker", "an engine answers"))
    found = backends(targets, engine)
    with pytest.raises(EngineUnavailable):
        await found.builder_for(NEW)
    assert found.outlook[0] == "docker"
    assert "waiting for the container engine" in found.outlook[1]
    targets.place(NEW, Placement("process"))
    assert (await found.builder_for(NEW)).name == "process"


async def test_a_named_engine_that_is_away_is_an_error_that_says_which(targets, engine):
    """DOCKER_HOST, a context or vm.endpoint: nothing becomes a process unasked."""
    found = backends(targets, engine, named=True)
    with pytest.raises(EngineUnavailable, match="unix:///engine: no such file"):
        await found.builder_for(NEW)
    assert targets.placement(NEW).given == ""
    engine.away = False
    assert (await found.builder_for(NEW)).name == "docker"


async def test_the_back_end_of_the_configuration_holds(targets, engine):
    found = backends(targets, engine, "process")
    assert (await found.builder_for(NEW)).name == "process"
    assert engine.connects == 0


@pytest.mark.parametrize(
    ("default", "why"),
    [("process", "chaindock.backend is process"), ("auto", "vm.endpoint is empty")],
)
def test_a_back_end_that_is_not_there_is_refused_and_status_says_why(
    targets, default, why
):
    found = backends(targets, None, default)
    with pytest.raises(InvalidInput, match="'docker' is not there") as caught:
        found.require("docker")
    assert "why there is no other: chaindock status" in (caught.value.hint or "")
    assert why in found.outlook[1]


async def test_an_empty_endpoint_means_that_no_engine_is_used(targets):
    found = backends(targets, None)
    assert (await found.builder_for(NEW)).name == "process"
    assert "vm.endpoint is empty" in found.outlook[1]
    targets.place(OLD, Placement("docker", "docker", "as asked"))
    with pytest.raises(EngineError, match="uses no container engine"):
        await found.builder_for(OLD)
    with pytest.raises(InvalidInput, match="'docker' is not there"):
        found.require("docker")


async def test_an_engine_whose_leftovers_cannot_be_removed_is_asked_again(
    targets, engine
):
    engine.away = False

    class Stuck(Engine):
        away = False

        async def reap(self) -> int:
            self.reaps += 1
            if self.reaps == 1:
                raise EngineError("busy")
            return 1

    stuck = Stuck()
    found = backends(targets, stuck)
    for _ in range(3):
        assert (await found.builder_for(OLD)).name == "docker"
    assert (stuck.reaps, stuck.connects) == (2, 1)


async def test_an_engine_that_is_away_may_hold_builds_if_something_ran_there(
    targets, engine
):
    targets.place(OLD, Placement("auto", "docker"))
    targets.place(NEW, Placement("auto", "process"))
    found = backends(targets, engine)
    assert [one.name for one in found.holders(OLD)] == ["process", "docker"]
    assert [one.name for one in found.holders(NEW)] == ["process"]
