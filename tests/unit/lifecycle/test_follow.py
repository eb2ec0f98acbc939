"""A definition that somebody else commits: what the node does when its block is there."""

import asyncio
import json
from typing import Any

import pytest

from chaindock.errors import NotFound, StartFailed
from chaindock.lifecycle.definitions import Definition
from chaindock.lifecycle.states import LaunchState, Target
from chaindock.lifecycle.terms import parse_collections
from chaindock.packaging.store import PackageStore
from support.doubles.deployments import Node, package
from support.eventually import eventually

INDEX = "META-INF/statedb/couchdb/indexes/a.json"
OF_COLLECTION = "META-INF/statedb/couchdb/collections/c/indexes/b.json"
INDEXES = {
    INDEX: b'{"index":{"fields":["a"]}}',
    OF_COLLECTION: b'{"index":{"fields":["b"]}}',
}


def defined(sequence: int = 1, name: str = "basic", **more: Any) -> Any:
    return Definition(name=name, sequence=sequence, version=f"{sequence}.0", **more)


def commit(node: Any, ccid: Any, definition: Any = None, **more: Any) -> None:
    """Approve and commit, as the peer CLI does."""
    definition = definition or defined(**more)
    node.committer.approve(definition, ccid)
    node.committer.define(definition)


def meaning(node: Any, name: str = "basic") -> Any:
    """Return what a call of `name` finds."""
    with node.committer.new_simulator("") as simulator:
        return node.deployments.at(simulator, name)


async def test_what_is_installed_approved_and_committed_is_launched(node):
    ccid = (await node.packages.install(package("one"), "Org1MSP")).ccid
    await node.quiet()
    assert node.runtime.log == []
    commit(node, ccid)
    assert node.custodian.find(ccid).state is LaunchState.DOWN  # it begins at once
    found = node.deployments.get("basic")
    assert (found.ccid, found.approval.version, found.runs) == (ccid, "1.0", True)
    await node.custodian.ready(ccid, 5)  # as the first call does
    assert node.runtime.running == {ccid}


async def test_a_call_reads_the_sequence_of_the_definition_alone(node):
    await node.deployer.deploy(package("one"), "basic")
    with node.committer.new_simulator("") as simulator:
        simulator.begin()
        found = node.deployments.at(simulator, "basic")
        reads = list(simulator.reads)
    assert (found.version, found.sequence) == ("1.0", 1)
    assert reads == [("_lifecycle", "namespaces/fields/basic/Sequence")]


async def test_the_former_version_is_retired_and_a_call_waits_for_the_new_one(node):
    old = await node.deployer.deploy(package("one"), "basic")
    new = (await node.packages.install(package("two"), "Org1MSP")).ccid
    node.runtime.gate = asyncio.Event()
    commit(node, new, sequence=2)
    assert meaning(node).ccid == new
    call = asyncio.ensure_future(node.custodian.ready(new, 5))
    await eventually(lambda: ("stop", old.ccid) in node.runtime.log)
    assert not call.done()
    node.runtime.gate.set()
    await call
    await node.quiet()
    assert node.runtime.running == {new}
    assert node.store.list() == [new]


async def test_a_definition_without_a_package_says_what_a_peer_says(node):
    commit(node, "")
    with pytest.raises(NotFound) as caught:
        meaning(node)
    assert caught.value.message == (
        "chaincode definition for 'basic' exists, but chaincode is not installed"
    )
    found = node.deployments.get("basic")
    assert (found.installed, found.runs) == (False, False)
    with pytest.raises(NotFound, match="is not installed"):
        await node.deployer.start("basic")


async def test_the_id_of_no_package_reaches_no_back_end(node):
    commit(node, "../../etc:" + "0" * 64)
    assert not node.deployments.get("basic").installed
    commit(node, "", sequence=2)
    await node.deployer.stop("basic")
    await node.deployer.remove("basic")
    await node.quiet()
    assert node.runtime.log == node.purged == []
    assert node.custodian.all() == []


async def test_what_is_installed_after_its_definition_is_launched_then(node, tmp_path):
    ccid = PackageStore(tmp_path / "elsewhere").add(package("one")).ccid
    commit(node, ccid)
    with pytest.raises(NotFound):
        meaning(node)
    await node.packages.install(package("one"), "Org1MSP")
    assert meaning(node).ccid == ccid
    await node.custodian.ready(ccid, 5)


async def test_another_package_for_the_committed_sequence_replaces_the_former(node):
    old = (await node.packages.install(package("one"), "Org1MSP")).ccid
    new = (await node.packages.install(package("two"), "Org1MSP")).ccid
    commit(node, old)
    await node.custodian.ready(old, 5)
    node.committer.approve(defined(), new)
    assert meaning(node).ccid == new
    await node.custodian.ready(new, 5)
    await node.quiet()
    assert node.runtime.running == {new}
    assert node.store.list() == sorted([old, new])  # both were installed


