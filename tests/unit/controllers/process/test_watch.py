"""Limits of processes: those the system keeps, and those that watching keeps."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import psutil

from chaindock.aio import Tasks
from chaindock.container.contracts import Cause, RunSettings
from chaindock.processes import child, table
from chaindock.processes.table import size_of, usage_of
from support.doubles.backend import WatchedAttempt
from support.doubles.scripts import hang
from support.eventually import eventually
from support.need import need
from support.nodes.process_backend import ProcessBackend

if TYPE_CHECKING:
    import pytest

    from chaindock.container.contracts import Exit, Instance

MIB = 1024 * 1024
EAT = "exec perl -e 'my @x; for (1..40) { push @x, \"x\" x (16 << 20); sleep 1 if $_ == 8 }'"


class OutOfDescriptors:
    """psutil where no descriptor is free."""

    Error, STATUS_ZOMBIE = psutil.Error, psutil.STATUS_ZOMBIE

    @staticmethod
    def Process(_: int) -> psutil.Process:  # noqa: N802
        raise OSError(24, "Too many open files")


async def started(
    backend: ProcessBackend, text: str, settings: RunSettings
) -> tuple[Instance, WatchedAttempt]:
    instance, package = await backend.built(hang())
    folder = next(backend.root(backend.node_id).glob("cache/builds/[!.]*/output"))
    (folder / "main.sh").write_text(text)
    attempt = WatchedAttempt(package)
    await instance.start(replace(backend.peer, settings=settings), attempt)
    return instance, attempt


async def ended(backend: ProcessBackend, text: str, settings: RunSettings) -> Exit:
    async with backend.within():
        instance, _ = await started(backend, text, settings)
        return await instance.wait()


async def test_too_much_memory_is_told_as_that(backend: ProcessBackend):
    need("perl")
    end = await ended(backend, EAT, RunSettings(memory_bytes=48 * MIB))
    assert end.oom
    assert end.signal == 9
    assert str(48 * MIB) in end.reason


async def test_children_count_too(backend: ProcessBackend):
    need("perl")
    both = f"{EAT.removeprefix('exec ')} &\nsleep 60"
    end = await ended(backend, both, RunSettings(memory_bytes=48 * MIB))
    assert end.oom


async def test_no_limit_is_no_limit(backend: ProcessBackend):
    need("perl")
    text = "exec perl -e 'my $x = \"x\" x (96 << 20); sleep 1'"
    settings = RunSettings(memory_bytes=0, tmp_bytes=0)
    assert (await ended(backend, text, settings)).code == 0


async def test_too_many_files_end_it(tmp_path: Path):
    text = 'head -c 8388608 /dev/zero > "$TMPDIR/a"; cp "$TMPDIR/a" "$HOME/b"; sleep 60'
    async with ProcessBackend(tmp_path, sandbox="off") as backend:
        end = await ended(backend, text, RunSettings(tmp_bytes=4 * MIB))
    assert (end.oom, end.signal) == (False, 9)
    assert str(4 * MIB) in end.reason


async def test_a_stop_is_not_taken_for_a_limit(backend: ProcessBackend):
    async with backend.within():
        instance, _ = await started(backend, "exec sleep 60", RunSettings())
        await instance.stop(0)
        assert not (await instance.wait()).oom


async def test_variables_of_its_own_arrive(backend: ProcessBackend):
    settings = RunSettings(env={"TOKEN": "a b"})
    async with backend.within():
        instance, attempt = await started(backend, 'echo "$TOKEN"', settings)
        await instance.wait()
    assert [line for _, line in attempt.lines] == ["a b"]


async def test_what_a_process_cannot_have_is_said(backend: ProcessBackend):
    settings = RunSettings(cpus=1.0, network="shared", memory_bytes=64 * MIB)
    async with backend.within():
        instance, _ = await started(backend, "exec sleep 60", settings)
        told = instance.describe()
        await instance.stop(0)
    assert told["weaker"] == "a process takes no cpus, network"
    assert told["settings"] == "memory, cpus, network"
    assert "memory 64 MiB" in told["limits"]


async def test_the_system_keeps_file_size_and_core_files(backend: ProcessBackend):
    text = "ulimit -f; ulimit -Hf; ulimit -c; ulimit -Hc"
    async with backend.within():
        instance, attempt = await started(backend, text, RunSettings())
        await instance.wait()
    blocks = str(256 * MIB // 512)
    assert [line for _, line in attempt.lines] == [blocks, blocks, "0", "0"]


def test_memory_of_a_session_is_counted_once():
    mine = os.getsid(0)
    found = usage_of([mine, 2**22 + 1])
    assert found[mine].memory_bytes > MIB
    assert found[mine].processes > 0
    assert found[2**22 + 1] == table.Usage()


def test_sizes_are_those_on_disk_and_counting_ends_in_time(tmp_path: Path):
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "file").write_bytes(b"x" * 3 * MIB)
    (tmp_path / "link").symlink_to("/")
    assert 3 * MIB <= size_of(tmp_path, 100 * MIB) < 4 * MIB
    assert size_of(tmp_path, MIB) > MIB
    assert size_of(tmp_path / "nowhere", MIB) == 0


def test_a_directory_that_cannot_be_counted_is_above_its_limit(tmp_path: Path):
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(20):  # longer than a path may be
        os.mkdir("d" * 250, dir_fd=here)
        below = os.open("d" * 250, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    assert size_of(tmp_path, MIB) == MIB + 1


def test_a_file_that_goes_while_sizes_are_counted_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def scandir(folder: str) -> Any:
        gone = Mock(is_dir=lambda **_: False)
        gone.stat.side_effect = FileNotFoundError
        with scan(folder) as entries:
            return contextlib.nullcontext([gone, *entries])

    scan = os.scandir
    (tmp_path / "file").write_bytes(b"x" * MIB)
    monkeypatch.setattr(os, "scandir", scandir)
    assert size_of(tmp_path, 100 * MIB) >= MIB


async def test_without_a_free_descriptor_a_run_is_stopped(
    backend: ProcessBackend, monkeypatch: pytest.MonkeyPatch
):
    async with backend.within():
        instance, _ = await started(backend, "exec sleep 60", RunSettings())
        monkeypatch.setattr(child, "psutil", OutOfDescriptors)
        await instance.stop(1)
        assert (await instance.wait()).cause is Cause.STOPPED


async def test_limits_are_kept_after_a_time_without_a_free_descriptor(
    monkeypatch: pytest.MonkeyPatch,
):
    def usage(sessions: list[int]) -> dict[int, table.Usage]:
        asked.append(sessions)
        if len(asked) == 1:
            raise OSError(24, "Too many open files")
        return dict.fromkeys(sessions, table.Usage(2 * MIB, 1))

    asked: list[list[int]] = []
    run = Mock(running=True, pid=7, program=Mock(sandbox=None))
    run.kill_as.side_effect = lambda _: setattr(run, "running", False)
    monkeypatch.setattr(table, "usage_of", usage)
    monkeypatch.setattr(table, "_WATCH_S", 0.01)
    async with Tasks("test") as tasks:
        watch = table.LimitWatch(tasks)
        watch.add(run, table.Bounds(MIB, 0, Path()))
        await eventually(lambda: not run.running)
    assert len(asked) == 2
