"""What `auto` comes to while the engine is away."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest

from chaindock.ids import Ccid
from chaindock.lifecycle.definitions import Approval
from chaindock.lifecycle.desired import DesiredState
from chaindock.node.backends import Backends, Choice
from support.doubles.fakes import InMemoryBuilder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OLD, NEW = Ccid("old:" + "1" * 64), Ccid("new:" + "2" * 64)


class Engine(InMemoryBuilder):
    name = "docker"
    away = True
    endpoint = "unix:///engine"


class Process(InMemoryBuilder):
    name = "process"


@pytest.fixture
def desired(tmp_path: Path) -> Iterator[DesiredState]:
    with DesiredState(tmp_path / "desired.db") as desired:
        desired.approve(Approval("old", 1, "1.0", OLD, "auto", False))
        yield desired


def backends(desired: DesiredState, late: Any = None) -> Backends:
    late = late or Engine()
    return Backends((late, Process()), "auto", "", cast("Any", late), desired.keeps)


async def test_without_any_engine_ever_the_first_deploy_may_be_a_process(desired):
    found = backends(desired)
    assert Choice(found, desired).only(NEW) is None
    assert found.first == "process"
    assert "is used from the next build on" in found.reason


async def test_a_first_deploy_waits_for_an_engine_that_others_run_on(desired):
    late = Engine()
    found = backends(desired, late)
    choice = Choice(found, desired)
    await choice.taken(OLD, "docker")
    assert choice.only(NEW) == "docker"
    assert found.first == "docker"
    assert "is waited for" in found.reason
    desired.plan(NEW, "process")
    assert choice.only(NEW) == "process"
    late.away = False
    desired.plan(NEW, "auto")
    assert choice.only(NEW) is None


async def test_when_nothing_runs_on_it_any_more_it_is_not_waited_for(desired):
    found = backends(desired)
    choice = Choice(found, desired)
    await choice.taken(OLD, "docker")
    desired.withdraw("old", 1)
    desired.drop_plan(OLD)
    assert choice.only(NEW) is None
