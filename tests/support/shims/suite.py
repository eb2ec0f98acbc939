"""What every shim must be able to do; an integration test module per language joins."""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, Any

import pytest

from chaindock.errors import ExecuteTimeout, StreamTerminated
from chaindock.lifecycle.states import LaunchState
from support.shims.stream_node import CCID
from support.shims.world import ShimWorld

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from support.shims.world import Program

COUNTS = (0, 1, 99, 100, 101, 200, 201, 250)


class ShimSuite:
    """For every shim; `program` is a fixture of the joining class."""

    calls_at_once = 200
    argument_bytes = 3 * 10**6

    @pytest.fixture
    async def world(self, program: Program, tmp_path: Path) -> AsyncIterator[ShimWorld]:
        async with ShimWorld(program, tmp_path) as world:
            yield world

    @pytest.mark.statement(1, by="go node python")
    async def test_values_are_written_and_read(self, world: ShimWorld) -> None:
        await world.value("put", "k", "v1", commit=True)
        assert await world.value("get", "k") == b"v1"
        assert await world.value("get", "absent") == b""
        await world.value("del", "k", commit=True)
        assert await world.value("get", "k") == b""

    async def test_writes_that_are_not_committed_are_not_seen(
        self, world: ShimWorld
    ) -> None:
        await world.value("put", "k", "v1")
        assert await world.value("get", "k") == b""

    @pytest.mark.statement(63, by="go node python")
    async def test_ranges_of_every_size_are_complete(self, world: ShimWorld) -> None:
        await world.value("fill", "250", commit=True)
        for count in COUNTS:
            keys = await world.json("range", "r0000", f"r{count:04}")
            assert keys == [f"r{number:04}" for number in range(count)]
        assert len(await world.json("range", "r", "")) == 250

    @pytest.mark.statement(74, by="go node python")
    async def test_history_is_newest_first(self, world: ShimWorld) -> None:
        began = int(time.time()) - 10**9
        await world.value("put", "k", "v1", commit=True)
        await world.value("put", "k", "v2", commit=True)
        await world.value("del", "k", commit=True)
        changes = await world.json("history", "k")
        assert [(c["value"], c["deleted"]) for c in changes] == [
            ("", True),
            ("v2", False),
            ("v1", False),
        ]
        assert all(len(c["tx"]) == 64 and c["seconds"] > began for c in changes)

    async def test_long_histories_arrive_complete(self, world: ShimWorld) -> None:
        for number in range(101):
            await world.value("put", "k", f"v{number}", commit=True)
        assert len(await world.json("history", "k")) == 101

    @pytest.mark.parametrize("status", [200, 399, 404, 500])
    async def test_statuses_arrive(self, world: ShimWorld, status: int) -> None:
        response = (await world.call("status", str(status))).response
        assert (response.status, response.message) == (status, "as told")
        assert response.payload == b"p"

    async def test_failures_arrive_with_their_text(self, world: ShimWorld) -> None:
        response = (await world.call("fail", "no such car")).response
        assert (response.status, response.message) == (500, "no such car")

    async def test_the_creator_is_the_client(self, world: ShimWorld) -> None:
        assert await world.value("creator") == b"Org1MSP"

    async def test_init_is_an_invocation(self, world: ShimWorld) -> None:
        await world.value("put", "k", "v", is_init=True, commit=True)
        assert await world.value("get", "k") == b"v"

    @pytest.mark.statement(28, by="go node")
    async def test_results_are_not_mixed_up(self, world: ShimWorld) -> None:
        """Many calls at once on one stream, each with its own reads and writes."""
        count = self.calls_at_once
        payloads = await asyncio.gather(
            *(world.value("work", f"key{number}", "5") for number in range(count))
        )
        assert payloads == [b"key%d" % number for number in range(count)]
        if self.calls_at_once > 1:
            await asyncio.gather(
                *(
                    world.value("put", f"key{number}", f"value{number}", commit=True)
                    for number in range(count)
                )
            )
            for number in (0, 7, count - 1):
                value = await world.value("get", f"key{number}")
                assert value == b"value%d" % number

    @pytest.mark.statement(36, by="go node python")
    async def test_a_timeout_leaves_the_chaincode_usable(
        self, world: ShimWorld
    ) -> None:
        await world.custodian.launch(CCID)
        with pytest.raises(ExecuteTimeout):
            await world.call("slow", "600", timeout_s=0.1)
        assert await world.value("slow", "1") == b"slow"

    async def test_megabytes_pass_both_ways(self, world: ShimWorld) -> None:
        size = self.argument_bytes
        assert await world.value("size", b"x" * size) == str(size).encode()
        assert len(await world.value("big", "3000000")) == 3_000_000

    async def test_large_values_are_queried_in_bounded_messages(
        self, world: ShimWorld
    ) -> None:
        """The batch stays below the 4 MiB that some shims take."""
        for number in range(12):
            await world.value("put", f"big{number:02}", "x" * 500_000, commit=True)
        assert len(await world.json("range", "big", "bih")) == 12

    @pytest.mark.statement(22, by="go node python")
    async def test_a_killed_chaincode_is_launched_again(self, world: ShimWorld) -> None:
        await world.custodian.launch(CCID)
        call = asyncio.get_running_loop().create_task(world.call("slow", "20000"))
        await asyncio.sleep(0.1)
        process = world.instance.process
        assert process is not None
        os.killpg(process.pid, 9)
        async with asyncio.timeout(5):
            with pytest.raises(StreamTerminated):
                await call
        assert await world.value("slow", "1") == b"slow"
        assert world.exit is not None
        assert world.exit.signal == 9
        assert world.instance.process is not process

    async def test_stop_leaves_nothing(self, world: ShimWorld) -> None:
        await world.custodian.launch(CCID)
        process = world.instance.process
        await world.custodian.stop(CCID)
        assert process is not None
        assert process.returncode is not None
        record = world.custodian.find(CCID)
        assert record is not None
        assert record.state is LaunchState.DOWN
        assert world.registry.find(CCID) is None


