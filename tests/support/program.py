"""The program `chaindock` as a process, for tests of what a user sees."""

import contextlib
import os
import pty
import subprocess
import sys
import termios
import time
from collections.abc import Callable


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "chaindock", *args]


def on_terminal(
    env: dict[str, str], *args: str, columns: int = 120, **more: str
) -> tuple[int, str]:
    """Run the program with a terminal; return its status and what the screen got."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, columns))
    with subprocess.Popen(
        command(*args),
        env=env | {"TERM": "xterm-256color"} | more,
        stdout=theirs,
        stderr=theirs,
    ) as program:
        os.close(theirs)
        screen = b""
        with contextlib.suppress(OSError):  # Linux ends a terminal with an error
            while data := os.read(ours, 4096):
                screen += data
        os.close(ours)
    return program.returncode, screen.decode()


def wait_for(condition: Callable[[], object], limit_s: float = 10) -> None:
    ends = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.02)
