"""Work on much JSON, done by processes of their own.

C takes up to 0.2 s to parse and write 1 MiB of JSON, and keeps the interpreter's lock: the
event loop would wait, whichever thread did that.
Source: docs/adr/0010-ranges-in-steps.md
"""

from __future__ import annotations

import atexit
import queue
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, Final, TypeVar, cast

T = TypeVar("T")
LARGE: Final = 32 * 1024
"""Bytes or characters of a document above which it is large; as many take up to 10 ms."""
PROCESSES: Final = 3
"""One for writes, and one for each thread of queries; started when they are needed."""


class _Process:
    """Calls functions of this package; it ends when the node does."""

    def __init__(self) -> None:
        self.pipe, there = Pipe()
        with there:
            self._program = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, str(there.fileno())],
                pass_fds=[there.fileno()],
                start_new_session=True,  # ^C at a terminal is for the node alone
            )

    def end(self) -> None:
        self.pipe.close()
        self._program.kill()
        self._program.wait()


_idle: Final = queue.LifoQueue[_Process | None]()
for _ in range(PROCESSES):
    _idle.put(None)


def apart(function: Callable[..., T], *args: Any) -> T:
    """Return `function(*args)`, which another process computes; for threads. All is pickled."""
    process = _idle.get()
    try:
        process = process or _Process()
        process.pipe.send((function, args))
        result, error = process.pipe.recv()
    except BaseException as broken:  # its answer may be there still
        if process is not None:
            process.end()
        process = None
        if not isinstance(broken, (OSError, EOFError)):  # somebody has ended it
            raise
        result, error = function(*args), None
    finally:
        _idle.put(process)
    if error is not None:
        raise error
    return cast("T", result)


def large_apart(function: Callable[..., T], at: int) -> Callable[..., T]:
    """Return `function`, done apart if its argument number `at` is a large document."""

    def chosen(*args: Any) -> T:
        large = args[at] is not None and len(args[at]) > LARGE
        return apart(function, *args) if large else function(*args)

    return chosen


@atexit.register
def _end() -> None:
    while not _idle.empty():
        if (process := _idle.get()) is not None:
            process.end()


def _serve(end: Connection) -> None:
    while True:
        function, args = end.recv()
        try:
            end.send((function(*args), None))
        except Exception as error:  # noqa: BLE001  # the node raises it
            end.send((None, error))


if __name__ == "__main__":
    with suppress(EOFError, OSError):  # the node has ended
        _serve(Connection(int(sys.argv[1])))
