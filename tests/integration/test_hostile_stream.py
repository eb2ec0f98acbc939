"""Contracts and a neighbour that attack the node, beside a contract that works.

The node stays small and quick, the attacker is told why, and nothing has to be mended.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import subprocess
import sys
import time
import urllib.request
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import aiohttp
import psutil
import pytest
from fabric_protos.peer import chaincode_shim_pb2 as shim

from chaindock.operations.address import find_socket
from support.nodes.node import PROCESS, eventually, started
from support.shims.hostile import (
    ANSWERS,
    ATTACKS,
    LARGEST,
    ONE_AT_A_TIME,
    TOO_LARGE,
    UNASKED,
    UNREGISTERED,
)
from support.shims.peer import ShimPeer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.nodes.node import Node

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
Kind = shim.ChaincodeMessage
TESTS = Path(__file__).parents[1]
MIB = 1024 * 1024
HOSTILE = ("hostile", "another")
SLOWEST_S, MOST_MEMORY, MOST_LOG = 2.0, 256 * MIB, MIB
MOST_FOR_A_MESSAGE = 400 * MIB
"""For one message of 60 MiB, of which gRPC makes three copies or more."""
REFUSED = {
    "empty records": "more than 32768 records in one message",
    "empty keys": "more than 32769 keys in one message",
    "empty fields": "more than 16 fields in one message",
    "fields of a record": "more than 16 fields in one message",
    "long keys": "field 1 has 20971520 bytes, more than the limit of 1048576",
    "long channels": "no ledger context",
    "many reads": "(chaindock.memory.transaction) would hold",
    "many ranges": "(chaindock.memory.transaction) would hold",
    "short keys": "(chaindock.memory.transaction) would hold",
    LARGEST: "(chaindock.memory.transaction) would hold",
    "large values": "(chaindock.memory.transaction) would hold",
    "long error": "(62914564 bytes in all)",
    "broken error": "(62914560 bytes in all)",
    "long text": "field 2 has 62914560 bytes, more than the limit of 1048576",
}


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    settings = (
        "chaincode.mode=dev",
        "peer.chaincodeListenAddress=127.0.0.1:0",
        "operations.listenAddress=127.0.0.1:0",
    )
    flags = [word for one in settings for word in ("--set", one)]
    with started(PROCESS, tmp_path, *flags) as node:
        yield node


def peak(pid: int) -> int:
    """Return the most memory that a process has had resident since the last call."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return next(int(one.split()[1]) * 1024 for one in lines if one.startswith("VmHWM"))


async def serve(address: str, name: str) -> None:
    """Be a contract that writes and reads a key in each call."""
    async with await ShimPeer.dial(address) as peer:
        await peer.register(name, timestamp=ONE_AT_A_TIME)
        while (to := await peer.next()) is not None:
            await peer.ask(to, Kind.PUT_STATE, shim.PutState(key="k", value=b"v"))
            await peer.ask(to, Kind.GET_STATE, shim.GetState(key="k"))
            await peer.complete(to, b"done")


class Calls:
    """Calls of a node through its admin API; `slowest_s` is that of the innocent."""

    def __init__(self, node: Node, client: aiohttp.ClientSession) -> None:
        self._client = client
        self.slowest_s, self.answered = 0.0, 0
        self.during = ""
        self.peaks: dict[str, int] = {}
        self.spent: dict[str, list[float]] = {}
        self.slowest_during = ""

    async def query(self, name: str, *words: str) -> dict[str, Any]:
        args = [base64.b64encode(word.encode()).decode() for word in words]
        url = f"http://node/chaincodes/{name}/query"
        async with self._client.post(url, json={"args": args}) as response:
            begin, size = b"", 0
            async for chunk in response.content.iter_any():
                begin, size = begin + chunk if size < MIB else begin, size + len(chunk)
            if size > MIB:  # to decode it would hold up what measures
                return {"message": f"answered with {size} bytes"}
            found: dict[str, Any] = json.loads(begin)
            return found

    async def load(self) -> None:
        """Call the innocent one all the time."""
        while True:
            began, during = time.perf_counter(), self.during
            answer = await self.query("innocent", "f")
            spent_s = time.perf_counter() - began
            assert base64.b64decode(answer["payload"]) == b"done", (during, answer)
            if spent_s > self.slowest_s:
                self.slowest_s, self.slowest_during = spent_s, during
            self.answered += 1
            self.spent.setdefault(during, []).append(spent_s)
            await asyncio.sleep(0.005)


