"""One node for all faults of a back end; each test leaves it as it found it."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from support.faults.matrix import cells
from support.faults.own_engine import KINDS, backend_of, image_of_misbehaves

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.faults.matrix import Cell

_numbers = itertools.count(1)


@pytest.fixture(scope="module", params=KINDS)
def cell_of(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cell]:
    folder = tmp_path_factory.mktemp("world")
    with backend_of(request.param) as backend, cells(backend, folder) as found:
        yield found


@pytest.fixture
def cell(cell_of: Cell, request: pytest.FixtureRequest) -> Iterator[Cell]:
    """A node with `steady`, and a label for a `victim` that is removed afterwards."""
    cell_of.begin(next(_numbers), request.node.name)
    try:
        yield cell_of
    finally:
        cell_of.end()


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The image of `misbehaves`, for engines that have no network to build it."""
    return image_of_misbehaves(tmp_path_factory.mktemp("image"))
