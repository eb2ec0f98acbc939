"""Output is kept within bounds, and never in the way of who wrote it."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from chaindock.container.output import PENDING_BYTES, OutputOptions, OutputStore
from chaindock.errors import StorageError
from chaindock.ids import Ccid, at_peer
from support.doubles.inline import Inline
from support.eventually import eventually

CCID = Ccid("basic_1.0:" + "a" * 64)


def ccid(number: int) -> Ccid:
    return Ccid(f"basic_1.0:{number:064x}")


class Disk:
    """A file on a disk that is full, or takes a few bytes at a time."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.full = False
        self.closed = False

    def write(self, data: bytes) -> int:
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written: int = self.file.write(data[:7])
        return written

    def tell(self) -> int:
        at: int = self.file.tell()
        return at

    def close(self) -> None:
        self.file.close()


def test_a_full_disk_costs_lines_and_nothing_else(tmp_path: Path) -> None:
    output = OutputStore(tmp_path, writer=Inline()).open(CCID)
    output.write("before", "stdout")
    disk = Disk(output._file)
    output._file = disk  # type: ignore[assignment]
    disk.full = True
    output.write("lost", "stdout")
    output.write("lost too", "stderr")
    disk.full = False
    output.write("after", "stdout")
    output.write("last", "stdout")
    output.close()
    lines = [line.partition("Z ")[2] or line for line in text_of(output.path)]
    assert lines == [
        "stdout before",
        "",
        "[2 lines could not be written]",
        "stdout after",
        "stdout last",
    ]


def test_a_file_keeps_its_newest_half(tmp_path: Path) -> None:
    output = OutputStore(tmp_path, OutputOptions(max_bytes=2000), Inline()).open(CCID)
    for number in range(100):
        output.write(f"line {number}", "stdout")
    output.close()
    lines = text_of(output.path)
    assert output.path.stat().st_size <= 2100
    assert "[earlier output dropped]" in lines
    assert lines[-1].endswith("line 99")


def test_only_some_attempts_are_kept(tmp_path: Path) -> None:
    store = OutputStore(tmp_path, OutputOptions(keep=2), Inline())
    paths = []
    for _ in range(4):
        file = store.open(CCID)
        paths.append(file.path)
        file.begin()
        file.close()
    assert store.files(CCID) == paths[2:]


def test_an_attempt_that_never_began_drops_nothing(tmp_path: Path) -> None:
    store = OutputStore(tmp_path, OutputOptions(keep=2), Inline())
    running = store.open(CCID)
    running.write("here I am", "stdout")
    for _ in range(5):
        store.open(CCID).close()
    running.close()
    assert store.files(CCID) == [running.path]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "output").write_text("a file")
    with pytest.raises(StorageError, match="output"):
        OutputStore(tmp_path / "output").open(CCID).begin()


def test_former_chaincodes_are_forgotten_but_for_the_newest(tmp_path: Path) -> None:
    store = OutputStore(tmp_path, OutputOptions(former=2))
    other = at_peer(ccid(0), "Org2MSP")  # stays with its package
    names = [ccid(0), other, *map(ccid, range(1, 6))]
    for number, name in enumerate(names):
        file = store.open(name)
        file.begin()
        file.close()
        folder = store.files(name)[0].parent
        os.utime(folder, (number, number))
    store.drop_former([ccid(0)])
    kept = [name for name in names if store.files(name)]
    assert kept == [ccid(0), other, ccid(4), ccid(5)]


def text_of(path: Path) -> list[str]:
    return path.read_text().splitlines()


class Stalled(Inline):
    """A disk that does not answer for a while."""

    def __init__(self) -> None:
        self.waiting: list[Any] = []

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.waiting.append(fn)


def test_a_disk_that_does_not_answer_costs_bounded_memory(tmp_path: Path) -> None:
    """Issue 9, 15: lines beyond the bound are dropped, and the file says how many."""
    disk = Stalled()
    output = OutputStore(tmp_path, OutputOptions(max_bytes=10**9), disk).open(CCID)
    count, line = 1000, "x" * 8000
    for _ in range(count):
        output.write(line, "stdout")
    output.close()
    for work in disk.waiting:
        work()
    *written, said = text_of(output.path)
    assert len(written) * 8000 < PENDING_BYTES
    assert said == f"[{count - len(written)} lines could not be written]"


async def test_lines_arrive_in_order_from_the_writing_thread(tmp_path: Path) -> None:
    output = OutputStore(tmp_path).open(CCID)
    output.begin()
    for number in range(5000):
        output.write(str(number), "stdout")
    await eventually(lambda: len(text_of(output.path)) == 5000)
    texts = [line.rpartition(" ")[2] for line in text_of(output.path)]
    assert texts == [str(number) for number in range(5000)]
    output.close()
