"""A contract in a sandbox that tries to outlive its run, or not to be counted."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from chaindock.container.contracts import RunSettings
from chaindock.processes import sandbox, table
from chaindock.processes.sandbox import find_bwrap
from chaindock.processes.table import usage_of
from support.eventually import eventually
from support.need import need
from support.nodes.process_backend import ProcessBackend, need_bwrap, started

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture(autouse=True)
def _needs_bwrap() -> None:
    need_bwrap()


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[ProcessBackend]:
    async with ProcessBackend(tmp_path, sandbox="require") as backend:
        yield backend


TRACE = """\
import ctypes, os, subprocess, time
libc = ctypes.CDLL(None)
libc.ptrace.argtypes = [ctypes.c_long] * 2 + [ctypes.c_void_p] * 2
ATTACH, GETREGS, SETREGS, STEP, DETACH, WALL = 16, 12, 13, 9, 17, 0x40000000
NAMES = "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags"
class Registers(ctypes.Structure):
    _fields_ = [(n, ctypes.c_ulonglong) for n in (NAMES + " rsp ss a b c d e f").split()]
def call(number, first=0, how=STEP):
    one = Registers.from_buffer_copy(before)
    one.rip, one.orig_rax = before.rip - 2, 2**64 - 1
    if how == STEP:
        one.rax, one.rdi, one.rsi = number, first, 0
    else:
        one.rax = number
    libc.ptrace(SETREGS, 1, None, ctypes.addressof(one))
    libc.ptrace(how, 1, None, None)
    if how == STEP:
        os.waitpid(1, WALL)
if libc.ptrace(ATTACH, 1, None, None) == 0:
    os.waitpid(1, WALL)
    before = Registers()
    libc.ptrace(GETREGS, 1, None, ctypes.addressof(before))
    call(157, 1)  # prctl(PR_SET_PDEATHSIG, 0)
    call(112)  # setsid
    about = open("/proc/1/stat").read().rpartition(")")[2].split()
    begin, end = int(about[47]), int(about[48])  # of its environment, with our markers
    with open("/proc/1/mem", "r+b", 0) as memory:
        memory.seek(begin)
        memory.write(bytes(end - begin))
    call(before.orig_rax, how=DETACH)
    print(os.getsid(1) == 1, flush=True)
else:
    print("refused", flush=True)
null = subprocess.DEVNULL
words = ["/usr/bin/env", "-i", "/usr/bin/sleep", "62"]
subprocess.Popen(words, start_new_session=True, stdin=null, stdout=null, stderr=null)
time.sleep(60)
"""


async def test_to_trace_the_process_1_that_it_sees_frees_nothing(
    backend: ProcessBackend,
):
    if platform.machine() != "x86_64":
        pytest.skip("the registers are those of x86_64")
    python = os.path.realpath(sys.executable)
    async with backend.within():
        instance, attempt = await started(
            backend, f"exec {python} -I - <<'END'\n{TRACE}END"
        )
        await attempt.until(lambda: bool(attempt.lines))
        if attempt.of("stdout") == ["refused"]:
            pytest.skip("this machine allows no tracing of an ancestor")
        assert attempt.lines == [("stdout", "True")]
        pid = int(instance.describe()["pid"])

        def left() -> bool:
            found = psutil.process_iter(["cmdline"])
            return any(one.info["cmdline"] == words for one in found)

        words = ["/usr/bin/sleep", "62"]
        await eventually(left)
        assert usage_of([pid])[pid].processes >= 4
        await instance.stop(0)
        assert not left()


async def test_what_escapes_its_session_counts_for_memory(backend: ProcessBackend):
    need("perl")
    eat = "perl -e '$x = \"x\" x (96 << 20); sleep 60'"
    text = f"setsid setsid {eat} &\nsleep 60"
    async with backend.within():
        limit = RunSettings(memory_bytes=64 << 20)
        instance, _ = await started(backend, text, limit)
        assert (await instance.wait()).oom


async def test_it_shares_a_pid_namespace_with_nothing_that_ends_it(
    backend: ProcessBackend,
):
    """It may trace process 1 beside it; what ends that one lies outside, out of reach."""
    async with backend.within():
        instance, attempt = await started(backend, "echo up; exec sleep 60")
        await attempt.until(lambda: bool(attempt.lines))
        line = [psutil.Process(int(instance.describe()["pid"]))]
        while below := line[-1].children():
            line += below
        of = [Path(f"/proc/{one.pid}/ns/pid").readlink() for one in line]
        seen = [one for one in of if one == of[-1]]
        await instance.stop(0)
    assert len(seen) == 2  # it and process 1
    assert len(set(of)) == 3
    assert of[0] == Path("/proc/self/ns/pid").readlink()


FLOOD = """\
import socket, sys, time
ends = []
try:
    while True:
        ends.append(socket.socketpair())
        socket.send_fds(ends[-1][0], [b"x"], [0] * 40)
