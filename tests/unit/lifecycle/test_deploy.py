"""Deploy, upgrade, stop, start, remove: and what stays as it was when one fails."""

import asyncio
import threading
from typing import Any

import pytest

from chaindock.errors import (
    BuildFailed,
    EngineUnavailable,
    InvalidInput,
    LedgerError,
    NotFound,
    PackageInvalid,
    StartFailed,
)
from chaindock.lifecycle.states import Target
from chaindock.lifecycle.terms import Terms, application_policy, parse_collections
from support.doubles.deployments import Node, package


async def test_a_first_deploy_stores_launches_and_defines(node):
    events = []
    done = await node.deployer.deploy(
        package("one"), "basic", watch=lambda e: events.append(e.kind)
    )
    assert (done.name, done.version, done.sequence, done.changed) == (
        "basic", "1.0", 1, True
    )  # fmt: skip
    assert node.store.list() == [done.ccid]
    assert node.runtime.running == {done.ccid}
    assert node.deployments.get("basic").ccid == done.ccid
    assert node.committer.args[0].version == "1.0"
    assert "phase" in events
    assert [str(p.phase) for p in done.attempt.phases] == ["compile"]


async def test_an_upgrade_serves_all_the_time_and_then_retires_the_old(node):
    old = await node.deployer.deploy(package("one"), "basic")
    node.runtime.gate = asyncio.Event()
    node.runtime.entered.clear()
    upgrade = asyncio.ensure_future(node.deployer.deploy(package("two"), "basic"))
    await node.runtime.entered.wait()
    assert node.runtime.running == {old.ccid}
    assert node.deployments.find("basic").ccid == old.ccid
    node.runtime.gate.set()
    new = await upgrade
    assert (new.sequence, new.version) == (2, "2.0")
    await node.quiet()
    assert node.runtime.running == {new.ccid}
    assert node.store.list() == [new.ccid]
    launched = [e[:2] for e in node.runtime.log]
    assert launched.index(("launch", new.ccid)) < launched.index(("stop", old.ccid))


async def test_the_same_package_again_commits_nothing_and_makes_sure_it_runs(node):
    first = await node.deployer.deploy(package("one"), "basic")
    node.runtime.runs[first.ccid].die()
    again = await node.deployer.deploy(package("one"), "basic")
    assert not again.changed
    assert (again.sequence, again.version) == (1, "1.0")
    assert node.runtime.running == {first.ccid}
    assert len(node.committer.args) == 1


async def test_the_same_package_again_starts_a_stopped_one(node):
    await node.deployer.deploy(package("one"), "basic")
    await node.deployer.stop("basic")
    await node.deployer.deploy(package("one"), "basic")
    assert node.deployments.get("basic").target is Target.RUNNING


async def test_another_version_of_the_same_package_is_a_new_sequence(node):
    first = await node.deployer.deploy(package("one"), "basic", Terms(version="1.5"))
    same = await node.deployer.deploy(package("one"), "basic", Terms(version="1.5"))
    other = await node.deployer.deploy(package("one"), "basic", Terms(version="1.6"))
    init = await node.deployer.deploy(
        package("one"), "basic", Terms(init_required=True)
    )
    assert [d.sequence for d in (first, same, other, init)] == [1, 1, 2, 3]
    assert init.version == "3.0"
    await node.quiet()
    assert node.runtime.running == {first.ccid}
    assert node.runtime.count("launch", first.ccid) == 1


async def test_a_failed_build_changes_nothing_and_tells_why(node):
    old = await node.deployer.deploy(package("one"), "basic")
    node.runtime.fail = BuildFailed("npm ci ended with 1", output=["E404"], phase="x")
    with pytest.raises(BuildFailed) as caught:
        await node.deployer.deploy(package("two"), "basic")
    assert caught.value.output == ["E404"]
    await node.quiet()
    assert node.runtime.running == {old.ccid}
    assert node.deployments.get("basic").approval.sequence == 1
    assert [one.name for one in node.fleet.all()] == ["basic"]
    assert node.committer.sequence("basic") == 1
    assert node.store.list() == [old.ccid]
    node.runtime.fail = None
    assert (await node.deployer.deploy(package("two"), "basic")).sequence == 2


async def test_a_failed_build_of_an_installed_package_keeps_the_package(node):
    old = await node.deployer.deploy(package("one"), "basic")
    node.runtime.fail = BuildFailed("no network")
    node.runtime.runs[old.ccid].die()
    with pytest.raises(BuildFailed):
        await node.deployer.deploy(package("one"), "basic")
    await node.quiet()
    assert node.store.list() == [old.ccid]
    assert node.deployments.get("basic").ccid == old.ccid


async def test_a_definition_that_is_not_committed_takes_the_new_version_down(node):
    old = await node.deployer.deploy(package("one"), "basic")
    node.committer.fail = LedgerError("disk full")
    with pytest.raises(LedgerError):
        await node.deployer.deploy(package("two"), "basic")
    await node.quiet()
    assert node.runtime.running == {old.ccid}
    assert node.store.list() == [old.ccid]
    assert node.deployments.find("basic").approval.sequence == 1


