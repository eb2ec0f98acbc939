"""A custodian whose launches a test decides."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from chaindock.lifecycle.custodian import Custodian
from support.doubles.machine import FAST, Machine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
async def custodian(machine: Machine) -> AsyncIterator[Custodian]:
    async with Custodian(machine, FAST) as custodian:
        yield custodian
