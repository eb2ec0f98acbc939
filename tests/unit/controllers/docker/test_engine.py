"""Engine against an engine that has faults."""

from __future__ import annotations

import asyncio
import io
import json
from typing import TYPE_CHECKING, Any

import pytest

from chaindock.controllers.docker.engine import Engine
from chaindock.controllers.docker.options import EndpointOptions
from chaindock.controllers.docker.streams import chunks_of, image_context
from chaindock.errors import (
    ChaindockError,
    ContainerExists,
    EngineError,
    EngineTimeout,
    EngineUnavailable,
    ImageNotFound,
    NotFound,
)
from support.doubles.fake_engine import VERSION, fake_engine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from support.doubles.fake_engine import Reply, Request


def says(status: int, message: str) -> Reply:
    async def reply(request: Request) -> None:
        await request.json({"message": message}, status)

    return reply


async def hangs(request: Request) -> None:
    await request.reader.read()


@pytest.fixture
def connected(tmp_path: Path) -> Callable[..., Any]:
    socket = tmp_path / "engine.sock"

    class Connected:
        def __init__(self, replies: dict[str, Reply], call_s: float = 5.0) -> None:
            self._fake, self._call_s = fake_engine(socket, replies), call_s

        async def __aenter__(self) -> Engine:
            await self._fake.__aenter__()
            options = EndpointOptions(docker_host=f"unix://{socket}")
            self._engine = await Engine.connect(options, self._call_s)
            return self._engine

        async def __aexit__(self, *error: object) -> None:
            await self._engine.aclose()
            await self._fake.__aexit__(None, None, None)

    return Connected


@pytest.mark.parametrize(
    ("status", "message", "expected"),
    [
        (404, "No such image: x:latest", ImageNotFound),
        (409, "The container name is already in use", ContainerExists),
        (400, "invalid reference format", EngineError),
        (500, "no space left on device", EngineError),
    ],
)
async def test_refusals_of_create_are_told_apart(
    connected: Any, status: int, message: str, expected: type[ChaindockError]
):
    async with connected({"POST create": says(status, message)}) as engine:
        with pytest.raises(expected) as caught:
            await engine.create_container("n", {"Image": "x"})
    assert type(caught.value) is expected
    if expected is EngineError:
        assert message in caught.value.message
        assert caught.value.status == status


async def test_a_missing_container_and_a_missing_image_are_different_errors(
    connected: Any,
):
    async with connected({}) as engine:
        with pytest.raises(ImageNotFound):
            await engine.inspect_image("x")
        with pytest.raises(NotFound) as caught:
            await engine.inspect_container("x")
    assert not isinstance(caught.value, ImageNotFound)


async def test_removing_what_is_gone_is_fine(connected: Any):
    async with connected({}) as engine:
        await engine.remove_container("gone")
        await engine.remove_image("gone")
        assert await engine.remove_network("gone")


async def test_a_network_in_use_stays(connected: Any):
    async with connected({"DELETE net": says(403, "has active endpoints")}) as engine:
        assert not await engine.remove_network("net")


@pytest.mark.parametrize("read_first", [0, 100_000])
@pytest.mark.parametrize("repeat", range(5))
async def test_the_refusal_counts_when_the_engine_hangs_up_on_an_upload(
    connected: Any, read_first: int, repeat: int
):
    async def refuse(request: Request) -> None:
        if read_first:
            await request.go_on()
            await request.reader.readexactly(read_first)
        await request.json({"message": "client version 1.25 is too old"}, 400)

    async with connected({"POST build": refuse}) as engine:
        artifact = io.BytesIO(bytes(20_000_000))
        context = image_context("FROM x\n", artifact)
        with pytest.raises(EngineError, match=r"version 1\.25 is too old") as caught:
            async for _ in engine.build_image({"t": "x"}, context, 5):
                pass
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "line",
    [
        b'{"errorDetail": {"message": "no space left"}, "error": "no space left"}\n',
        b'{"error": "no space left"}\n',
    ],
)
async def test_an_error_inside_the_progress_of_a_build_fails_it(
    connected: Any, line: bytes
):
    async def reply(request: Request) -> None:
        await request.go_on()
        await request.stream(b'{"stream": "Step 1/2"}\r\n', line)

    async with connected({"POST build": reply}) as engine:
        progress = engine.build_image({}, _context(), 5)
        assert await anext(progress) == {"stream": "Step 1/2"}
        with pytest.raises(EngineError, match="no space left"):
            await anext(progress)


