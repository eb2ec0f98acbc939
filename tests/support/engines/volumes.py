"""The named volumes of an engine, which Chaindock itself only makes."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

from chaindock.errors import NotFound

if TYPE_CHECKING:
    from chaindock.controllers.docker.engine import Engine


async def find_volumes(engine: Engine, label: str) -> list[str]:
    """Return the names of the volumes with `key=value`."""
    params = {"filters": json.dumps({"label": [label]})}
    found = await engine.call("GET", "volumes", params=params)
    return [str(one["Name"]) for one in found.get("Volumes") or []]


async def remove_volume(engine: Engine, name: str) -> None:
    """Remove a volume; gone is fine."""
    with contextlib.suppress(NotFound):
        await engine.call("DELETE", f"volumes/{name}")
