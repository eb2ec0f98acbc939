"""Whatever happens in whatever order, the same things hold after each step."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from support.faults_matrix import SEED
from support.faults_sequence import FLAGS, Sequence, describe
from support.faults_world import CliWorld, ForkedWorld
from support.need import need
from support.node import BACKENDS

if TYPE_CHECKING:
    from pathlib import Path

    from support.faults_world import World

pytestmark = [
    pytest.mark.slow,
    pytest.mark.golang,
    pytest.mark.nodejs,
    pytest.mark.network,
    pytest.mark.timeout(300),
]
MANY = int(os.environ.get("CHAINDOCK_SEQUENCES", "40"))  # noqa: TID251  # tests have no config
FEW = max(1, MANY // 40)


def play(world: World, seed: str) -> None:
    sequence = Sequence(world, seed)
    try:
        sequence.play()
    except BaseException as error:
        error.add_note(f"{describe(sequence, SEED)}\n{world.log_end()}")
        raise
    finally:
        world.take_down()


@pytest.mark.parametrize("number", range(MANY))
def test_a_quickly_started_node(number: int, tmp_path: Path) -> None:
    need("go", "node", "npm")
    play(ForkedWorld(tmp_path, FLAGS), f"{SEED} {number}")


@pytest.mark.parametrize("number", range(FEW))
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_command_line(backend: str, number: int, tmp_path: Path) -> None:
    play(CliWorld(tmp_path, backend, FLAGS), f"{SEED} {backend} {number}")
