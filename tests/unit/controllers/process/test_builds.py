"""Builds on disk: whole or absent, trusted or rebuilt, the newest kept."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from chaindock.controllers.process import builds as module
from chaindock.controllers.process.builds import Build, Builds
from chaindock.errors import StartFailed
from chaindock.platforms.base import Connection, LaunchCommand

if TYPE_CHECKING:
    from pathlib import Path

LAUNCH = LaunchCommand(
    argv=("{output}/cc", "-peer.address={peer}"),
    cwd="{output}",
    connection=Connection.CALLS_BACK,
    env={"A": "b"},
    concurrency=1,
)


@pytest.fixture
def builds(tmp_path: Path) -> Builds:
    builds = Builds(tmp_path, "node1")
    builds.prepare()
    return builds


def place(builds: Builds, key: str, text: str = "x") -> Build:
    scratch = builds.scratch()
    (scratch / "output").mkdir(parents=True)
    (scratch / "output" / "cc").write_text(text)
    build = Build(key, scratch / "output", LAUNCH, "golang")
    return builds.place(scratch, build)


def used(builds: Builds, label: str, name: str, when: int) -> None:
    place(builds, f"key-{name}")
    builds.use(label, f"key-{name}", "owner")
    os.utime(builds._labels / label / f"key-{name}.json", (when, when))


def test_a_placed_build_is_found_with_its_launch(builds: Builds):
    placed = place(builds, "k")
    assert builds.find("k") == placed
    assert placed.launch == LAUNCH
    assert (placed.output / "cc").read_text() == "x"


def test_a_build_that_was_there_first_is_kept(builds: Builds):
    place(builds, "k", "first")
    assert (place(builds, "k", "second").output / "cc").read_text() == "first"


def test_half_a_build_is_replaced(builds: Builds, tmp_path: Path):
    (tmp_path / "builds" / "k" / "output").mkdir(parents=True)
    assert builds.find("k") is None
    assert (place(builds, "k").output / "cc").read_text() == "x"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"launch": {}}', '{"launch": 1}'])
def test_a_damaged_launch_file_is_as_none(builds: Builds, tmp_path: Path, text: str):
    place(builds, "k")
    (tmp_path / "builds" / "k" / "launch.json").write_text(text)
    assert builds.find("k") is None


def test_after_a_power_failure_only_what_was_flushed_is_reused(
    builds: Builds, monkeypatch: pytest.MonkeyPatch
):
    place(builds, "flushed")
    place(builds, "not flushed")
    builds.seal("flushed")
    monkeypatch.setattr(module, "boot_id", lambda: "next start")
    assert builds.find("flushed") is not None
    assert builds.find("not flushed") is None


def test_boot_id_is_stable():
    assert module.boot_id() == module.boot_id()


def test_the_newest_of_each_label_stay(builds: Builds):
    for n in range(4):
        used(builds, "a", f"a{n}", when=n)
    used(builds, "b", "b0", when=0)
    assert len(builds.prune("a", keep=2)) == 2
    left = [key for key in ("a0", "a1", "a2", "a3", "b0") if builds.find(f"key-{key}")]
    assert left == ["a2", "a3", "b0"]


def test_the_build_used_last_stays(builds: Builds):
    for n in range(3):
        used(builds, "a", f"a{n}", when=n)
    builds.use("a", "key-a0", "owner")
    builds.prune("a", keep=1)
    assert builds.find("key-a0")
    assert builds.find("key-a2") is None


def test_a_build_in_use_stays_also_for_another_node(builds: Builds, tmp_path: Path):
    for n in range(3):
        used(builds, "a", f"a{n}", when=n)
    other = Builds(tmp_path, "node2")
    with builds.claim("key-a1") as lock:
        sleeper = subprocess.Popen(["/bin/sleep", "60"], pass_fds=(lock,))
    try:
        other.prune("a", keep=1)
        assert builds.find("key-a0") is None
        assert builds.find("key-a1")
    finally:
        sleeper.kill()
        sleeper.wait()
    other.prune("a", keep=1)
    assert builds.find("key-a1") is None
    assert builds.find("key-a2")


def test_what_inherits_the_lock_of_a_build_cannot_write_to_it(builds: Builds):
    with builds.claim("k") as lock, pytest.raises(OSError, match="Bad file"):
        os.pwrite(lock, b"x", 0)


def test_a_lock_that_cannot_be_opened_is_said_with_its_path(
    builds: Builds, monkeypatch: pytest.MonkeyPatch
):
    def refused(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    used(builds, "a", "a0", when=0)
    monkeypatch.setattr(os, "open", refused)
    with (
        pytest.raises(StartFailed, match="lock of build 'k'") as caught,
        builds.claim("k"),
    ):
        pass
    assert str(builds._locks / "k") in (caught.value.hint or "")
    assert builds.release("a", "owner") == []


def test_a_build_that_two_labels_share_stays_for_the_other(builds: Builds):
    used(builds, "a", "s", when=0)
    builds.use("b", "key-s", "owner")
    used(builds, "a", "s2", when=1)
    assert builds.prune("a", keep=1) == []
    assert builds.find("key-s")


def test_a_build_in_use_is_not_forgotten_when_it_should_be_removed(builds: Builds):
    used(builds, "a", "a0", when=0)
    with builds.claim("key-a0"):
        assert builds.release("a", "owner") == []
    assert builds.find("key-a0")
    (trash,) = builds.release("a", "owner")
    assert (trash / "output").is_dir()
    assert builds.find("key-a0") is None
    assert builds.release("a", "owner") == []


def test_a_build_that_two_chaincodes_have_goes_with_the_last(builds: Builds):
    used(builds, "a", "a0", when=0)
    builds.use("a", "key-a0", "other")
    assert builds.release("a", "owner") == []
    assert builds.find("key-a0")
    assert len(builds.release("a", "other")) == 1


def test_only_the_files_of_the_build_are_flushed(
    builds: Builds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Issue 9, 15: a build does not make the whole machine write its caches."""
    place(builds, "k")
    folder = tmp_path / "builds" / "k"
    (folder / "output" / "fifo").parent.mkdir(exist_ok=True)
    os.mkfifo(folder / "output" / "fifo")
    (folder / "output" / "link").symlink_to("/nowhere")
    (folder / "output" / "secret").touch(mode=0)
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: flushed.append(os.fstat(fd).st_ino))
    builds.seal("k")
    for path in (folder, folder / "output", folder / "output" / "cc"):
        assert path.stat().st_ino in flushed
    assert (folder / "sealed").exists()


def test_reap_removes_half_made_builds_of_this_node_only(
    builds: Builds, tmp_path: Path
):
    mine, other = builds.scratch(), Builds(tmp_path, "node2").scratch()
    (mine / "input").mkdir(parents=True)
    (mine / "input").chmod(0)
    other.mkdir()
    builds.reap()
    assert not mine.exists()
    assert other.exists()


def test_a_very_long_label_has_an_index_too(builds: Builds):
    builds.use("l" * 400, "k", "owner")
    place(builds, "k")
    assert len(builds.release("l" * 400, "owner")) == 1
