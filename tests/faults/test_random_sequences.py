"""Whatever happens in whatever order, the same things hold after each step."""

from __future__ import annotations

import contextlib
import functools
import os
from typing import TYPE_CHECKING

import pytest

from support.faults.disk import MIB, small_disk
from support.faults.matrix import ROUNDS, SEED
from support.faults.own_engine import KINDS, OWN, using
from support.faults.sequence import FLAGS, Sequence, describe
from support.faults.world import CliWorld, ForkedWorld
from support.need import need

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.engines.own_engine import OwnEngine

pytestmark = [
    pytest.mark.slow,
    pytest.mark.golang,
    pytest.mark.nodejs,
    pytest.mark.network,
    pytest.mark.timeout(300),
]
MANY = 4 if ROUNDS == 1 else 200
FEW = max(1, MANY // 40)
BASES = ("golang", "node", "runtime")
HOME = 64 * MIB


@contextlib.contextmanager
def small_home(folder: Path) -> Iterator[bool]:
    """Put the home on a small disk where that can be; yield whether it is."""
    with contextlib.ExitStack() as stack:
        if small := os.geteuid() == 0:
            stack.enter_context(small_disk(folder / "home", HOME))
        yield small


@contextlib.contextmanager
def engine_of(kind: str, image: Callable[[], str]) -> Iterator[OwnEngine | None]:
    """Start an engine that the sequence may stop and kill; none for processes.

    Args:
        image: gives the one of `misbehaves`.
    """
    if kind == "process":
        yield None
        return
    found = image()
    with OWN[kind](*BASES) as engine:
        engine.load(found)
        with using(engine):
            yield engine


def play(sequence: Sequence) -> None:
    try:
        sequence.play()
    except BaseException as error:
        error.add_note(f"{describe(sequence, SEED)}\n{sequence.world.log_end()}")
        raise
    finally:
        sequence.world.take_down()


@pytest.mark.parametrize("number", range(MANY))
def test_a_quickly_started_node(number: int, tmp_path: Path) -> None:
    need("go", "node", "npm")
    with small_home(tmp_path) as small:
        play(Sequence(ForkedWorld(tmp_path, FLAGS), f"{SEED} {number}", small=small))


@pytest.mark.parametrize("number", range(FEW))
@pytest.mark.parametrize("kind", KINDS)
def test_the_command_line(
    kind: str, number: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    image = functools.partial(request.getfixturevalue, "image")
    with engine_of(kind, image) as engine, small_home(tmp_path) as small:
        backend = kind if engine is None else "docker"
        world = CliWorld(tmp_path, backend, FLAGS)
        play(Sequence(world, f"{SEED} {kind} {number}", engine, small=small))
