"""What a restart finds."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from chaindock.errors import NotFound, StorageError
from chaindock.ids import Ccid
from chaindock.lifecycle.definitions import Approval
from chaindock.lifecycle.desired import DesiredState, Wish

V1, V2 = Ccid("basic:" + "1" * 64), Ccid("basic:" + "2" * 64)


@pytest.fixture
def path(tmp_path: Any) -> Any:
    return tmp_path / "desired.db"


@pytest.fixture
def desired(path: Any) -> Any:
    with DesiredState(path) as state:
        yield state


def approval(sequence: Any, ccid: Any, name: Any = "basic", **more: Any) -> Any:
    return Approval(name, sequence, f"{sequence}.0", ccid, **more)


def reopened(path: Any) -> Any:
    with DesiredState(path) as state:
        return state


def test_what_was_switched_to_is_there_after_a_restart(desired, path):
    desired.approve(approval(1, V1, backend="process", init_required=True))
    desired.switch("basic", 1)
    found = reopened(path).get("basic")
    assert found.approval == approval(1, V1, backend="process", init_required=True)
    assert found.wish is Wish.RUNNING
    assert found.since == desired.get("basic").since
    assert reopened(path).backend_of(V1) == "process"
    assert reopened(path).to_run() == [V1]


def test_where_a_package_ran_is_known_after_a_restart(desired, path):
    desired.approve(approval(1, V1))
    desired.switch("basic", 1)
    desired.keep_on(V1, "docker")
    desired.keep_on(V2, "docker")  # of a deployment that a crash ended
    assert desired.kept_on(V1) == reopened(path).kept_on(V1) == "docker"
    assert reopened(path).kept_on(V2) is None
    desired.drop_plan(V1)
    assert desired.kept_on(V1) == "docker"
    desired.remove("basic")
    desired.drop_plan(V1)
    assert desired.kept_on(V1) is reopened(path).kept_on(V1) is None


def test_a_full_disk_can_pass(desired):
    desired._db.execute("PRAGMA max_page_count=1")  # no disk to fill

    def fill() -> None:
        for sequence in range(1, 1000):
            desired.approve(approval(sequence, V1, name="x" * 1000))

    with pytest.raises(StorageError, match="full") as caught:
        fill()
    assert caught.value.retryable
    assert "free space" in (caught.value.hint or "")


def test_an_approval_alone_runs_nothing(desired, path):
    desired.approve(approval(1, V1))
    assert desired.to_run() == []
    assert desired.approval("basic", 1).ccid == V1
    with pytest.raises(NotFound):
        desired.get("basic")
    assert reopened(path).approval("basic", 1).ccid == V1


def test_both_versions_are_known_until_the_switch(desired):
    desired.approve(approval(1, V1))
    desired.switch("basic", 1)
    desired.approve(approval(2, V2))
    assert desired.approval("basic", 1).ccid == V1
    assert desired.approval("basic", 2).ccid == V2
    assert desired.users_of(V1) == desired.users_of(V2) == ["basic"]
    desired.switch("basic", 2)
    assert desired.users_of(V1) == []
    # An old snapshot must not bring the old version back to life.
    assert desired.approval("basic", 1).ccid == V2
    assert desired.approval("basic", 3) is None


def test_a_crash_after_the_commit_ends_with_the_new_version(desired, path):
    desired.approve(approval(1, V1))
    desired.switch("basic", 1)
    desired.approve(approval(2, V2))
    with DesiredState(path) as again:
        again.recover({"basic": 2})
        assert again.get("basic").ccid == V2
        assert again.to_run() == [V2]


def test_a_crash_before_the_commit_ends_with_the_old_version(desired, path):
    desired.approve(approval(1, V1))
    desired.switch("basic", 1)
    desired.approve(approval(2, V2))
    with DesiredState(path) as again:
        again.recover({"basic": 1})
        assert again.get("basic").ccid == V1
        assert again.approval("basic", 2) is None
    assert reopened(path).users_of(V2) == []


def test_a_crash_during_the_first_deploy_leaves_nothing(desired, path):
    desired.approve(approval(1, V1))
    with DesiredState(path) as again:
        assert again.names() == ["basic"]
        again.recover({"basic": 0})
        assert again.names() == []


def test_stopped_stays_stopped(desired, path):
    desired.approve(approval(1, V1))
    desired.switch("basic", 1)
    desired.wish("basic", Wish.STOPPED)
    found = reopened(path)
    assert found.is_stopped("basic")
    assert found.to_run() == []
    assert found.users_of(V1) == ["basic"]
    desired.wish("basic", Wish.RUNNING)
    assert not reopened(path).is_stopped("basic")


def test_removed_is_forgotten(desired, path):
    desired.approve(approval(1, V1))
    desired.switch("basic", 1)
    desired.remove("basic")
    for state in (desired, reopened(path)):
        assert state.all() == []
        assert state.approval("basic", 1) is None
    with pytest.raises(NotFound):
        desired.remove("basic")
    with pytest.raises(NotFound):
        desired.wish("basic", Wish.STOPPED)


def test_two_names_may_share_a_package(desired):
    for name in ("a", "b"):
        desired.approve(approval(1, V1, name))
        desired.switch(name, 1)
    assert desired.to_run() == [V1]
    assert desired.users_of(V1) == ["a", "b"]
    desired.wish("a", Wish.STOPPED)
    assert desired.to_run() == [V1]


def test_a_plan_chooses_the_back_end_before_anything_is_recorded(desired, path):
    assert desired.backend_of(V1) is None
    desired.plan(V1, "docker")
    assert desired.backend_of(V1) == "docker"
    desired.plan(V1, "auto")
    assert desired.backend_of(V1) is None
    assert reopened(path).backend_of(V1) is None


def test_a_damaged_file_is_named(path):
    path.write_bytes(b"this is not a database, and it is long enough to see" * 10)
    with pytest.raises(StorageError, match=r"desired\.db") as caught:
        DesiredState(path)
    assert caught.value.path == str(path)


def test_a_file_that_cannot_be_made_is_named(tmp_path):
    with pytest.raises(StorageError):
        DesiredState(tmp_path / "no" / "such" / "desired.db")


def test_changes_from_many_threads_at_once_all_count(desired, path):
    names = [f"cc{number}" for number in range(40)]

    def deploy(name: str) -> None:
        for sequence, ccid in ((1, V1), (2, V2)):
            desired.approve(approval(sequence, ccid, name))
            desired.switch(name, sequence)

    over = threading.Event()

    def look() -> int:
        looks = 0
        while not over.is_set():
            desired.to_run()
            desired.users_of(V2)
            desired.ccids()
            desired.names()
            looks += 1
        return looks

    with ThreadPoolExecutor(10) as pool:
        readers = [pool.submit(look) for _ in range(2)]
        list(pool.map(deploy, names))
        over.set()
        assert all(reader.result() for reader in readers)
    for state in (desired, reopened(path)):
        assert [one.name for one in state.all()] == sorted(names)
        assert state.ccids() == {V2}


def test_what_the_ledger_decided_holds_even_if_it_cannot_be_written(desired, path):
    desired.approve(approval(1, V1))
    desired.switch("basic", 1)
    desired.approve(approval(2, V2))
    desired.approve(approval(1, V2, "other"))
    desired._db.execute("PRAGMA query_only=ON")
    with pytest.raises(StorageError):
        desired.switch("basic", 2)
    with pytest.raises(StorageError):
        desired.withdraw("other", 1)
    assert desired.get("basic").ccid == V2
    assert desired.names() == ["basic"]
    with DesiredState(path) as later:
        later.recover({"basic": 2, "other": 0})
        assert later.get("basic").ccid == V2
        assert later.names() == ["basic"]
