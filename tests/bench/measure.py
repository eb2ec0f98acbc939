"""How times are taken, the same way in every benchmark."""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    Side = Callable[[], Awaitable[float]]


async def in_turns(
    rounds: int, *sides: Side, pick: Callable[[list[float]], float] = statistics.median
) -> list[float]:
    """Return the median of each side, or what `pick` takes of its values.

    They are measured in turns, the order turned round each time, so that whatever else
    the machine does meets all of them.
    """
    found: list[list[float]] = [[] for _ in sides]
    order = list(enumerate(sides))
    for _ in range(rounds):
        for number, side in order:
            found[number].append(await side())
        order.reverse()
    return [pick(values) for values in found]


class Clock:
    """Time on the wall, and CPU time of all threads of this process."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    @property
    def wall_s(self) -> float:
        return time.perf_counter() - self._wall

    @property
    def cpu_s(self) -> float:
        return time.process_time() - self._cpu


def kept() -> Path:
    """Return a directory that stays between runs: `$XDG_CACHE_HOME/chaindock-test`."""
    home = os.environ.get("XDG_CACHE_HOME")  # noqa: TID251  # tests have no config
    cache = Path(home) if home else Path.home() / ".cache"
    folder = cache / "chaindock-test" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Give a directory on a real disk: the system's own may be in memory."""
    with tempfile.TemporaryDirectory(dir=kept(), prefix="run-") as folder:
        yield Path(folder)
