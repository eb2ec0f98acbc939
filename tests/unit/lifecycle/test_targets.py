"""What a restart finds of what is local."""

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from chaindock.errors import StorageError
from chaindock.ids import Ccid
from chaindock.lifecycle.definitions import Approval
from chaindock.lifecycle.states import Placement, Target
from chaindock.lifecycle.targets import TargetState

V1, V2 = Ccid("basic:" + "1" * 64), Ccid("basic:" + "2" * 64)
ONE, TWO = "one", "two"


@pytest.fixture
def path(tmp_path: Any) -> Any:
    return tmp_path / "desired.db"


@pytest.fixture
def targets(path: Any) -> Any:
    with TargetState(path) as state:
        yield state


def approval(sequence: Any = 1, ccid: Any = V1, name: Any = "basic") -> Any:
    return Approval(name, sequence, f"{sequence}.0", ccid)


def reopened(path: Any) -> Any:
    with TargetState(path) as state:
        return state


def wanted(state: Any, channel: Any = ONE, what: Any = None) -> Any:
    wish = state.wish(channel, what or approval())
    return wish.target if wish else Target.RUNNING


def test_stopped_stays_stopped_in_its_channel_alone(targets, path):
    targets.set(ONE, approval(), Target.STOPPED)
    for state in (targets, reopened(path)):
        assert wanted(state) is Target.STOPPED
        assert wanted(state, TWO) is Target.RUNNING
        assert state.wish(ONE, approval()).since == targets.wish(ONE, approval()).since
    targets.set(ONE, approval(), Target.RUNNING)
    assert wanted(targets) is wanted(reopened(path)) is Target.RUNNING


def test_what_a_user_wants_holds_for_what_runs_now(targets, path):
    targets.set(ONE, approval(), Target.STOPPED)
    for now in (approval(2), approval(1, V2)):
        assert wanted(targets, ONE, now) is Target.RUNNING
    targets.set(ONE, approval(2), Target.REMOVED)
    assert wanted(reopened(path), ONE, approval(2)) is Target.REMOVED


def test_a_package_that_comes_again_revives_what_was_removed_with_it(targets, path):
    targets.set(ONE, approval(), Target.REMOVED)
    targets.set(TWO, approval(), Target.STOPPED)
    targets.set(ONE, approval(1, V2, "other"), Target.REMOVED)
    targets.revive(V1)
    for state in (targets, reopened(path)):
        assert wanted(state) is Target.RUNNING
        assert wanted(state, TWO) is Target.STOPPED
        assert wanted(state, ONE, approval(1, V2, "other")) is Target.REMOVED


def test_a_channel_that_is_no_more_is_forgotten(targets, path):
    for channel in (ONE, TWO):
        targets.set(channel, approval(), Target.STOPPED)
    targets.forget(ONE)
    for state in (targets, reopened(path)):
        assert wanted(state) is Target.RUNNING
        assert wanted(state, TWO) is Target.STOPPED


def test_where_a_package_runs_is_known_after_a_restart(targets, path):
    there = Placement("auto", "docker", "an engine answers")
    targets.place(V1, there)
    targets.place(V2, there)
    assert targets.placement(V1) == reopened(path).placement(V1) == there
    assert targets.is_used("docker")
    targets.drop_placements(lambda one: one != V1)
    assert targets.placement(V2) == reopened(path).placement(V2) == Placement()
    targets.drop_placements(V1.__eq__)
    assert targets.placement(V1) == reopened(path).placement(V1) == Placement()


def test_packages_that_stay_are_known_after_a_restart(targets, path):
    for mspid in ("Org1MSP", "Org2MSP", "Org1MSP"):
        targets.keep(V1, mspid)
    targets.keep(V2, "Org1MSP")
    targets.keep_no_more(V2)
    kept = {V1: {"Org1MSP", "Org2MSP"}}
    assert targets.kept == reopened(path).kept == kept


def test_a_full_disk_can_pass(targets):
    targets._db.execute("PRAGMA max_page_count=1")  # no disk to fill

    def fill() -> None:
        for number in range(1, 1000):
            targets.set(ONE, approval(1, V1, f"{number}" * 500), Target.STOPPED)

    with pytest.raises(StorageError, match="full") as caught:
        fill()
    assert caught.value.retryable
    assert "free space" in (caught.value.hint or "")


def test_what_cannot_be_written_is_not_said(targets):
    targets._db.execute("PRAGMA query_only=ON")
    with pytest.raises(StorageError):
        targets.set(ONE, approval(), Target.STOPPED)
    assert wanted(targets) is Target.RUNNING
    with pytest.raises(StorageError):
        targets.keep(V1, ONE)
    assert not targets.kept


def test_a_damaged_file_is_named(path):
    path.write_bytes(b"this is not a database, and it is long enough to see" * 10)
    with pytest.raises(StorageError, match=r"desired\.db") as caught:
        TargetState(path)
    assert caught.value.path == str(path)


def test_a_file_that_cannot_be_made_is_named(tmp_path):
    with pytest.raises(StorageError):
        TargetState(tmp_path / "no" / "such" / "desired.db")


def test_a_file_of_before_the_first_release_is_refused(path):
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE desired (name TEXT PRIMARY KEY) STRICT")
    db.close()
    with pytest.raises(StorageError, match="schema version 0, expected 2"):
        TargetState(path)


def test_changes_from_many_threads_at_once_all_count(targets, path):
    names = [f"cc{number}" for number in range(8)]
    over = threading.Event()

    def change(name: str) -> None:
        for sequence in (1, 2):
            targets.set(ONE, approval(sequence, V1, name), Target.STOPPED)
            targets.place(Ccid(name), Placement(given="docker"))
        targets.keep(Ccid(name), ONE)

    def look() -> int:
        looks = 0
        while not over.is_set():
            targets.is_used("process")
            wanted(targets)
            looks += 1
        return looks

    with ThreadPoolExecutor(10) as pool:
        readers = [pool.submit(look) for _ in range(2)]
        list(pool.map(change, names))
        over.set()
        assert all(reader.result() for reader in readers)
    for state in (targets, reopened(path)):
        assert state.kept.keys() == set(names)
        for name in names:
            assert wanted(state, ONE, approval(2, V1, name)) is Target.STOPPED
            assert state.placement(Ccid(name)).given == "docker"


def test_a_file_of_another_version_is_refused(path):
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version=1")
    db.close()
    with pytest.raises(StorageError, match="schema version 1, expected 2") as caught:
        TargetState(path)
    assert "runs again" in str(caught.value.hint)
