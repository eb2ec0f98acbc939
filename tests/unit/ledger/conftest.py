"""A fresh ledger for each test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.ledgers.ledger import ledger_at

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from chaindock.ledger.ledger import Ledger


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    async with ledger_at(tmp_path) as opened:
        yield opened