async def test_an_approval_of_the_next_sequence_changes_nothing(node):
    one = await node.deployer.deploy(package("one"), "basic")
    new = (await node.packages.install(package("two"), "Org1MSP")).ccid
    node.committer.approve(defined(2), new)
    await node.quiet()
    assert meaning(node).ccid == one.ccid
    assert node.runtime.running == {one.ccid}


async def test_the_first_organisation_that_agrees_and_names_a_package_counts(tmp_path):
    async with Node(tmp_path, orgs=["Org1MSP", "Org2MSP", "Org3MSP"]) as node:
        ids = [
            (await node.packages.install(package(text), "Org1MSP")).ccid
            for text in ("a", "b", "c")
        ]
        other = defined(init_required=True)
        node.committer.approve(other, ids[0], "Org1MSP")  # does not agree
        node.committer.approve(defined(), "", "Org2MSP")
        node.committer.approve(defined(), ids[2], "Org3MSP")
        node.committer.define(defined())
        assert meaning(node).ccid == ids[2]
        node.committer.approve(defined(), ids[1], "Org2MSP")
        assert meaning(node).ccid == ids[1]
        node.committer.approve(defined(), ids[0], "Org1MSP")
        assert meaning(node).ccid == ids[0]
        await node.quiet()
        assert node.runtime.running == {ids[0]}


async def test_indexes_are_made_for_the_collections_of_the_definition(node):
    ccid = (await node.packages.install(package("one", more=INDEXES), "Org1MSP")).ccid
    commit(node, ccid)
    await node.quiet()
    assert node.committer.indexes == [("basic", {INDEX: INDEXES[INDEX]})]
    config = json.dumps([{"name": "c", "policy": "OR('Org1MSP.member')"}])
    commit(node, ccid, defined(2, collections=parse_collections(config)))
    await node.quiet()
    assert node.committer.indexes[1:] == [("basic", INDEXES)]


async def test_a_launch_that_fails_is_tried_again_and_told(node):
    ccid = (await node.packages.install(package("one"), "Org1MSP")).ccid
    node.runtime.fail = StartFailed("no such file")
    commit(node, ccid)
    await node.quiet()
    supervisor = node.custodian.find(ccid)
    assert supervisor.state is LaunchState.CRASH_LOOP
    assert supervisor.error.message == "no such file"
    assert node.deployments.get("basic").target is Target.RUNNING
    node.runtime.fail = None
    await node.deployer.start("basic")


async def test_a_stopped_or_removed_chaincode_runs_again_from_the_next_commit_on(node):
    ccid = (await node.packages.install(package("one"), "Org1MSP")).ccid
    commit(node, ccid)
    await node.custodian.ready(ccid, 5)
    await node.deployer.stop("basic")
    with pytest.raises(StartFailed, match="was stopped"):
        meaning(node)
    commit(node, ccid, sequence=2)
    await node.custodian.ready(ccid, 5)
    await node.deployer.remove("basic")
    assert node.deployments.find("basic") is None
    with pytest.raises(NotFound, match="is not installed"):
        meaning(node)
    assert node.store.list() == [ccid]
    commit(node, ccid, sequence=3)
    await node.custodian.ready(ccid, 5)
    assert meaning(node).sequence == 3


async def test_a_program_is_expected_for_a_package_that_a_user_starts(tmp_path):
    async with Node(tmp_path, by_hand=True) as node:
        commit(node, "basic:1.0")
        await eventually(lambda: node.custodian.find("basic:1.0"))
        assert meaning(node).ccid == "basic:1.0"
        commit(node, "../../etc:1.0", name="other")
        await asyncio.sleep(0.05)
        assert not node.deployments.get("other").installed
        committer = node.committer
    async with Node(tmp_path, committer, by_hand=True) as node:
        await node.restore()
        assert node.custodian.find("basic:1.0").target is Target.RUNNING


async def test_a_crash_right_after_a_commit_is_followed_by_the_next_start(tmp_path):
    async with Node(tmp_path) as node:
        old = await node.deployer.deploy(package("one"), "basic")
        new = (
            await node.packages.install(package("two", more=INDEXES), "Org1MSP")
        ).ccid
        committer = node.committer
        committer.watchers = []
        commit(node, new, sequence=2)
    async with Node(tmp_path, committer) as node:
        await node.restore()
        await node.quiet()
        assert node.runtime.running == {new} != {old.ccid}
        assert committer.indexes == [("basic", {INDEX: INDEXES[INDEX]})]
        assert node.store.list() == [new]


async def test_a_deployment_takes_over_what_somebody_else_defined(node):
    ccid = (await node.packages.install(package("one"), "Org1MSP")).ccid
    commit(node, ccid)
    same = await node.deployer.deploy(package("one"), "basic")
    assert (same.ccid, same.sequence, same.changed) == (ccid, 1, False)
    newer = await node.deployer.deploy(package("two"), "basic")
    assert newer.sequence == 2
    await node.quiet()
    assert node.runtime.running == {newer.ccid}
    assert node.store.list() == sorted([ccid, newer.ccid])
