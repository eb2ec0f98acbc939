"""Look into the blocks of a node in memory."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from chaindock.endorser.configuration import Configuration
from chaindock.errors import NotFound
from chaindock.node.described import describe_block

if TYPE_CHECKING:
    from chaindock.ledger.ledger import Ledger


def members_of(ledger: Ledger) -> Any:
    """Return the `Members` of a channel whose peers all run, for an `Explorer`."""
    found = Configuration.of(ledger)
    return SimpleNamespace(configuration=found, identities=dict, peers=())


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
_UNMET |= {
    "namespace": "basic",
    "policy": "AND('A.peer')",
    "endorsers": ["B.peer"],
    "stopped": [],
}


def outcome(function: bytes) -> dict[str, Any]:
    """How a transaction ends: a user calls the functions below for that."""
    if function == b"forbidden":
        return {"code": 10, "unmet": _UNMET}
    if function == b"stopped":
        return {"code": 10, "unmet": {**_UNMET, "stopped": ["Org2MSP", "Org3MSP"]}}
    return {"code": 11 if function == b"conflict" else 0}
