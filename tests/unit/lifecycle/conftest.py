"""A custodian whose launches a test decides, a node, and a state of `_lifecycle`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from chaindock.lifecycle.custodian import Custodian
from support.doubles.deployments import Node
from support.doubles.lifecycle_state import LifecycleState
from support.doubles.machine import FAST, Machine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
async def custodian(machine: Machine) -> AsyncIterator[Custodian]:
    async with Custodian(machine, FAST) as custodian:
        yield custodian


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    async with Node(tmp_path) as node:
        yield node


@pytest.fixture
def state() -> LifecycleState:
    return LifecycleState()
