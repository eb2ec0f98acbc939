"""What a crash, or a full disk, at the worst moment of a deploy comes to."""

from __future__ import annotations

from typing import Any

import pytest

from chaindock.errors import EngineUnavailable, LedgerError, StorageError
from chaindock.lifecycle.definitions import Approval, Definition
from support.doubles.deployments import Node, package


async def test_a_restart_launches_what_should_run(tmp_path):
    async with Node(tmp_path) as node:
        one = await node.deployer.deploy(package("one"), "a")
        await node.deployer.deploy(package("two"), "b")
        await node.deployer.stop("b")
        committer = node.committer
    async with Node(tmp_path, committer) as node:
        await node.deployer.restore()
        await node.quiet()
        assert node.runtime.running == {one.ccid}
        await node.deployer.start("b")
        assert len(node.runtime.running) == 2


async def test_a_crash_between_commit_and_switch_ends_with_the_new_version(tmp_path):
    async with Node(tmp_path) as node:
        await node.deployer.deploy(package("one"), "a")
        committer = node.committer
        new = node.store.add(package("two"))
        node.targets.approve(Approval("a", 2, "2.0", new.ccid))
        committer.define(Definition(name="a", sequence=2, version="2.0"))
    async with Node(tmp_path, committer) as node:
        await node.deployer.restore()
        await node.quiet()
        assert node.runtime.running == {new.ccid}


async def test_a_crash_during_a_deploy_leaves_no_package(tmp_path):
    async with Node(tmp_path) as node:
        one = await node.deployer.deploy(package("one"), "a")
        committer = node.committer
        node.store.add(package("killed while it was built"))
        approved = node.store.add(package("killed before its definition was committed"))
        node.targets.approve(Approval("a", 2, "2.0", approved.ccid))
    async with Node(tmp_path, committer) as node:
        await node.deployer.restore()
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
        node.targets.remove("a")
    async with Node(tmp_path, committer) as node:
        await node.deployer.restore()
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
        await node.deployer.restore()
        await node.quiet()
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
        await node.deployer.restore()
        await node.quiet()
        assert node.runtime.running == {one.ccid}


async def test_a_committed_definition_counts_even_if_it_cannot_be_recorded(
    tmp_path, monkeypatch
):
    async with Node(tmp_path) as node:
        await node.deployer.deploy(package("one"), "a")
        with monkeypatch.context() as patched:
            read_only_after_approval(node, patched)
            done = await node.deployer.deploy(package("two"), "a")
        await node.quiet()
        assert done.sequence == 2
        assert node.runtime.running == {done.ccid}
        committer = node.committer
    async with Node(tmp_path, committer) as node:
        await node.deployer.restore()
        await node.quiet()
        assert node.runtime.running == {done.ccid}


async def test_a_refused_definition_leaves_the_old_version_even_without_room(
    tmp_path, monkeypatch
):
    async with Node(tmp_path) as node:
        one = await node.deployer.deploy(package("one"), "a")
        node.committer.fail = LedgerError("disk full")
        with monkeypatch.context() as patched:
            read_only_after_approval(node, patched)
            with pytest.raises(LedgerError, match="disk full"):
                await node.deployer.deploy(package("two"), "a")
        await node.quiet()
        assert node.runtime.running == {one.ccid}
        assert node.store.list() == [one.ccid]


def read_only_after_approval(node: Any, patched: Any) -> None:
    """Let nothing be written to the target state once an approval is there."""
    approve = node.targets.approve

    def once(approval: Any) -> None:
        approve(approval)
        node.targets._db.execute("PRAGMA query_only=ON")

    patched.setattr(node.targets, "approve", once)
