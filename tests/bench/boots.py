"""Sixteen boots without us: what the processors of this machine gain side by side."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from bench.bench_launch import example_as_process
from bench.floors import BareListener, process_floor
from chaindock.lifecycle.custodian import processors

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from chaindock.controllers.process.instance import ProcessInstance

    _Boot = tuple[ProcessInstance, BareListener, Path]


class Boots:
    """Built chaincode that is started as a bare process, and ended once it has booted.

    Args:
        instances: one per boot.
        folder: for their private files.
    """

    def __init__(self, instances: Sequence[ProcessInstance], folder: Path) -> None:
        # Each has a listener of its own: a bare one does not know who registers.
        self._all: list[_Boot] = [
            (instance, BareListener(), folder / str(number))
            for number, instance in enumerate(instances)
        ]

    async def one_by_one(self) -> float:
        """Return the milliseconds of all boots, while no other goes on."""
        return sum([await process_floor(*boot) for boot in self._all])

    async def together(self) -> float:
        """Return how many ms all take when as many boot at once as processors are."""
        places = asyncio.Semaphore(processors())

        async def boot(one: _Boot) -> None:
            async with places:
                await process_floor(*one)

        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for one in self._all:
                group.create_task(boot(one))
        return (time.perf_counter() - began) * 1e3

    async def aclose(self) -> None:
        for _, listener, _ in self._all:
            await listener.aclose()


@asynccontextmanager
async def bare_boots(languages: Sequence[str], folder: Path) -> AsyncIterator[Boots]:
    """Build the example of each language once; give one boot for each entry."""
    built: dict[str, ProcessInstance] = {}
    async with AsyncExitStack() as stack:
        for language in dict.fromkeys(languages):
            place = folder / language
            place.mkdir(parents=True)
            example = example_as_process(language, place)
            _, built[language] = await stack.enter_async_context(example)
        boots = Boots([built[language] for language in languages], folder)
        stack.push_async_callback(boots.aclose)
        yield boots
