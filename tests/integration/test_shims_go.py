"""The real Go shim and contract API."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from chaindock.chaincode.options import StreamOptions
from chaindock.errors import StreamTerminated
from support.shims.builds import go_program
from support.shims.stream_node import CCID
from support.shims.suite import RichShimSuite
from support.shims.world import Program, ShimWorld

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [pytest.mark.golang, pytest.mark.network, pytest.mark.timeout(300)]


def dials(**env: str) -> Program:
    binary = go_program()
    return Program((str(binary), "-peer.address={peer}"), binary.parent, env=env)


def serves(**env: str) -> Program:
    binary = go_program()
    address = {"CHAINCODE_SERVER_ADDRESS": "{listen}"}
    return Program((str(binary),), binary.parent, dialled=True, env=env | address)


class TestGoDials(RichShimSuite):
    @pytest.fixture
    def program(self) -> Program:
        return dials()

    @pytest.mark.statement(19, by="go")
    async def test_fifty_megabytes_pass_both_ways(self, world: ShimWorld):
        size = 50 * 10**6
        assert await world.value("size", b"x" * size) == str(size).encode()
        assert len(await world.value("big", str(size))) == size

    @pytest.mark.statement(48, by="go")
    async def test_many_keys_are_read_at_once(self, world: ShimWorld):
        await world.value("fill", "150", commit=True)
        keys = [f"r{number:04}" for number in reversed(range(160))]
        values = await world.json("multi", *keys)
        assert values == [""] * 10 + [f"v{number}" for number in reversed(range(150))]

    @pytest.mark.statement(13, of="client", by="go")
    @pytest.mark.parametrize("part", ["\0", "\U0010ffff"])
    async def test_the_ends_of_unicode_are_in_no_composite_key(
        self, world: ShimWorld, part: str
    ):
        outcome = await world.call("putc", "owner", part)
        assert outcome.response.status == 500

    @pytest.mark.statement(50, by="go")
    async def test_a_write_batch_is_written(self, world: ShimWorld):
        await world.value("batch", "1203", commit=True)
        assert len(await world.json("range", "r", "s")) == 1203
        assert await world.value("get", "r1202") == b"v1202"

    async def test_a_panic_ends_its_calls_at_once(self, world: ShimWorld):
        await world.custodian.launch(CCID)
        async with asyncio.timeout(5):
            with pytest.raises(StreamTerminated):
                await world.call("panic", "oh no")
        assert await world.value("slow", "1") == b"slow"
        assert world.exit is not None
        assert world.exit.code == 2

    async def test_panics_in_calls_keep_no_good_call_waiting(self, world: ShimWorld):
        """A call that ends its chaincode is no failed launch: there is no back-off."""
        await world.custodian.launch(CCID)
        for _ in range(6):
            with pytest.raises(StreamTerminated):
                await world.call("panic", "oh no")
        async with asyncio.timeout(1):
            assert await world.value("slow", "1") == b"slow"


class TestGoServes(RichShimSuite):
    @pytest.fixture
    def program(self) -> Program:
        return serves()


class TestGoWithoutBatches:
    """An empty READY makes the shim fall back to single messages."""

    @pytest.mark.statement(4, by="go")
    async def test_single_messages_are_used(self, tmp_path: Path):
        plain = StreamOptions(
            use_write_batch=False,
            max_size_write_batch=0,
            use_get_multiple_keys=False,
            max_size_get_multiple_keys=0,
        )
        async with ShimWorld(dials(), tmp_path, plain) as world:
            await world.value("batch", "3", commit=True)
            values = await world.json("multi", "r0000", "r0002", "absent")
            assert values == ["v0", "v2", ""]


@pytest.mark.parametrize("start", [dials, serves])
@pytest.mark.statement(25, by="go")
async def test_contract_api(start: Callable[..., Program], tmp_path: Path):
    program = start(CONFORMANCE_API="contract")
    async with ShimWorld(program, tmp_path) as world:
        await world.value("Put", "k", "v", commit=True)
        assert await world.value("Get", "k") == b"v"
        assert await world.value("Whoami") == b"Org1MSP"
        response = (await world.call("Nothing")).response
        assert response.status == 500
        assert "Nothing not found" in response.message
