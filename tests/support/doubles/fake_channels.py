"""The channels and organisations of a node in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from chaindock.errors import AlreadyExists, NotFound

if TYPE_CHECKING:
    from collections.abc import Sequence


class FakeChannels:
    """Channels by name, all over one ledger; `asked` are those that requests named."""

    def __init__(self) -> None:
        first: dict[str, Any] = {"mspid": "Org1MSP", "domain": None, "path": None}
        self.members: list[dict[str, Any]] = [{**first, "orders": True}]
        self.known: dict[str, Sequence[str]] = {"mychannel": ["Org1MSP"]}
        self.capabilities: dict[str, str] = {}
        self.asked: list[str | None] = []

    def channel(self, name: str | None = None) -> Self:
        if name is not None and name not in self.known:
            raise NotFound(f"this node has no channel {name!r}", hint="channel ls")
        self.asked.append(name)
        return self

    def channel_list(self) -> list[dict[str, Any]]:
        return [
            {
                "name": name,
                "height": 1,
                "organizations": members,
                "capability": self.capabilities.get(name, "V2_5"),
            }
            for name, members in self.known.items()
        ]

    async def create_channel(
        self, name: str, mspids: Sequence[str], capability: str
    ) -> dict[str, Any]:
        if name in self.known:
            raise AlreadyExists(f"channel {name!r} exists already")
        self.known[name] = list(mspids) or ["Org1MSP"]
        self.capabilities[name] = capability
        return self.channel_list()[-1]

    async def remove_channel(self, name: str) -> None:
        self.channel(name)
        del self.known[name]

    def organizations(self, channel: str | None = None) -> list[dict[str, Any]]:
        self.channel(channel)
        return self.members

    async def add_organization(
        self, name: str, channel: str | None = None
    ) -> dict[str, Any]:
        self.channel(channel)
        if name in {one["mspid"] for one in self.members}:
            raise AlreadyExists(f"organisation {name!r} is a member already")
        made = {"mspid": name, "domain": "d", "path": "/p", "orders": False}
        made["address"] = "127.0.0.1:9051"
        self.members.append(made)
        return {**made, "block": 7}

    async def run_peer(
        self, name: str, channel: str | None = None, *, running: bool
    ) -> dict[str, Any]:
        self.channel(channel)
        found = next(one for one in self.members if one["mspid"] == name)
        found["stopped"] = not running
        return found
