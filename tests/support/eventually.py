"""Wait for what a test cannot be told about."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

_LOOK_S = 0.005


async def eventually(holds: Callable[[], object], patience_s: float = 10.0) -> None:
    """Return when `holds()` is true; fail when that takes too long."""
    for _ in range(int(patience_s / _LOOK_S)):
        if holds():
            return
        await asyncio.sleep(_LOOK_S)
    pytest.fail("never happened")
