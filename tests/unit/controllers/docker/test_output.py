from __future__ import annotations

import asyncio
import io
import itertools
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaindock.container.output import LINE_BYTES, SLICE_LINES
from chaindock.controllers.docker.client import json_objects
from chaindock.controllers.docker.streams import OutputLines, chunks_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable


def frame(stream: int, data: bytes) -> bytes:
    return bytes([stream, 0, 0, 0]) + len(data).to_bytes(4, "big") + data


def read(pieces: list[bytes]) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    lines = OutputLines(lambda line, stream: found.append((stream, line)))

    async def feed() -> None:
        for piece in pieces:
            await lines.feed(piece)

    asyncio.run(feed())
    lines.end()
    return found


@pytest.mark.parametrize("frames", [True, False])
async def test_a_flood_of_lines_lets_others_have_their_turns(frames: bool):
    """Nine bytes of the engine are a line: one read may hold thousands."""
    found: list[str] = []
    lines = OutputLines(lambda line, _: found.append(line))
    count = SLICE_LINES * 5
    data = frame(1, b"\n") * count if frames else frame(1, b"\n" * count)
    reading = asyncio.ensure_future(lines.feed(data))
    seen = set()
    while not reading.done():
        await asyncio.sleep(0)
        seen.add(len(found))
    assert len(found) == count
    assert len(seen) >= 5


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({min(p, len(data)) for p in places} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(ends)]


text = st.text(st.characters(blacklist_characters="\n\r", blacklist_categories=["Cs"]))


@given(
    st.lists(st.tuples(st.sampled_from([1, 2]), st.lists(text, min_size=1))),
    st.lists(st.integers(0, 4000)),
    st.integers(1, 50),
)
def test_lines_survive_any_split_of_frames_and_of_reads(
    written: list[tuple[int, list[str]]], places: list[int], piece: int
):
    data = b""
    expected: dict[str, list[str]] = {"stdout": [], "stderr": []}
    for stream, lines in written:
        raw = "".join(f"{line}\n" for line in lines).encode()
        expected["stdout" if stream == 1 else "stderr"] += lines
        for at in range(0, len(raw), piece):
            data += frame(stream, raw[at : at + piece])
    found = read(cut(data, places))
    for name, lines in expected.items():
        assert [line for stream, line in found if stream == name] == lines


REFUSAL = b'{"cause":"no such process","message":"failed to obtain","response":500}\n'


def test_what_the_engine_says_in_between_is_not_the_programs_output():
    """Podman appends the error to a stream that has begun."""
    assert read([REFUSAL]) == []
    assert read([frame(1, b"one\n") + REFUSAL[:20], REFUSAL[20:]]) == [
        ("stdout", "one")
    ]
    # A program that prints the same has a frame around it.
    assert read([frame(1, REFUSAL)]) == [("stdout", REFUSAL.decode().strip())]


def test_streams_that_interleave_within_a_line_are_kept_apart():
    data = frame(1, b"hal") + frame(2, b"err") + frame(1, b"lo\n") + frame(2, b"or\n")
    assert read([data]) == [("stdout", "hallo"), ("stderr", "error")]


def test_empty_frames_and_a_last_line_without_end():
    assert read([frame(1, b"") + frame(1, b"last")]) == [("stdout", "last")]


def test_a_stream_without_frames_is_taken_as_it_is():
    data = b"OCI runtime exec failed\nexec: no such program\n"
    assert [line for _, line in read(cut(data, [3, 9]))] == data.decode().splitlines()


def test_a_line_without_end_takes_bounded_memory():
    found = read([frame(1, b"x" * 100_000)] * 50)
    assert len(found) == 1
    assert len(found[0][1]) == LINE_BYTES + 1


def test_bytes_that_are_no_text_are_replaced():
    assert read([frame(1, b"\xff\xfe!\n")]) == [
        ("stdout", "\N{REPLACEMENT CHARACTER}" * 2 + "!")
    ]


@given(st.lists(st.dictionaries(st.text(), st.text())), st.lists(st.integers(0, 2000)))
async def test_progress_objects_survive_any_split(
    objects: list[dict[str, str]], places: list[int]
):
    data = b"".join(json.dumps(one).encode() + b"\r\n" for one in objects)
    assert await progress(cut(data, places)) == objects


async def progress(pieces: Iterable[bytes]) -> list[Any]:
    async def stream() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    return [one async for one in json_objects(stream())]


async def test_what_is_no_progress_object_is_skipped():
    assert await progress([b'oops\n[1]\n{"a": 1}\n']) == [{"a": 1}]


async def test_a_file_is_sent_in_chunks():
    data = bytes(range(256)) * 4096
    parts = [part async for part in chunks_of(io.BytesIO(data))]
    assert b"".join(parts) == data
    assert len(parts) == 4
