"""Where a package runs: as asked, decided once, and moved only when a user asks."""

import asyncio

import pytest

from chaindock.errors import EngineTimeout, PlacementConflict, StartFailed
from chaindock.lifecycle.terms import Terms
from support.doubles.deployments import Node, package
from support.eventually import eventually


async def test_the_asked_back_end_is_known_when_the_launch_begins(node):
    await node.deployer.deploy(package("one"), "basic", backend="process")
    assert node.runtime.placed() == ["process"]


async def test_another_back_end_moves_the_same_package(node):
    first = await node.deployer.deploy(package("one"), "basic", backend="process")
    moved = await node.deployer.deploy(package("one"), "basic", backend="docker")
    assert (moved.sequence, moved.placement.given) == (1, "docker")
    done = [e[0] for e in node.runtime.log if e[0] != "placed"]
    assert done == ["launch", "up", "stop", "discard", "launch", "up"]
    assert node.runtime.placed() == ["process", "docker"]
    again = await node.deployer.deploy(package("one"), "basic")
    assert again.placement.given == "docker"
    assert node.runtime.running == {first.ccid}


async def test_a_call_during_a_move_launches_where_it_goes(node):
    first = await node.deployer.deploy(package("one"), "basic", backend="process")
    node.runtime.stop_gate = asyncio.Event()
    move = asyncio.ensure_future(
        node.deployer.deploy(package("one"), "basic", backend="docker")
    )
    await eventually(lambda: ("stop", first.ccid) in node.runtime.log)
    assert node.targets.placement(first.ccid).asked == "docker"
    node.runtime.stop_gate.set()
    await move


async def test_a_move_that_fails_does_not_start_what_was_stopped(node):
    await node.deployer.deploy(package("one"), "basic", backend="process")
    await node.deployer.stop("basic")
    node.runtime.fail = StartFailed("no engine")
    with pytest.raises(StartFailed):
        await node.deployer.deploy(package("one"), "basic", backend="docker")
    node.runtime.fail = None
    await node.quiet()
    assert node.runtime.running == set()


async def test_a_move_that_fails_goes_back(node):
    first = await node.deployer.deploy(package("one"), "basic", backend="process")
    node.runtime.fail = StartFailed("no engine")
    with pytest.raises(StartFailed):
        await node.deployer.deploy(package("one"), "basic", backend="docker")
    node.runtime.fail = None
    await node.quiet()
    assert node.runtime.running == {first.ccid}
    assert node.targets.placement(first.ccid).given == "process"


async def test_isolation_that_was_asked_for_and_cannot_be_given_is_an_error(node):
    """The package runs as a process for another chaincode already."""
    first = await node.deployer.deploy(package("one"), "a", backend="process")
    with pytest.raises(PlacementConflict, match="runs on back end 'process' for a"):
        await node.deployer.deploy(package("one"), "b", backend="docker")
    await node.quiet()
    assert [one.name for one in node.fleet.all()] == ["a"]
    assert node.runtime.running == {first.ccid}
    second = await node.deployer.deploy(package("one"), "b")
    assert second.placement.given == "process"


async def test_a_new_version_of_the_same_package_moves_where_it_was_asked_for(node):
    first = await node.deployer.deploy(package("one"), "basic", backend="process")
    moved = await node.deployer.deploy(
        package("one"), "basic", Terms(version="2.0"), "docker"
    )
    assert (moved.sequence, moved.placement.given) == (2, "docker")
    assert node.runtime.placed() == ["process", "docker"]
    assert node.runtime.running == {first.ccid}


async def test_a_move_that_fails_forgets_what_the_other_back_end_built(node):
    """Else the contract would run on that one, and be shown on the old one."""
    first = await node.deployer.deploy(package("one"), "basic", backend="docker")
    node.runtime.fail = StartFailed("no such program")
    with pytest.raises(StartFailed):
        await node.deployer.deploy(package("one"), "basic", backend="process")
    node.runtime.fail = None
    await node.quiet()
    assert node.runtime.running == {first.ccid}
    assert node.runtime.log.count(("discard", first.ccid)) == 2
    assert node.runtime.placed()[-1] == "docker"


async def test_where_it_runs_stays_after_a_restart(tmp_path):
    async with Node(tmp_path) as node:
        done = await node.deployer.deploy(package("one"), "a")
        assert done.placement.given == "docker"
        committer = node.committer
    async with Node(tmp_path, committer) as node:
        assert node.targets.placement(done.ccid).given == "docker"


async def test_a_back_end_that_does_not_answer_can_be_left(node):
    first = await node.deployer.deploy(package("one"), "basic", backend="docker")
    node.runtime.runs[first.ccid].stop_error = EngineTimeout("was not stopped")
    moved = await node.deployer.deploy(package("one"), "basic", backend="process")
    assert moved.placement.given == "process"
    assert node.runtime.placed() == ["docker", "process"]