async def test_a_full_disk_of_the_engine_can_pass(connected: Any):
    """It is told with what to do, in an answer as in a progress."""
    full = "write /var/lib/x: no space left on device"

    async def reply(request: Request) -> None:
        await request.go_on()
        await request.stream(json.dumps({"error": full}).encode())

    at = {"POST build": reply, "POST create": says(500, full)}
    async with connected(at) as engine:
        with pytest.raises(EngineError, match=full) as built:
            async for _ in engine.build_image({}, _context(), 5):
                pass
        with pytest.raises(EngineError, match=full) as created:
            await engine.create_container("n", {"Image": "x"})
    for caught in (built, created):
        assert caught.value.retryable
        assert "make room" in (caught.value.hint or "")


async def test_an_error_inside_the_progress_of_a_pull_fails_it(connected: Any):
    async def reply(request: Request) -> None:
        await request.stream(b'{"status": "Pulling"}\n{"error": "toomanyrequests"}')

    async with connected({"POST create": reply}) as engine:
        with pytest.raises(EngineError, match="pull x:1: toomanyrequests"):
            async for _ in engine.pull("x:1", None, 5):
                pass


async def test_a_stream_that_stalls_ends_with_its_limit_of_silence(connected: Any):
    async def reply(request: Request) -> None:
        await request.stream(b'{"status": "Pulling"}\n', open_after=True)

    async with connected({"POST create": reply}) as engine:
        with pytest.raises(EngineTimeout, match=r"0\.2 s"):
            async for _ in engine.pull("x:1", None, 0.2):
                pass


async def test_a_call_that_gets_no_answer_ends_in_time(connected: Any):
    async with connected({"GET json": hangs}, call_s=0.2) as engine:
        with pytest.raises(EngineTimeout) as caught:
            await engine.inspect_container("x")
    assert caught.value.limit_s == 0.2


@pytest.mark.parametrize("act", ["inspect_network", "inspect_image"])
async def test_an_answer_that_stalls_half_way_ends_in_time(connected: Any, act: str):
    async def reply(request: Request) -> None:
        await request.stream(b'{"Name": ', open_after=True)

    replies = {"GET net": reply, "GET json": reply}
    async with connected(replies, call_s=0.2) as engine:
        with pytest.raises(EngineTimeout, match=r"0\.2 s"):
            await getattr(engine, act)("net")


@pytest.mark.parametrize("takes", [0, 100_000])
async def test_an_upload_that_the_engine_stops_taking_ends_in_time(
    connected: Any, takes: int
):
    over = asyncio.Event()

    async def reply(request: Request) -> None:
        await request.go_on()
        await request.reader.readexactly(takes)
        await over.wait()

    async with connected({"PUT archive": reply}, call_s=0.3) as engine:
        file = io.BytesIO(bytes(20_000_000))
        with pytest.raises(EngineTimeout, match=r"0\.3 s"):
            async with asyncio.timeout(5):
                await engine.put_archive("x", "/", chunks_of(file))
        over.set()


async def test_an_upload_may_take_longer_than_a_call(connected: Any):
    async def slow() -> AsyncIterator[bytes]:
        for _ in range(6):
            await asyncio.sleep(0.1)
            yield b"tar"

    async def reply(request: Request) -> None:
        await request.go_on()
        await request.reader.readuntil(b"0\r\n\r\n")
        await request.json({})

    async with connected({"PUT archive": reply}, call_s=0.3) as engine:
        await engine.put_archive("x", "/", slow())


async def test_a_hung_up_call_is_unavailable(connected: Any):
    async def reply(request: Request) -> None:
        request.writer.close()

    async with connected({"GET json": reply}) as engine:
        with pytest.raises(EngineUnavailable):
            await engine.inspect_container("x")


async def test_waiting_for_a_container_has_no_limit(connected: Any):
    async def reply(request: Request) -> None:
        await asyncio.sleep(0.3)
        await request.json({"StatusCode": 7})

    async with connected({"POST wait": reply}, call_s=0.1) as engine:
        assert await engine.wait_container("x") == 7


async def test_a_plain_text_refusal_is_told_as_it_is(connected: Any):
    async def reply(request: Request) -> None:
        await request.answer(503, b"proxy: upstream is gone", "text/plain")

    async with connected({"GET json": reply}) as engine:
        with pytest.raises(EngineError, match="upstream is gone"):
            await engine.inspect_image("x")


