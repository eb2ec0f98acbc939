"""Builds on disk: whole or absent, trusted or rebuilt, the newest kept."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from chaindock.controllers.process import builds as module
from chaindock.controllers.process.builds import Build, Builds, Entry
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
    build = Build(key, scratch / "output", LAUNCH, "golang", ("go",))
    return builds.place(scratch, build)


def used(builds: Builds, label: str, source: str, when: int) -> None:
    place(builds, f"key-{source}")
    builds.remember(label, source, Entry(f"key-{source}", (), ""))
    os.utime(builds._index_path(label, source), (when, when))


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
    monkeypatch.setattr(os, "sync", lambda: None)
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


def test_looking_up_counts_as_use(builds: Builds):
    for n in range(3):
        used(builds, "a", f"a{n}", when=n)
    assert builds.look_up("a", "a0") == Entry("key-a0", (), "")
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


def test_a_build_that_two_labels_share_stays_for_the_other(builds: Builds):
    used(builds, "a", "s", when=0)
    builds.remember("b", "s", Entry("key-s", (), ""))
    used(builds, "a", "s2", when=1)
    assert builds.prune("a", keep=1) == []
    assert builds.find("key-s")


def test_a_build_in_use_is_not_forgotten_when_it_should_be_removed(builds: Builds):
    used(builds, "a", "a0", when=0)
    with builds.claim("key-a0"):
        assert builds.remove("a", "a0") is None
    assert builds.find("key-a0")
    trash = builds.remove("a", "a0")
    assert trash is not None
    assert (trash / "output").is_dir()
    assert builds.find("key-a0") is None
    assert builds.look_up("a", "a0") is None


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
    builds.remember("l" * 400, "s", Entry("k", ("go",), "1.2"))
    assert builds.look_up("l" * 400, "s") == Entry("k", ("go",), "1.2")