async def test_a_lost_answer_does_not_undo_what_is_on_the_ledger(node):
    old = await node.deployer.deploy(package("one"), "basic")
    node.committer.fail_after = LedgerError("connection lost")
    new = await node.deployer.deploy(package("two"), "basic")
    await node.quiet()
    assert new.sequence == 2
    assert node.runtime.running == {new.ccid} != {old.ccid}


async def test_a_deploy_cancelled_while_it_builds_leaves_nothing(node):
    node.runtime.gate = asyncio.Event()
    deploy = asyncio.ensure_future(node.deployer.deploy(package("one"), "basic"))
    await node.runtime.entered.wait()
    deploy.cancel()
    with pytest.raises(asyncio.CancelledError):
        await deploy
    await node.quiet()
    assert node.runtime.running == set()
    assert node.fleet.all() == []
    assert node.store.list() == []


async def test_a_deploy_cancelled_while_it_commits_is_complete(node):
    old = await node.deployer.deploy(package("one"), "basic")
    node.committer.gate = asyncio.Event()
    node.committer.entered.clear()
    deploy = asyncio.ensure_future(node.deployer.deploy(package("two"), "basic"))
    await node.committer.entered.wait()
    deploy.cancel()
    await asyncio.sleep(0)
    node.committer.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await deploy
    await node.quiet()
    found = node.deployments.get("basic")
    assert found.approval.sequence == 2
    assert node.runtime.running == {found.ccid} != {old.ccid}
    assert node.store.list() == [found.ccid]


async def test_two_deploys_of_one_name_are_one_after_the_other(node):
    both = await asyncio.gather(
        node.deployer.deploy(package("one"), "basic"),
        node.deployer.deploy(package("two"), "basic"),
    )
    await node.quiet()
    assert sorted(d.sequence for d in both) == [1, 2]
    last = max(both, key=lambda d: d.sequence)
    assert node.runtime.running == {last.ccid}


async def test_two_names_may_share_a_package_until_the_last_is_gone(node):
    first, second = await asyncio.gather(
        node.deployer.deploy(package("one"), "a"),
        node.deployer.deploy(package("one"), "b"),
    )
    assert first.ccid == second.ccid
    await node.deployer.stop("a")
    assert node.runtime.running == {first.ccid}
    await node.deployer.remove("a")
    assert node.runtime.running == {first.ccid}
    assert node.store.list() == [first.ccid]
    await node.deployer.remove("b")
    assert node.runtime.running == set()
    assert node.store.list() == []
    assert node.fleet.all() == []


async def test_a_failed_deploy_of_a_shared_package_leaves_the_other_alone(node):
    first = await node.deployer.deploy(package("one"), "a")
    node.committer.fail = LedgerError("disk full")
    with pytest.raises(LedgerError):
        await node.deployer.deploy(package("one"), "b")
    await node.quiet()
    assert node.runtime.running == {first.ccid}
    assert node.store.list() == [first.ccid]


async def test_a_deploy_right_after_a_failed_one_keeps_its_package(node, monkeypatch):
    removing, go_on = threading.Event(), threading.Event()
    remove = node.store.remove

    def slowly(ccid: Any) -> None:
        removing.set()
        assert go_on.wait(10)
        remove(ccid)

    monkeypatch.setattr(node.store, "remove", slowly)
    node.runtime.fail = BuildFailed("no")
    with pytest.raises(BuildFailed):
        await node.deployer.deploy(package("one"), "a")
    await asyncio.to_thread(removing.wait, 10)
    node.runtime.fail = None
    again = asyncio.ensure_future(node.deployer.deploy(package("one"), "a"))
    # Long enough for the package to arrive, if it did not wait for the other's end.
    await asyncio.sleep(0.1)
    go_on.set()
    done = await again
    await node.quiet()
    assert node.store.list() == [done.ccid]


async def test_stop_and_start(node):
    done = await node.deployer.deploy(package("one"), "basic")
    await node.deployer.stop("basic")
    assert node.runtime.running == set()
    assert node.deployments.find("basic").target is Target.STOPPED
    assert node.store.list() == [done.ccid]
    started = await node.deployer.start("basic")
    assert (started.ccid, started.changed) == (done.ccid, False)
    assert node.runtime.running == {done.ccid}


async def test_stop_gives_up_a_launch_under_way(node):
    await node.deployer.deploy(package("one"), "basic")
    await node.deployer.stop("basic")
    node.runtime.gate = asyncio.Event()
    node.runtime.entered.clear()
    approval = node.deployments.get("basic").approval
    node.targets.set(node.deployments.channel, approval, Target.RUNNING)
    node.custodian.restore([approval.ccid])
    await node.runtime.entered.wait()
    async with asyncio.timeout(1):
        await node.deployer.stop("basic")
    await node.quiet()
    assert node.runtime.running == set()


async def test_after_remove_the_next_deploy_goes_on_counting(node):
    await node.deployer.deploy(package("one"), "basic")
    await node.deployer.remove("basic")
    done = await node.deployer.deploy(package("one"), "basic")
    assert (done.sequence, done.version) == (2, "2.0")