@contextlib.contextmanager
def neighbour(operations: str, chaincode: str) -> Iterator[None]:
    """Let a program of another user attack both ports."""
    words = [sys.executable, "-m", "support.neighbour", operations, chaincode]
    with subprocess.Popen(words, cwd=TESTS) as program:
        try:
            yield
            assert program.poll() is None
        finally:
            program.kill()


async def attacked(node: Node) -> tuple[Calls, dict[str, str]]:
    """Return the innocent calls, and what the attacker was told, by attack."""
    told: dict[str, str] = {}
    address = node.status["endpoints"]["chaincode"]
    connector = aiohttp.UnixConnector(str(find_socket(node.home)), limit=0)
    async with aiohttp.ClientSession(connector=connector) as client:
        calls = Calls(node, client)
        innocent = asyncio.ensure_future(serve(address, "innocent:1.0"))
        async with asyncio.timeout(10):
            while "payload" not in await calls.query("innocent", "f"):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        load = asyncio.ensure_future(calls.load())
        pid = node.status["pid"]
        for attack in (*ATTACKS, LARGEST, UNASKED, UNREGISTERED, *ANSWERS, TOO_LARGE):
            calls.during = attack
            answer = await calls.query("hostile", attack)
            payload = base64.b64decode(answer.get("payload", ""))
            told[attack] = payload.decode()[-200:] or str(answer["message"])[-200:]
            calls.peaks[attack] = peak(pid)
            if "would hold" in told[attack]:
                assert "would hold" in answer["refusals"][0]
        url = node.status["endpoints"]["operations"]
        with neighbour(url.removeprefix("http://"), address):
            for one, other in itertools.pairwise(ATTACKS):
                pair = ("hostile", one), ("another", other)
                calls.during = f"{one} and {other}"
                await asyncio.gather(*itertools.starmap(calls.query, pair))
                calls.peaks[calls.during] = peak(pid)
        for task in (load, innocent):
            assert not task.done(), task
            task.cancel()
        await asyncio.gather(load, innocent, return_exceptions=True)
    return calls, told


def test_a_hostile_contract_neither_stops_nor_fills_the_node(node: Node):
    for name in ("innocent", *HOSTILE):
        node.ask("deploy", "--dev", name)
    node.status["endpoints"] = node.ask("status")["endpoints"]
    address = node.status["endpoints"]["chaincode"]
    pid = node.status["pid"]
    programs = [
        subprocess.Popen(
            [sys.executable, "-m", "support.shims.hostile", address, f"{name}:1.0"],
            cwd=TESTS,
        )
        for name in HOSTILE
    ]
    try:
        for name in HOSTILE:
            eventually(partial(runs, node, name), f"{name} runs")
        idle = psutil.Process(pid).memory_info().rss
        peak(pid)
        calls, told = asyncio.run(attacked(node))
        grown = {one: (size - idle) // MIB for one, size in calls.peaks.items()}
        print(f"{calls.slowest_s=} {calls.slowest_during=} {calls.answered=}")
        for attack, spent in calls.spent.items():
            p50_ms, longest_ms = median(spent) * 1000, max(spent) * 1000
            print(f"{attack}: {p50_ms:.0f} ms, {longest_ms:.0f} ms at the longest")
        print(f"{grown=} MiB, {told=}")
        for attack, expected in REFUSED.items():
            assert expected in told[attack], (attack, told[attack])
        assert "chaincode stream terminated" in told[TOO_LARGE]
        for attack, size in grown.items():
            large = attack in {UNASKED, UNREGISTERED, *ANSWERS}
            most = MOST_FOR_A_MESSAGE if large else MOST_MEMORY
            assert size * MIB <= most, (attack, grown)
        assert calls.slowest_s <= SLOWEST_S, calls.slowest_during
        # Afterwards everything works without a hand.
        eventually(partial(runs, node, "hostile"), "it runs again")
        url = f"{node.status['endpoints']['operations']}/healthz"
        assert urllib.request.urlopen(url, timeout=10).status == 200
        assert (node.home / "node.log").stat().st_size <= MOST_LOG
    finally:
        for program in programs:
            program.kill()
            program.wait()


def runs(node: Node, name: str) -> bool:
    row = node.ps(name)
    return row is not None and row["state"] == "running"
