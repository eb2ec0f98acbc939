"""The packages of a node in memory."""

from __future__ import annotations

from typing import Any

from chaindock.errors import NotFound


class FakePackages:
    """The packages of a node: ids, and who runs them."""

    def __init__(self) -> None:
        self.known: dict[str, list[dict[str, str]]] = {}
        self.by: list[str] = []

    def list(self) -> list[dict[str, Any]]:
        return [
            {"package_id": ccid, "installed_by": self.by, "chaincodes": users}
            for ccid, users in self.known.items()
        ]

    async def remove(self, ccid: str) -> None:
        if ccid not in self.known:
            raise NotFound(f"package {ccid!r} is not installed")
        del self.known[ccid]