async def test_unknown_names_are_named(node):
    for call in (node.deployer.start, node.deployer.stop, node.deployer.remove):
        with pytest.raises(NotFound, match="no chaincode 'x'"):
            await call("x")


async def test_bad_names_versions_and_packages_touch_nothing(node):
    for name, version in (("a--b", None), ("lscc", None), ("ok", "1 0")):
        with pytest.raises(InvalidInput):
            await node.deployer.deploy(package("one"), name, Terms(version=version))
    with pytest.raises(PackageInvalid):
        await node.deployer.deploy(b"not a package", "ok")
    assert node.store.list() == []
    assert node.runtime.log == []


async def test_a_stop_of_one_name_does_not_stop_another_that_is_being_deployed(node):
    first = await node.deployer.deploy(package("one"), "a")
    node.committer.gate = asyncio.Event()
    node.committer.entered.clear()
    deploy = asyncio.ensure_future(node.deployer.deploy(package("one"), "b"))
    await node.committer.entered.wait()
    await node.deployer.stop("a")
    node.committer.gate.set()
    await deploy
    await node.quiet()
    assert node.runtime.running == {first.ccid}


async def test_a_stopped_chaincode_whose_new_deployment_fails_stays_stopped(node):
    await node.deployer.deploy(package("one"), "basic")
    await node.deployer.stop("basic")
    node.runtime.fail = StartFailed("no engine", retryable=True)
    with pytest.raises(StartFailed):
        await node.deployer.deploy(package("one"), "basic")
    node.runtime.fail = None
    await node.quiet()
    assert node.runtime.running == set()
    assert node.deployments.find("basic").target is Target.STOPPED


async def test_a_program_that_a_user_starts_is_defined_without_a_package(node):
    done = await node.deployer.deploy_by_hand("basic")
    assert (done.ccid, done.sequence, done.changed) == ("basic:1.0", 1, True)
    assert node.custodian.find(done.ccid) is not None
    again = await node.deployer.deploy_by_hand("basic")
    assert (again.sequence, again.changed) == (1, False)
    newer = await node.deployer.deploy_by_hand("basic", Terms(version="2.0"))
    assert (newer.ccid, newer.sequence) == ("basic:2.0", 2)
    await node.deployer.remove("basic")
    assert node.fleet.all() == []
    assert node.runtime.placed() == []


async def test_a_removal_whose_engine_is_away_is_done_by_the_next_start(tmp_path):
    async def away(_: Any) -> None:
        raise EngineUnavailable("no engine answers")

    async with Node(tmp_path) as node:
        done = await node.deployer.deploy(package("one"), "basic")
        node.runtime.discard = away
        await node.deployer.remove("basic")
        assert node.store.list() == [done.ccid]
        assert node.purged == []
        committer = node.committer
    async with Node(tmp_path, committer) as node:
        await node.restore()
        await node.quiet()
        assert node.store.list() == []
        assert ("discard", done.ccid) in node.runtime.log


# --- policy and collections

COLLECTION = '[{"name":"c","policy":"OR(\'Org1MSP.member\')","blockToLive":3}]'


def policy(text: str) -> bytes:
    found = application_policy(text, "", "here")
    assert found is not None
    return bytes(found.SerializeToString())


async def test_policy_and_collections_are_kept_until_others_are_given(node):
    terms = Terms(
        policy=policy("OR('Org1MSP.peer')"), collections=parse_collections(COLLECTION)
    )
    first = await node.deployer.deploy(package("one"), "basic", terms)
    same = await node.deployer.deploy(package("one"), "basic", terms)
    again = await node.deployer.deploy(package("one"), "basic")
    upgrade = await node.deployer.deploy(package("two"), "basic")
    assert [d.sequence for d in (first, same, again, upgrade)] == [1, 1, 1, 2]
    for done in (first, upgrade):
        assert done.definition.validation_parameter == terms.policy
        assert done.definition.collections == terms.collections
    other = await node.deployer.deploy(
        package("two"), "basic", Terms(policy=policy("OR('Org1MSP.admin')"))
    )
    assert (other.sequence, other.version) == (3, "3.0")
    assert other.definition.collections == terms.collections


async def test_collections_that_cannot_be_committed_are_refused_before_the_build(node):
    await node.deployer.deploy(
        package("one"), "basic", Terms(collections=parse_collections(COLLECTION))
    )
    await node.quiet()
    launches, hint = len(node.runtime.log), None
    for text, said in (
        (COLLECTION.replace("3", "4"), "the BlockToLive in an existing collection [c]"),
        ("[]", "does not contain previously defined collections"),
        (COLLECTION.replace("Org1", "Org2"), "'Org2MSP' is not part of the channel"),
    ):
        with pytest.raises(InvalidInput) as caught:
            await node.deployer.deploy(
                package("two"), "basic", Terms(collections=parse_collections(text))
            )
        assert said in caught.value.message
        hint = caught.value.hint
    assert hint == "let it join: chaindock org add Org2"
    assert len(node.runtime.log) == launches
    await node.quiet()
    assert len(node.store.list()) == 1
