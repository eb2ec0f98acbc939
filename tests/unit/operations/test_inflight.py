"""Nobody is cut off without an answer when the server ends."""

import asyncio
import gc
import weakref
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from chaindock.errors import NodeStopping
from chaindock.node.admin import AdminServer
from chaindock.operations.address import find_socket
from chaindock.operations.serving import AdminOptions, Inflight
from support.doubles.fake_node import FakeNode


async def test_what_ends_in_time_is_answered() -> None:
    inflight, gate = Inflight(5.0), asyncio.Event()

    async def work() -> str:
        await gate.wait()
        return "done"

    running = asyncio.ensure_future(inflight.run(work()))
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(inflight.close())
    await asyncio.sleep(0)
    gate.set()
    assert await running == "done"
    await closing


async def test_what_takes_too_long_is_given_up_and_says_so() -> None:
    inflight, ended = Inflight(0.01), asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    running = asyncio.ensure_future(inflight.run(work()))
    await asyncio.sleep(0)
    await inflight.close()
    with pytest.raises(NodeStopping, match="the node is stopping"):
        await running
    assert ended.is_set()


async def test_an_error_is_freed_without_the_garbage_collector() -> None:
    class Fault(Exception):
        pass

    async def work() -> None:
        raise Fault

    kept = []
    gc.disable()
    try:
        try:
            await Inflight(1.0).run(work())
        except Fault as error:
            kept.append(weakref.ref(error))
        await asyncio.sleep(0)
        assert kept[0]() is None
    finally:
        gc.enable()


async def test_nothing_begins_once_it_ends() -> None:
    inflight = Inflight(1.0)
    await inflight.close()
    with pytest.raises(NodeStopping, match="the node is stopping"):
        await inflight.run(asyncio.sleep(0))


async def test_a_client_that_leaves_cancels_its_work() -> None:
    inflight, begun, ended = Inflight(1.0), asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.set()
            raise

    running = asyncio.ensure_future(inflight.run(work()))
    await begun.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert ended.is_set()


@pytest.mark.parametrize("path", ["/chaincodes/basic/invoke", "/deploy?name=basic"])
async def test_over_http_too(tmp_path: Path, path: str) -> None:
    node, begun = FakeNode(tmp_path), asyncio.Event()

    async def hang(*_args: Any, **_more: Any) -> Any:
        begun.set()
        await asyncio.Event().wait()

    node.invoke = node.deploy = hang  # type: ignore[method-assign]
    connector = aiohttp.UnixConnector(str(find_socket(tmp_path)))
    async with aiohttp.ClientSession("http://node", connector=connector) as session:
        async with AdminServer(tmp_path, node, AdminOptions(close_s=0.05)):  # type: ignore[arg-type]  # a double
            asking = asyncio.ensure_future(session.post(path, data=b"{}"))
            await begun.wait()
        answer = await asking
        body = await answer.json(content_type=None)
    assert answer.status == (200 if "deploy" in path else 503)
    error = body["error"] if "deploy" in path else body
    assert error["error"] == NodeStopping.slug
    assert "the node is stopping" in error["message"]
    node.close()
