"""What a restart finds."""

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from chaindock.errors import NotFound, StorageError
from chaindock.ids import Ccid
from chaindock.lifecycle.definitions import Approval
from chaindock.lifecycle.states import Placement, Target
from chaindock.lifecycle.targets import TargetState

V1, V2 = Ccid("basic:" + "1" * 64), Ccid("basic:" + "2" * 64)


@pytest.fixture
def path(tmp_path: Any) -> Any:
    return tmp_path / "desired.db"


@pytest.fixture
def targets(path: Any) -> Any:
    with TargetState(path) as state:
        yield state


def approval(sequence: Any, ccid: Any, name: Any = "basic", **more: Any) -> Any:
    return Approval(name, sequence, f"{sequence}.0", ccid, **more)


def reopened(path: Any) -> Any:
    with TargetState(path) as state:
        return state


def test_what_was_switched_to_is_there_after_a_restart(targets, path):
    targets.approve(approval(1, V1, init_required=True))
    targets.switch("basic", 1)
    found = reopened(path).get("basic")
    assert found.approval == approval(1, V1, init_required=True)
    assert found.target is Target.RUNNING
    assert found.since == targets.get("basic").since
    assert reopened(path).to_run() == [V1]


def test_where_a_package_runs_is_known_after_a_restart(targets, path):
    there = Placement("auto", "docker", "an engine answers")
    targets.approve(approval(1, V1))
    targets.switch("basic", 1)
    targets.place(V1, there)
    targets.place(V2, there)  # of a deployment that a crash ended
    assert targets.placement(V1) == reopened(path).placement(V1) == there
    assert reopened(path).placement(V2) == Placement()
    targets.drop_placement(V1)
    assert targets.placement(V1) == there
    assert targets.is_used("docker")
    targets.remove("basic")
    targets.drop_placement(V1)
    assert targets.placement(V1) == reopened(path).placement(V1) == Placement()


def test_a_file_of_before_the_first_release_is_refused(path):
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE desired (name TEXT PRIMARY KEY) STRICT")
    db.close()
    with pytest.raises(StorageError, match="schema version 0, expected 1"):
        TargetState(path)


def test_a_file_of_a_newer_version_is_refused(path):
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(StorageError, match="a newer Chaindock wrote it"):
        TargetState(path)


def test_a_full_disk_can_pass(targets):
    targets._db.execute("PRAGMA max_page_count=1")  # no disk to fill

    def fill() -> None:
        for sequence in range(1, 1000):
            targets.approve(approval(sequence, V1, name="x" * 1000))

    with pytest.raises(StorageError, match="full") as caught:
        fill()
    assert caught.value.retryable
    assert "free space" in (caught.value.hint or "")


def test_an_approval_alone_runs_nothing(targets, path):
    targets.approve(approval(1, V1))
    assert targets.to_run() == []
    assert targets.approval("basic", 1).ccid == V1
    with pytest.raises(NotFound):
        targets.get("basic")
    assert reopened(path).approval("basic", 1).ccid == V1


def test_both_versions_are_known_until_the_switch(targets):
    targets.approve(approval(1, V1))
    targets.switch("basic", 1)
    targets.approve(approval(2, V2))
    assert targets.approval("basic", 1).ccid == V1
    assert targets.approval("basic", 2).ccid == V2
    assert targets.users_of(V1) == targets.users_of(V2) == ["basic"]
    targets.switch("basic", 2)
    assert targets.users_of(V1) == []
    # An old snapshot must not bring the old version back to life.
    assert targets.approval("basic", 1).ccid == V2
    assert targets.approval("basic", 3) is None


def test_a_crash_after_the_commit_ends_with_the_new_version(targets, path):
    targets.approve(approval(1, V1))
    targets.switch("basic", 1)
    targets.approve(approval(2, V2))
    with TargetState(path) as again:
        again.recover({"basic": 2})
        assert again.get("basic").ccid == V2
        assert again.to_run() == [V2]


