"""Look into the blocks of a node in memory."""

from __future__ import annotations

import json
from typing import Any

from chaindock.errors import NotFound
from chaindock.node.described import describe_block


class FakeExplorer:
    """An explorer that knows blocks alone."""

    def __init__(self, blocks: list[bytes]) -> None:
        self._blocks = blocks

    @property
    def height(self) -> int:
        return len(self._blocks)

    async def block(self, number: int, *, brief: bool) -> bytes:
        if number >= len(self._blocks):
            raise NotFound(f"there is no block {number}")
        found = describe_block(self._blocks[number], brief=brief)
        return json.dumps(found).encode()


_UNMET: dict[str, Any] = dict.fromkeys(("collection", "key", "key_hash", "reason"))
_UNMET |= {"namespace": "basic", "policy": "AND('A.peer')", "endorsers": ["B.peer"]}


def outcome(function: bytes) -> dict[str, Any]:
    """How a transaction ends: one calls functions `conflict` and `forbidden` for that."""
    if function == b"forbidden":
        return {"code": 10, "unmet": _UNMET}
    return {"code": 11 if function == b"conflict" else 0}
