"""Bytes of a pipe become lines; no flood and no garbage harms the node."""

from __future__ import annotations

import asyncio
import itertools
from functools import partial

from hypothesis import given
from hypothesis import strategies as st

from chaindock.container.attempt import Attempt
from chaindock.container.output import LINE_BYTES, SLICE_LINES, Lines
from chaindock.ids import Ccid


async def cut(*chunks: bytes) -> list[str]:
    found: list[str] = []
    lines = Lines(found.append)
    for chunk in chunks:
        await lines.add(chunk)
    lines.end()
    return found


async def test_lines_are_handed_on_whole_however_they_arrive():
    found = await cut(b"on", b"e\ntw", b"o\r\n", b"\n", b"rest")
    assert found == ["one", "two", "", "rest"]


@given(text=st.text(max_size=200), cuts=st.lists(st.integers(0, 400), max_size=6))
def test_chunk_borders_change_nothing(text: str, cuts: list[int]):
    data = text.encode(errors="replace")
    borders = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    chunks = [data[a:b] for a, b in itertools.pairwise(borders)]

    async def both() -> tuple[list[str], list[str]]:
        return await cut(data), await cut(*chunks)

    whole, parts = asyncio.run(both())
    assert whole == parts


async def test_what_is_not_utf8_is_replaced():
    assert await cut(b"caf\xe9\n") == ["caf\ufffd"]


async def test_an_endless_line_is_cut_and_takes_no_memory():
    found: list[str] = []
    lines = Lines(found.append)
    for _ in range(200):
        await lines.add(b"x" * 65536)
    assert len(lines._line) <= LINE_BYTES + 1
    await lines.add(b"\nnext\n")
    # The attempt cuts what is longer than the limit, and says so.
    assert found == ["x" * (LINE_BYTES + 1), "next"]


async def test_a_line_of_just_the_limit_is_not_cut():
    assert await cut(b"y" * LINE_BYTES) == ["y" * LINE_BYTES]


async def test_a_flood_is_taken_in_slices():
    found: list[str] = []
    flood = asyncio.ensure_future(
        Lines(found.append).add(b"a\n" * (SLICE_LINES * 3 + 1))
    )
    await asyncio.sleep(0)
    assert len(found) == SLICE_LINES
    await flood
    assert len(found) == SLICE_LINES * 3 + 1


async def test_a_long_line_says_that_it_is_cut_in_whatever_language() -> None:
    attempt, lines = Attempt(Ccid("a:" + "1" * 64)), list[str]()
    attempt.watch(lambda event: lines.append(event.data["line"]))
    cutter = Lines(partial(attempt.output, stream="stdout"))
    for letter in "aü漢":
        await cutter.add(letter.encode() * 9000 + b"\n")
        await cutter.add(letter.encode() * 2000 + b"\n")
    cutter.end()
    assert [line.endswith(" [cut]") for line in lines] == [True, False] * 3
    assert all(len(line.encode()) <= LINE_BYTES + len(" [cut]") for line in lines)