except OSError as error:
    print(error.strerror, flush=True)
    time.sleep(60)
"""


async def test_descriptors_on_their_way_keep_no_other_contract_from_its_start(
    backend: ProcessBackend, tmp_path: Path
):
    """Finding 2 of issue 10: Linux counts them per user, against the sender's limit."""
    python, few = os.path.realpath(sys.executable), RunSettings(open_files=40)
    async with backend.within(), ProcessBackend(tmp_path / "b") as other:
        text = f"ulimit -n; exec {python} -I - <<'END'\n{FLOOD}END"
        instance, attempt = await started(backend, text, few)
        await attempt.until(lambda: len(attempt.lines) > 1)
        assert attempt.of("stdout") == ["40", "Too many references: cannot splice"]
        innocent, heard = await started(other, "echo up; exec sleep 60", few)
        await heard.until(lambda: bool(heard.lines))
        assert heard.lines == [("stdout", "up")]
        await innocent.stop(0)
        await instance.stop(0)


async def test_it_inherits_no_file_of_this_machine(
    backend: ProcessBackend, tmp_path: Path
):
    """Finding 9 of issue 10: what is inherited can be opened again, for writing."""
    text = "for f in /proc/$$/fd/*; do readlink $f; done; echo end; exec sleep 60"
    async with backend.within():
        instance, attempt = await started(backend, text)
        await attempt.until(lambda: ("stdout", "end") in attempt.lines)
        found = {one for one in attempt.of("stdout") if "pipe:" not in one}
        assert {one for one in found if "main.sh" not in one} == {"/dev/null", "end"}
        (lock,) = tmp_path.glob("*/cache/locks/*")
        with lock.open() as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        await instance.stop(0)
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


FILL = """\
import os
most = 0
for name in (f"{os.environ['HOME']}/..", os.environ["TMPDIR"], "/tmp", "/dev/shm"):
    kept = []
    try:
        while len(kept) < 64:
            kept.append(os.open(name, os.O_TMPFILE | os.O_RDWR))
            os.posix_fallocate(kept[-1], 0, 1 << 20)
    except OSError as error:
        print(error.strerror, flush=True)
    most = max(most, len(kept))
    for one in kept:
        os.close(one)
print(most, flush=True)
os.chmod(f"{os.environ['HOME']}/..", 0o777)
os.close(os.open(f"{os.environ['HOME']}/../left", os.O_CREAT, 0o4755))
"""


async def test_it_fills_no_disk_and_leaves_no_file(
    backend: ProcessBackend, tmp_path: Path
):
    """Finding 3 of issue 10: files without a name, faster than anybody looks."""
    python = os.path.realpath(sys.executable)
    async with backend.within():
        text = f"{python} -I - <<'END'\n{FILL}END\necho end; exec sleep 60"
        instance, attempt = await started(
            backend, text, RunSettings(tmp_bytes=(8 << 20) + 1)
        )
        await attempt.until(lambda: ("stdout", "end") in attempt.lines)
        assert attempt.of("stderr") == []
        assert attempt.of("stdout") == ["No space left on device"] * 4 + ["9", "end"]
        (private,) = tmp_path.glob("*/process/runs/*/*/home/..")
        assert private.stat().st_mode & 0o777 == 0o700
        assert not (private / "left").exists()
        await instance.stop(0)


