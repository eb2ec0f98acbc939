"""The real Python shim and contract API: dialled, one transaction at a time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from chaindock.chaincode.options import StreamOptions
from chaindock.errors import ExecuteTimeout
from support.shims.builds import python_environment
from support.shims.stream_node import CCID
from support.shims.suite import ShimSuite
from support.shims.world import Program, ShimWorld

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.network, pytest.mark.timeout(300)]


def serves(script: str) -> Program:
    folder = python_environment()
    python = str(folder / "env" / "bin" / "python")
    address = {"CHAINCODE_SERVER_ADDRESS": "{listen}"}
    return Program((python, script), folder, dialled=True, env=address)


class TestPythonServes(ShimSuite):
    calls_at_once = 40
    argument_bytes = 10**6  # the shim takes 4 MiB, and the argument travels twice

    @pytest.fixture
    def program(self) -> Program:
        return serves("plain.py")

    async def test_it_gets_one_transaction_at_a_time(self, world: ShimWorld):
        await world.custodian.launch(CCID)
        handler = world.registry.find_ready(CCID)
        assert handler is not None
        assert handler.calls.limiter.limit == 1


async def test_contract_api(tmp_path: Path):
    async with ShimWorld(serves("contract.py"), tmp_path) as world:
        await world.value("put", "k", "v", commit=True)
        assert await world.value("get", "k") == b"v"


async def test_no_call_of_hundreds_in_a_row_is_lost(tmp_path: Path):
    """The shim forgets a call that begins while its last write is not over."""
    async with ShimWorld(serves("plain.py"), tmp_path) as world:
        await world.custodian.launch(CCID)
        calls = (world.value("work", f"k{number}", "2") for number in range(400))
        assert len(set(await asyncio.gather(*calls))) == 400


async def test_a_call_after_a_timeout_waits_for_its_turn_and_is_answered(
    tmp_path: Path,
):
    """The shim still sleeps in the first; the same process serves the second."""
    async with ShimWorld(serves("plain.py"), tmp_path) as world:
        await world.custodian.launch(CCID)
        process = world.instance.process
        for number in range(3):
            with pytest.raises(ExecuteTimeout):
                await world.call("slow", "700", timeout_s=0.2)
            calls = (world.value("work", f"k{n}", "2") for n in range(5))
            assert len(await asyncio.gather(*calls)) == 5
            assert world.instance.process is process, number
        assert world.exit is None


async def test_a_call_that_never_ends_is_not_in_the_way_for_ever(tmp_path: Path):
    """Nobody can stop it in the shim, so the chaincode is started again."""
    options = StreamOptions(overrun_s=1.0)
    async with ShimWorld(serves("plain.py"), tmp_path, options) as world:
        await world.custodian.launch(CCID)
        process = world.instance.process
        with pytest.raises(ExecuteTimeout):
            await world.call("slow", "600000", timeout_s=0.2)
        assert await world.value("work", "k", "2") == b"k"
        assert world.instance.process is not process
        assert world.exit is not None
