"""One node for all faults of a back end; each test leaves it as it found it."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from support.faults_matrix import Cell, cells
from support.node import BACKENDS

if TYPE_CHECKING:
    from collections.abc import Iterator

_numbers = itertools.count(1)


@pytest.fixture(scope="module", params=BACKENDS)
def cell_of(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cell]:
    with cells(request.param, tmp_path_factory.mktemp("world")) as found:
        yield found


@pytest.fixture
def cell(cell_of: Cell, request: pytest.FixtureRequest) -> Iterator[Cell]:
    """A node with `steady`, and a label for a `victim` that is removed afterwards."""
    cell_of.begin(next(_numbers), request.node.name)
    try:
        yield cell_of
    finally:
        cell_of.end()