async def test_its_files_count_for_memory(backend: ProcessBackend):
    """Finding 3 of issue 10: its directory lies in memory."""
    async with backend.within():
        text = "head -c 100663296 /dev/zero > /tmp/a; sleep 60"
        limit = RunSettings(memory_bytes=64 << 20)
        instance, _ = await started(backend, text, limit)
        assert (await instance.wait()).oom


async def test_too_many_files_end_it(
    backend: ProcessBackend, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(table, "_MOST_FILES", 50)
    async with backend.within():
        text = "i=0; while [ $i -lt 60 ]; do :>/tmp/$i; i=$((i+1)); done; sleep 60"
        instance, _ = await started(backend, text)
        assert "or 50 files" in (await instance.wait()).reason


async def test_an_older_bubblewrap_bounds_its_directory_by_watching(
    backend: ProcessBackend, monkeypatch: pytest.MonkeyPatch
):
    words = tuple(one for one in find_bwrap("auto")[0] if one != "--disable-userns")
    monkeypatch.setattr(sandbox, "_find_bwrap", lambda: (words, ""))
    async with backend.within():
        text = "head -c 8388608 /dev/zero > /tmp/a; echo $?; sleep 60"
        limit = RunSettings(tmp_bytes=4 << 20)
        instance, attempt = await started(backend, text, limit)
        assert "exceeded 4194304 bytes" in (await instance.wait()).reason
        assert attempt.lines == [("stdout", "0")]


MAP = """\
import mmap, time
area = mmap.mmap(-1, 40 << 20)
for at in range(0, 40 << 20, 4096):
    area[at] = 1
time.sleep(60)
"""


async def test_shared_memory_of_its_own_counts_for_each_process(
    backend: ProcessBackend,
):
    """Finding 10 of issue 10: processes that map it apart do not share it."""
    python = os.path.realpath(sys.executable)
    one = f"{python} -I - <<'END' &\n{MAP}END\n"
    async with backend.within():
        limit = RunSettings(memory_bytes=96 << 20)
        instance, _ = await started(backend, f"{one * 3}wait", limit)
        assert (await instance.wait()).oom


THREADS = """\
import threading
threading.stack_size(32768)
for _ in range(60):
    threading.Thread(target=threading.Event().wait, args=(60,)).start()
"""


async def test_too_many_threads_end_it(
    backend: ProcessBackend, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(table, "MOST_THREADS", 50)
    python = os.path.realpath(sys.executable)
    async with backend.within():
        text = f"exec {python} -I - <<'END'\n{THREADS}END"
        instance, _ = await started(backend, text)
        assert "50 threads" in (await instance.wait()).reason


async def test_sessions_that_it_makes_get_what_others_leave_of_processors(
    backend: ProcessBackend,
):
    """Finding 8 of issue 10: Linux gives each session an equal share."""
    if not Path("/proc/self/autogroup").exists():
        pytest.skip("this system does not share processors out among sessions")
    async with backend.within():
        text = "setsid sleep 63 &\nexec sleep 60"
        instance, _ = await started(backend, text)
        leader = psutil.Process(int(instance.describe()["pid"]))

        def share(of: int) -> str:
            return Path(f"/proc/{of}/autogroup").read_text().split("nice ")[1].strip()

        def others() -> list[str]:
            found = [one.pid for one in leader.children(recursive=True)]
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):
                return [share(one) for one in found if os.getsid(one) != leader.pid]
            return []  # one has ended meanwhile

        await eventually(lambda: others() == ["19"])
        assert share(leader.pid) == "0"
        await instance.stop(0)
