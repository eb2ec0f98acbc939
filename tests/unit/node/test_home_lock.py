"""Who may serve a home."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from chaindock.errors import NodeAlreadyRunning
from chaindock.node.home import Home

if TYPE_CHECKING:
    from pathlib import Path

HOLDS = "import sys, time; sys.stdin.read(1); time.sleep(0.3)"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.prepare()
    return home


def test_a_second_node_is_told_which_process_serves(home: Home):
    with home.locked(), pytest.raises(NodeAlreadyRunning) as found, home.locked():
        pass
    assert found.value.pid == str(os.getpid())


def test_what_a_killed_node_was_starting_holds_up_the_next_one_only_for_a_moment(
    home: Home,
):
    """A program that is being started has the lock of its parent until it runs."""
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    with (home.root / "node.lock").open("w") as lock:
        lock.write(dead)
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        program = [sys.executable, "-c", HOLDS]
        child = subprocess.Popen(
            program, stdin=subprocess.PIPE, pass_fds=[lock.fileno()]
        )
    assert child.stdin is not None
    child.stdin.close()
    try:
        with home.locked():
            pass
    finally:
        child.wait(10)
