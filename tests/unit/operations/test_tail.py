"""Output files, read while they are written."""

import asyncio
from contextlib import ExitStack, aclosing, closing
from functools import partial

import pytest

from chaindock.container.output import OutputFile, OutputOptions, OutputStore
from chaindock.ids import Ccid
from chaindock.operations.stream import Tail, parse_line
from support.doubles.inline import Inline

CCID = Ccid("a:" + "0" * 64)


class Outputs(OutputStore):
    """Closes what it opened."""

    def __init__(self, root, files: ExitStack, **options) -> None:
        super().__init__(root, OutputOptions(**options), Inline())
        self._opened = files

    def open(self, ccid: Ccid) -> OutputFile:
        return self._opened.enter_context(closing(super().open(ccid)))


@pytest.fixture
def store(tmp_path):
    with ExitStack() as files:
        yield partial(Outputs, tmp_path, files)


async def read(tail: Tail) -> list[str]:
    return [line["line"] async for batch in tail.batches() for line in batch]


class Following:
    """Collects in the background what a follower gets."""

    def __init__(self, tail: Tail) -> None:
        self.lines: list[str] = []
        self._more = asyncio.Event()
        self._tail = tail

    async def run(self) -> None:
        async with aclosing(self._tail.batches(follow=True)) as batches:
            async for batch in batches:
                self.lines += [line["line"] for line in batch]
                self._more.set()

    async def until(self, last: str) -> None:
        async with asyncio.timeout(10):
            while last not in self.lines:
                self._more.clear()
                await self._more.wait()


async def test_last_attempt_is_shown_and_the_one_before_on_demand(store):
    outputs = store()
    outputs.open(CCID).write("first", "stdout")
    outputs.open(CCID).write("second", "build")
    assert await read(Tail(lambda: outputs.files(CCID))) == ["second"]
    assert await read(Tail(lambda: outputs.files(CCID), previous=True)) == ["first"]


async def test_nothing_written_is_no_error(store):
    outputs = store()
    assert await read(Tail(lambda: outputs.files(CCID))) == []
    outputs.open(CCID)
    assert await read(Tail(lambda: outputs.files(CCID), previous=True)) == []


async def test_long_lines_and_files_come_whole(store):
    outputs = store()
    file = outputs.open(CCID)
    lines = [f"{number} " + "x" * 3000 for number in range(500)]
    for line in lines:
        file.write(line, "stdout")
    assert await read(Tail(lambda: outputs.files(CCID))) == lines


async def test_follower_gets_later_lines_and_the_next_attempt(store):
    outputs = store()
    following = Following(Tail(lambda: outputs.files(CCID), poll_s=0.01))
    task = asyncio.ensure_future(following.run())
    first = outputs.open(CCID)
    first.write("one", "build")
    await following.until("one")
    first.write("two", "stdout")
    await following.until("two")
    first.write("last of the first", "stdout")
    second = outputs.open(CCID)
    second.write("three", "build")
    await following.until("three")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert following.lines == ["one", "two", "last of the first", "three"]


async def test_follower_gets_the_last_lines_when_it_is_over(store):
    file = store().open(CCID)
    file.write("first", "stdout")
    over = asyncio.Event()
    tail = Tail(lambda: store().files(CCID), poll_s=0.01, over=over.is_set)
    following = Following(tail)
    reading = asyncio.ensure_future(following.run())
    await following.until("first")
    file.write("last", "stdout")
    over.set()
    await reading
    assert following.lines == ["first", "last"]


async def test_follower_goes_on_when_the_file_is_cut_to_its_newest_half(store):
    outputs = store(max_bytes=4000)
    following = Following(Tail(lambda: outputs.files(CCID), poll_s=0.005))
    task = asyncio.ensure_future(following.run())
    file = outputs.open(CCID)
    expected = []
    for number in range(400):
        expected.append(f"line {number}")
        file.write(expected[-1], "stdout")
        if number % 20 == 0:
            await following.until(expected[-1])
    await following.until(expected[-1])
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert following.lines == expected


async def test_a_line_tells_its_transaction_if_it_has_one(store):
    output = store().open(CCID)
    output.write("of a call", "stdout", "ab" * 32)
    output.write("of none", "stderr")
    tail = Tail(lambda: [output.path])
    first, second = [line async for batch in tail.batches() for line in batch]
    told = {"stream": "stdout", "tx": "ab" * 32, "line": "of a call"}
    assert first == {"time": first["time"], **told}
    assert second == {
        "time": second["time"],
        "stream": "stderr",
        "tx": None,
        "line": "of none",
    }


def test_a_stream_that_is_none_of_ours_is_a_remark():
    assert parse_line(b"2026-11-24T10:00:00Z std@f00d x")["stream"] == "note"


def test_lines_that_are_not_ours_are_remarks():
    line = parse_line(b"[earlier output dropped]")
    assert (line["time"], line["stream"], line["line"]) == (
        "",
        "note",
        "[earlier output dropped]",
    )
    line = parse_line(b"2026-11-24T10:00:00Z stderr a  b \xff")
    assert (line["time"], line["stream"]) == ("2026-11-24T10:00:00Z", "stderr")
    assert line["line"] == "a  b \N{REPLACEMENT CHARACTER}"