class RichShimSuite(ShimSuite):
    """For shims with the whole protocol."""

    @pytest.mark.statement(68, by="go node")
    async def test_pages_follow_each_other(self, world: ShimWorld) -> None:
        await world.value("fill", "250", commit=True)
        found: list[str] = []
        sizes, bookmark = [], ""
        while True:
            page = await world.json("paged", "r", "s", "100", bookmark)
            found += page["keys"]
            sizes.append(page["count"])
            bookmark = page["bookmark"]
            if not bookmark:
                break
        assert sizes == [100, 100, 50]
        assert found == [f"r{number:04}" for number in range(250)]
        page = await world.json("paged", "r", "s", "250", "")
        assert (page["count"], len(page["keys"])) == (250, 250)

    async def test_a_page_of_nothing(self, world: ShimWorld) -> None:
        page: dict[str, Any] = await world.json("paged", "r", "s", "10", "")
        assert page == {"keys": [], "count": 0, "bookmark": ""}

    @pytest.mark.statement(73, by="go node")
    @pytest.mark.statement(11, 12, of="client", by="go node")
    async def test_composite_keys_are_kept_apart(self, world: ShimWorld) -> None:
        await world.value("put", "simple", "v", commit=True)
        await world.value("putc", "owner", "ann", "car1", commit=True)
        await world.value("putc", "owner", "bob", "car2", commit=True)
        assert await world.json("range", "", "") == ["simple"]
        assert await world.json("partial", "owner") == [
            ["ann", "car1"],
            ["bob", "car2"],
        ]
        await world.value("putc", "owner", "bobby", "car3", commit=True)
        assert await world.json("partial", "owner", "bob") == [["bob", "car2"]]

    @pytest.mark.statement(35, by="go node")
    @pytest.mark.statement(44, of="client", by="go node")
    async def test_events_arrive(self, world: ShimWorld) -> None:
        outcome = await world.call("event", "sold", "car1")
        assert outcome.event is not None
        assert (outcome.event.event_name, outcome.event.payload) == ("sold", b"car1")
        assert outcome.event.chaincode_id == "conformance"
        assert len(outcome.event.tx_id) == 64
        outcome = await world.call("event", "sold", "car1", "bought", "car2")
        assert outcome.event is not None
        assert (outcome.event.event_name, outcome.event.payload) == ("bought", b"car2")
        nameless = await world.call("event", "", "car1")
        assert nameless.response.status == 500

    @pytest.mark.statement(26, by="go node")
    async def test_transient_data_arrives(self, world: ShimWorld) -> None:
        value = await world.value("transient", "t", transient={"t": b"secret"})
        assert value == b"secret"

    async def test_the_text_of_an_error_reply_arrives(self, world: ShimWorld) -> None:
        text = (await world.value("ask", "coll")).decode()
        assert text.startswith("GET_STATE failed: transaction ID: ")
        assert text.endswith(": chaincode conformance has no collections")
