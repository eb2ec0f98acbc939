"""Many callers and listeners while the contract is upgraded and killed.

One kill and one upgrade in the suite; `make soak` does it for ten minutes.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from typing import TYPE_CHECKING

import psutil
import pytest

from support.clients.driver import driver
from support.clients.network import SCENARIOS, Network, network
from support.nodes.node import eventually, is_there

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.clients.driver import Driver

SECONDS = float(os.environ.get("CHAINDOCK_SOAK_S", "0"))  # noqa: TID251  # see Makefile
pytestmark = [
    pytest.mark.slow,
    pytest.mark.nodejs,
    pytest.mark.network,
    pytest.mark.timeout(SECONDS + 300),
]
CALLERS, LISTENERS = 64, 100
CHANGE_S = 5.0 if SECONDS else 2.0
"""Between a kill and an upgrade, and so on."""
ALLOWED = (
    "chaincode stream terminated",
    "failed to execute transaction",
    "was stopped",
)
"""What a call that was in a contract that ended may be told, beside its code.

One that was endorsed before an upgrade and ordered after it is a conflict: each
transaction reads the definition of its contract.
"""
ABORTED, MVCC_READ_CONFLICT = 10, 11
GROWTH = 1.15
"""Memory at the end, beside that after the first third: caches fill, nothing leaks."""


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Network]:
    with network(tmp_path) as net:
        yield net


def version(folder: Path, number: int) -> Path:
    """Return a copy of the contract that is another package."""
    made = folder / f"v{number}"
    skipped = shutil.ignore_patterns("node_modules")
    shutil.copytree(SCENARIOS, made, ignore=skipped)
    with (made / "index.js").open("a") as file:
        file.write(f"// version {number}\n")
    return made


class Disturber:
    """Upgrades and kills the contract by turns."""

    def __init__(self, net: Network, folder: Path) -> None:
        self._net, self._folder = net, folder
        self.upgrades, self.kills = 0, 0
        self.memory: list[int] = []

    async def run(self) -> None:
        until = time.monotonic() + SECONDS
        while time.monotonic() < until or not (self.kills and self.upgrades):
            await asyncio.sleep(CHANGE_S)
            await asyncio.to_thread(self._disturb)
            pid = self._net.node.status["pid"]
            self.memory.append(psutil.Process(pid).memory_info().rss)

    def _disturb(self) -> None:
        node = self._net.node
        if self.upgrades < self.kills:
            self.upgrades += 1
            source = version(self._folder, self.upgrades)
            node.cli("deploy", source, "--name", "basic")
            return
        place = eventually(lambda: node.where("basic"), "the contract runs")
        psutil.Process(int(place)).kill()
        eventually(lambda: not is_there(int(place)), "the contract is gone")
        self.kills += 1


async def test_no_call_and_no_event_is_lost(net: Network, tmp_path: Path):
    net.node.cli("deploy", version(tmp_path, 0), "--name", "basic")
    with driver("node") as callers, driver("node") as listeners:
        who = net.connect(callers)
        net.connect(listeners)
        fields = {"name": "all", "contract": "basic", "count": LISTENERS, "start": 0}
        listeners.ask("watch", who=who, **fields)
        disturber = Disturber(net, tmp_path)
        load = {"verb": "submitTransaction", "fn": "note", "prefix": "n", "keep": True}
        sent = callers.send(
            "load", who=who, contract="basic", callers=CALLERS, seconds=3600, **load
        )
        await disturber.run()
        callers.ask("halt")
        async with asyncio.timeout(120):
            done = await asyncio.wrap_future(sent)
        answered = done["kept"]
        assert done["calls"] == len(answered) + sum(done["faults"].values())
        assert len(answered) > done["calls"] / 2
        for fault in done["faults"]:
            kind, code, *_ = fault.split(" | ")
            if (kind, int(code)) != ("CommitError", MVCC_READ_CONFLICT):
                assert (kind, int(code)) == ("EndorseError", ABORTED), fault
                assert any(words in fault for words in ALLOWED), fault
        seen = _all_told(listeners, len(answered))
        assert len(set(seen)) == len(seen)
        assert set(seen) == set(answered)
        _is_flat(disturber.memory)


def _all_told(listeners: Driver, count: int) -> list[str]:
    """Wait until each listener has been told `count` events; return them."""

    def complete() -> bool:
        found = listeners.ask("watched", name="all")
        assert found["ends"] == []
        return set(found["counts"]) == {count}

    eventually(complete, "each listener is told each event", 60)
    found = listeners.ask("watched", name="all", close=True)
    assert found["differ"] == 0
    seen: list[str] = found["seen"]
    return seen


def _is_flat(memory: list[int]) -> None:
    third = len(memory) // 3
    if third >= 3:
        assert memory[-1] < memory[third] * GROWTH, memory
