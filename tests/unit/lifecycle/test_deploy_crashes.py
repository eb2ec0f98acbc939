"""What a crash, or a full disk, at the worst moment of a deploy comes to."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from chaindock.errors import EngineUnavailable, LedgerError, StorageError
from chaindock.lifecycle.definitions import Definition
from chaindock.lifecycle.states import Target
from support.doubles.deployments import Node, package

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


async def test_a_restart_launches_what_should_run(tmp_path):
    async with Node(tmp_path) as node:
        one = await node.deployer.deploy(package("one"), "a")
        await node.deployer.deploy(package("two"), "b")
        await node.deployer.stop("b")
        committer = node.committer
    async with Node(tmp_path, committer) as node:
        await node.restore()
        await node.quiet()
        assert node.runtime.running == {one.ccid}
        await node.deployer.start("b")
        assert len(node.runtime.running) == 2


async def test_a_crash_right_after_a_commit_ends_with_the_new_version(tmp_path):
    async with Node(tmp_path) as node:
        await node.deployer.deploy(package("one"), "a")
        committer = node.committer
        committer.watchers = []
        new = node.store.add(package("two"))
        definition = Definition(name="a", sequence=2, version="2.0")
        committer.approve(definition, new.ccid)
        committer.define(definition)
    async with Node(tmp_path, committer) as node:
        await node.restore()
        await node.quiet()
        assert node.runtime.running == {new.ccid}
        assert node.store.list() == [new.ccid]


async def test_a_crash_during_a_deploy_leaves_no_package(tmp_path):
    async with Node(tmp_path) as node:
        one = await node.deployer.deploy(package("one"), "a")
        committer = node.committer
        node.store.add(package("killed while it was built"))
        approved = node.store.add(package("killed before its definition was committed"))
        definition = Definition(name="a", sequence=2, version="2.0")
        committer.approve(definition, approved.ccid)
    async with Node(tmp_path, committer) as node:
        await node.restore()
        await node.quiet()
        assert node.store.list() == [one.ccid]
        assert node.runtime.running == {one.ccid}


async def test_the_build_of_what_is_removed_goes_before_its_package(tmp_path):
    """As long as the package is there, a start after a crash knows what is left."""
    async with Node(tmp_path) as node:
        one = await node.deployer.deploy(package("one"), "a")
        await node.deployer.remove("a")
        assert node.purged == [(one.ccid, True)]
        assert node.store.list() == []


async def test_a_crash_during_a_removal_leaves_no_build(tmp_path):
    async with Node(tmp_path) as node:
        one = await node.deployer.deploy(package("one"), "a")
        committer = node.committer
        approval = node.deployments.get("a").approval
        node.targets.set("mychannel", approval, Target.REMOVED)
    async with Node(tmp_path, committer) as node:
        await node.restore()
        await node.quiet()
        assert node.purged == [(one.ccid, True)]
        assert node.store.list() == []


async def test_what_cannot_be_stopped_is_cleared_away_by_the_next_start(
    tmp_path, monkeypatch
):
    async with Node(tmp_path) as node:
        one = await node.deployer.deploy(package("one"), "a")

        async def fail(*_args: Any) -> Any:
            raise EngineUnavailable("the engine is away")

        monkeypatch.setattr(node.runtime, "discard", fail)
        await node.deployer.remove("a")
        assert node.purged == []
        assert node.store.list() == [one.ccid]
        committer = node.committer
    async with Node(tmp_path, committer) as node:
        await node.restore()
        await node.quiet()
        assert node.purged == [(one.ccid, True)]
        assert node.store.list() == []


async def test_a_removal_right_after_the_deployment_takes_the_build_along(tmp_path):
    """What the deployment does at its end once cleared away the package without it."""
    async with Node(tmp_path) as node:
        one = await node.deployer.deploy(package("one"), "a")
        approval = node.deployments.get("a").approval
        node.targets.set("mychannel", approval, Target.REMOVED)
        await node.quiet()
        assert node.store.list() == [one.ccid]
        await node.packages.retire(one.ccid, purge=True)
        assert node.purged == [(one.ccid, True)]
        assert node.store.list() == []


async def test_a_package_that_cannot_be_removed_hinders_no_start(tmp_path, monkeypatch):
    async with Node(tmp_path) as node:
        one = await node.deployer.deploy(package("one"), "a")
        committer = node.committer
    async with Node(tmp_path, committer) as node:

        def fail(_wanted: Any) -> Any:
            raise StorageError("read-only file system")

        monkeypatch.setattr(node.store, "sweep", fail)
        await node.restore()
        await node.quiet()
        assert node.runtime.running == {one.ccid}


async def test_a_committed_definition_counts_even_if_nothing_can_be_written(tmp_path):
    async with Node(tmp_path) as node:
        await node.deployer.deploy(package("one"), "a")
        async with read_only_from_the_commit_on(node):
            done = await node.deployer.deploy(package("two"), "a")
        await node.quiet()
        assert done.sequence == 2
        assert node.runtime.running == {done.ccid}
        committer = node.committer
    async with Node(tmp_path, committer) as node:
        await node.restore()
        await node.quiet()
        assert node.runtime.running == {done.ccid}


async def test_a_refused_definition_leaves_the_old_version_even_without_room(tmp_path):
    async with Node(tmp_path) as node:
        one = await node.deployer.deploy(package("one"), "a")
        node.committer.fail = LedgerError("disk full")
        async with read_only_from_the_commit_on(node):
            with pytest.raises(LedgerError, match="disk full"):
                await node.deployer.deploy(package("two"), "a")
        await node.quiet()
        assert node.runtime.running == {one.ccid}
        assert node.store.list() == [one.ccid]


@asynccontextmanager
async def read_only_from_the_commit_on(node: Any) -> AsyncIterator[None]:
    """Let nothing be written to the target state once a definition is committed."""
    node.committer.gate = asyncio.Event()
    node.committer.entered.clear()

    async def close() -> None:
        await node.committer.entered.wait()
        node.targets._db.execute("PRAGMA query_only=ON")
        node.committer.gate.set()

    closing = asyncio.ensure_future(close())
    yield
    await closing
    node.targets._db.execute("PRAGMA query_only=OFF")
