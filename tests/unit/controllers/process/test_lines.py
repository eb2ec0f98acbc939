"""Bytes of a pipe become lines; no flood and no garbage harms the node."""

from __future__ import annotations

import asyncio
import itertools
from functools import partial

from hypothesis import given
from hypothesis import strategies as st

from chaindock.container.attempt import LINE_BYTES, Attempt
from chaindock.ids import Ccid
from chaindock.processes.child import SLICE_LINES, Pump
from support.eventually import eventually


class Tap:
    """Collects lines and remembers whether reading was paused."""

    def __init__(self, take=None) -> None:
        self.lines: list[str] = []
        self.pauses = self.resumes = 0
        self.pump = Pump(take or self.lines.append, self.pause, self.resume)

    def pause(self) -> None:
        self.pauses += 1

    def resume(self) -> None:
        self.resumes += 1


async def pumped(*chunks: bytes) -> Tap:
    tap = Tap()
    for chunk in chunks:
        tap.pump.feed(chunk)
    tap.pump.end()
    await tap.pump.done.wait()
    return tap


async def test_lines_are_handed_on_whole_however_they_arrive():
    tap = await pumped(b"on", b"e\ntw", b"o\r\n", b"\n", b"rest")
    assert tap.lines == ["one", "two", "", "rest"]


@given(text=st.text(max_size=200), cuts=st.lists(st.integers(0, 400), max_size=6))
def test_chunk_borders_change_nothing(text: str, cuts: list[int]):
    data = text.encode(errors="replace")
    borders = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    chunks = [data[a:b] for a, b in itertools.pairwise(borders)]

    async def both() -> tuple[list[str], list[str]]:
        return (await pumped(data)).lines, (await pumped(*chunks)).lines

    whole, parts = asyncio.run(both())
    assert whole == parts


async def test_what_is_not_utf8_is_replaced():
    assert (await pumped(b"caf\xe9\n")).lines == ["caf\ufffd"]


async def test_an_endless_line_is_cut_and_takes_no_memory():
    tap = Tap()
    for _ in range(200):
        tap.pump.feed(b"x" * 65536)
    assert len(tap.pump._line) <= LINE_BYTES + 1
    assert not tap.pump._pending
    tap.pump.feed(b"\nnext\n")
    # The attempt cuts what is longer than the limit, and says so.
    assert tap.lines == ["x" * (LINE_BYTES + 1), "next"]


async def test_a_line_of_just_the_limit_is_not_cut():
    assert (await pumped(b"y" * LINE_BYTES)).lines == ["y" * LINE_BYTES]


async def test_a_flood_is_taken_in_slices_and_reading_pauses_meanwhile():
    tap = Tap()
    tap.pump.feed(b"a\n" * (SLICE_LINES * 3 + 1))
    assert len(tap.lines) == SLICE_LINES
    assert (tap.pauses, tap.resumes) == (1, 0)
    await eventually(lambda: len(tap.lines) == SLICE_LINES * 3 + 1)
    await asyncio.sleep(0.1)
    assert (tap.pauses, tap.resumes) == (1, 1)


async def test_the_end_waits_for_what_is_pending():
    tap = Tap()
    tap.pump.feed(b"a\n" * (SLICE_LINES * 2))
    tap.pump.end()
    assert not tap.pump.done.is_set()
    await tap.pump.done.wait()
    assert len(tap.lines) == SLICE_LINES * 2


async def test_a_full_disk_loses_lines_but_does_not_stop_the_pipe():
    def full(line: str) -> None:
        raise OSError(28, "No space left on device")

    tap = Tap(full)
    tap.pump.feed(b"one\ntwo\n")
    tap.pump.end()
    assert tap.pump.done.is_set()


async def test_a_long_line_says_that_it_is_cut_in_whatever_language() -> None:
    attempt, lines = Attempt(Ccid("a:" + "1" * 64)), list[str]()
    attempt.watch(lambda event: lines.append(event.data["line"]))
    pump = Pump(partial(attempt.output, stream="stdout"), lambda: None, lambda: None)
    for letter in "aü漢":
        pump.feed(letter.encode() * 9000 + b"\n")
        pump.feed(letter.encode() * 2000 + b"\n")
    pump.end()
    assert [line.endswith(" [cut]") for line in lines] == [True, False] * 3
    assert all(len(line.encode()) <= LINE_BYTES + len(" [cut]") for line in lines)