@pytest.mark.parametrize(
    ("theirs", "oldest", "agreed"),
    [("1.41", "1.12", "v1.41"), ("1.53", "1.44", "v1.51"), ("1.40", "1.24", "v1.40")],
)
async def test_the_api_version_is_the_newest_that_both_speak(
    tmp_path: Path, theirs: str, oldest: str, agreed: str
):
    async def version(request: Request) -> None:
        await request.json({"ApiVersion": theirs, "MinAPIVersion": oldest})

    socket = tmp_path / "s"
    async with fake_engine(socket, {"GET version": version}) as fake:
        engine = await Engine.connect(EndpointOptions(docker_host=f"unix://{socket}"))
        with pytest.raises(NotFound):
            await engine.inspect_container("x")
        await engine.aclose()
    assert fake.seen[-1].startswith(f"GET /{agreed}/containers/")


def of_age(oldest: str, newest: str) -> dict[str, Reply]:
    """An engine that hangs up on every call of another API version, as engines do."""

    def number(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in text.split("."))

    async def version(request: Request) -> None:
        about = {"ApiVersion": newest, **({"MinAPIVersion": oldest} if oldest else {})}
        await request.json({**VERSION, "MinAPIVersion": None, **about})

    def only(answer: Any, *, uploads: bool = False) -> Reply:
        async def reply(request: Request) -> None:
            asked = request.path.split("/")[1].removeprefix("v")
            if not number(oldest or "1.0") <= number(asked) <= number(newest):
                await request.json({"message": f"client version {asked} is wrong"}, 400)
                return
            if uploads:
                await request.go_on()
                await request.reader.readuntil(b"0\r\n\r\n")
            await request.json(answer)

        return reply

    return {
        "GET version": version,
        "POST build": only({"stream": "done"}, uploads=True),
        "PUT archive": only({}, uploads=True),
        "POST create": only({"Id": "c1"}),
        "POST start": only({}),
        "POST wait": only({"StatusCode": 0}),
        "GET logs": only({}),
    }


@pytest.mark.parametrize(
    ("oldest", "newest"),
    [
        *(("1.24", f"1.{newest}") for newest in (40, 41, 43)),
        *(("1.44", f"1.{newest}") for newest in range(44, 55)),
        pytest.param("1.24", "1.41", id="Podman 4"),
        pytest.param("", "1.41", id="says no oldest"),
        pytest.param("1.24", "1.44", id="Podman 5"),
    ],
)
async def test_building_and_running_works_with_engines_of_all_ages(
    connected: Any, oldest: str, newest: str
):
    async with connected(of_age(oldest, newest)) as engine:
        async for event in engine.build_image({"t": "x"}, _context(), 5):
            assert event == {"stream": "done"}
        assert await engine.create_container("n", {"Image": "x"}) == "c1"
        await engine.put_archive("c1", "/", _context())
        await engine.start_container("c1")
        assert await engine.wait_container("c1") == 0
        assert [data async for data in engine.logs("c1", None, follow="1")] == [b"{}"]


async def test_an_engine_that_was_updated_meanwhile_is_asked_again(tmp_path: Path):
    socket = tmp_path / "s"
    async with fake_engine(socket, of_age("1.24", "1.41")):
        engine = await Engine.connect(EndpointOptions(docker_host=f"unix://{socket}"))
        await engine.start_container("c1")
    with pytest.raises(EngineUnavailable):
        await engine.start_container("c1")
    socket.unlink(missing_ok=True)
    async with fake_engine(socket, of_age("1.44", "1.54")):
        await engine.start_container("c1")
        assert engine.name.endswith("API 1.51")
        await engine.aclose()


@pytest.mark.parametrize(
    ("theirs", "oldest"), [("1.24", "1.12"), ("1.60", "1.55"), ("1.39", "1.12")]
)
async def test_an_engine_of_another_age_is_refused_with_both_ranges(
    tmp_path: Path, theirs: str, oldest: str
):
    async def version(request: Request) -> None:
        await request.json({**VERSION, "ApiVersion": theirs, "MinAPIVersion": oldest})

    socket = tmp_path / "s"
    async with fake_engine(socket, {"GET version": version}):
        with pytest.raises(EngineError) as caught:
            await Engine.connect(EndpointOptions(docker_host=f"unix://{socket}"))
    assert f"{oldest} to {theirs}" in caught.value.message
    assert "1.40 to 1.51" in caught.value.message


async def _context() -> AsyncIterator[bytes]:
    yield b"tar"
