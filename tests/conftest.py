"""Rules for every test: signals, and how tests are shared out to workers (`-n auto`)."""

from __future__ import annotations

import compileall
import contextlib
import fcntl
import os
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from typing import Any

# A shell starts background jobs with these ignored, and every program that a test
# starts would inherit that: Ctrl-C would reach none of them.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

SOURCE = Path(__file__).parents[1] / "src"
LONG_FIRST = ("faults", "integration", "conformance", "unit", "meta")
"""Folders in the order in which they start: a long group that starts last ends last."""
SPLIT = ("test_random_sequences.py",)
"""Files whose tests share nothing: each test may run on another worker."""
ENGINES = re.compile(
    r"\[(?:.*-)?(process|docker with live-restore|docker|podman|rootless)"
)


def group(nodeid: str) -> str:
    """Return which tests share a worker: those of a file on one engine or back end.

    They share module fixtures, such as a running node.
    """
    file = nodeid.partition("::")[0]
    if file.endswith(SPLIT):
        return nodeid
    found = ENGINES.search(nodeid)
    return f"{file} {found[1]}" if found and "/unit/" not in file else file


def rank(item: pytest.Item) -> int:
    """Return when a test starts: what has to be alone waits for short tests only."""
    if item.get_closest_marker("alone") is not None:
        return len(LONG_FIRST)
    folders = item.nodeid.partition("::")[0].split("/")
    return next((n for n, one in enumerate(LONG_FIRST) if one in folders), 0)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(
    items: list[pytest.Item],
) -> Generator[None, None, None]:
    """Start with the long tests; within a folder the order stays random."""
    yield
    items.sort(key=rank)


def pytest_configure(config: pytest.Config) -> None:
    """Compile the program once, also where Python writes no bytecode by itself.

    Tests start it thousands of times, and compiling is a quarter of a node's start.
    """
    if not hasattr(config, "workerinput"):
        compileall.compile_dir(SOURCE, quiet=1)


# --- workers ------------------------------------------------------------------------


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return the number of workers of `-n auto`: most tests wait most of the time."""
    return (os.cpu_count() or 1) + 2


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each worker one group after another, in the order of the collection."""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
        def _split_scope(self, nodeid: str) -> str:
            return group(nodeid)

    config.option.loadscopereorder = False
    return Groups(config, log)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Run a test marked `alone` while no other worker runs a test."""
    if not hasattr(item.config, "workerinput"):
        return (yield)
    base: Path = item.config._tmp_path_factory.getbasetemp().parent  # type: ignore[attr-defined]
    with turn(base, alone=item.get_closest_marker("alone") is not None):
        return (yield)


@contextlib.contextmanager
def turn(folder: Path, *, alone: bool) -> Iterator[None]:
    """Hold a lock that all workers share, or that one has for itself.

    The gate keeps new tests from starting while one waits to be alone.
    """
    how = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
    with (folder / "gate.lock").open("w") as gate, (folder / "lock").open("w") as lock:
        fcntl.flock(gate, how)
        fcntl.flock(lock, how)
        if not alone:
            fcntl.flock(gate, fcntl.LOCK_UN)
        yield