def test_a_crash_before_the_commit_ends_with_the_old_version(targets, path):
    targets.approve(approval(1, V1))
    targets.switch("basic", 1)
    targets.approve(approval(2, V2))
    with TargetState(path) as again:
        again.recover({"basic": 1})
        assert again.get("basic").ccid == V1
        assert again.approval("basic", 2) is None
    assert reopened(path).users_of(V2) == []


def test_a_crash_during_the_first_deploy_leaves_nothing(targets, path):
    targets.approve(approval(1, V1))
    with TargetState(path) as again:
        assert again.names() == ["basic"]
        again.recover({"basic": 0})
        assert again.names() == []


def test_stopped_stays_stopped(targets, path):
    targets.approve(approval(1, V1))
    targets.switch("basic", 1)
    targets.set("basic", Target.STOPPED)
    found = reopened(path)
    assert found.is_stopped("basic")
    assert found.to_run() == []
    assert found.users_of(V1) == ["basic"]
    targets.set("basic", Target.RUNNING)
    assert not reopened(path).is_stopped("basic")


def test_removed_is_forgotten(targets, path):
    targets.approve(approval(1, V1))
    targets.switch("basic", 1)
    targets.remove("basic")
    for state in (targets, reopened(path)):
        assert state.all() == []
        assert state.approval("basic", 1) is None
    with pytest.raises(NotFound):
        targets.remove("basic")
    with pytest.raises(NotFound):
        targets.set("basic", Target.STOPPED)


def test_two_names_may_share_a_package(targets):
    for name in ("a", "b"):
        targets.approve(approval(1, V1, name))
        targets.switch(name, 1)
    assert targets.to_run() == [V1]
    assert targets.users_of(V1) == ["a", "b"]
    targets.set("a", Target.STOPPED)
    assert targets.to_run() == [V1]


def test_a_damaged_file_is_named(path):
    path.write_bytes(b"this is not a database, and it is long enough to see" * 10)
    with pytest.raises(StorageError, match=r"desired\.db") as caught:
        TargetState(path)
    assert caught.value.path == str(path)


def test_a_file_that_cannot_be_made_is_named(tmp_path):
    with pytest.raises(StorageError):
        TargetState(tmp_path / "no" / "such" / "desired.db")


def test_changes_from_many_threads_at_once_all_count(targets, path):
    names = [f"cc{number}" for number in range(40)]

    def deploy(name: str) -> None:
        for sequence, ccid in ((1, V1), (2, V2)):
            targets.approve(approval(sequence, ccid, name))
            targets.switch(name, sequence)

    over = threading.Event()

    def look() -> int:
        looks = 0
        while not over.is_set():
            targets.to_run()
            targets.users_of(V2)
            targets.ccids()
            targets.names()
            looks += 1
        return looks

    with ThreadPoolExecutor(10) as pool:
        readers = [pool.submit(look) for _ in range(2)]
        list(pool.map(deploy, names))
        over.set()
        assert all(reader.result() for reader in readers)
    for state in (targets, reopened(path)):
        assert [one.name for one in state.all()] == sorted(names)
        assert state.ccids() == {V2}


def test_what_the_ledger_decided_holds_even_if_it_cannot_be_written(targets, path):
    targets.approve(approval(1, V1))
    targets.switch("basic", 1)
    targets.approve(approval(2, V2))
    targets.approve(approval(1, V2, "other"))
    targets._db.execute("PRAGMA query_only=ON")
    with pytest.raises(StorageError):
        targets.switch("basic", 2)
    with pytest.raises(StorageError):
        targets.withdraw("other", 1)
    assert targets.get("basic").ccid == V2
    assert targets.names() == ["basic"]
    with TargetState(path) as later:
        later.recover({"basic": 2, "other": 0})
        assert later.get("basic").ccid == V2
        assert later.names() == ["basic"]
