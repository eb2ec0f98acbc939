"""Clients that call all the time and keep account of what they were told."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from chaindock.errors import ChaindockError
from support.nodes.killable import LOST

if TYPE_CHECKING:
    from support.nodes.killable import Admin, CrashNode

HOT = "hot"
"""The key that many write at once, so that most of them conflict."""
REFUSED_PAUSE_S = 0.05


@dataclass(frozen=True)
class Told:
    """What the node acknowledged."""

    tx_id: str
    block: int
    code: int
    key: str


@dataclass
class Account:
    """What all clients asked for, and what they were told, over all lives of a node."""

    asked: dict[str, str] = field(default_factory=dict)
    """key of its own → value, of every call that was sent"""
    told: list[Told] = field(default_factory=list)
    refused: list[ChaindockError] = field(default_factory=list)
    lost: int = 0
    """calls whose connection broke: they may have been committed or not"""

    @property
    def kept(self) -> set[str]:
        """Own keys of valid acknowledged transactions."""
        return {one.key for one in self.told if one.code == 0 and one.key != HOT}


class Load:
    """Some clients of one life of a node; ends when the node does."""

    def __init__(
        self,
        node: CrashNode,
        account: Account,
        name: str,
        prefix: str,
        clients: int,
        pause_s: float = 0.0,
    ) -> None:
        self._node, self._account = node, account
        self._name, self._prefix, self._clients = name, prefix, clients
        self._pause_s = pause_s
        self.answered = asyncio.Event()

    async def run(self) -> None:
        """Call until the connection breaks or the task is cancelled."""
        async with self._node.admin() as admin, asyncio.TaskGroup() as group:
            for number in range(self._clients):
                group.create_task(self._client(admin, number))

    async def _client(self, admin: Admin, number: int) -> None:
        count = 0
        while True:
            count += 1
            try:
                if number % 3 == 2:
                    await self._submit(admin, HOT, "work", HOT, "1")
                else:
                    key = f"u-{self._prefix}-{number}-{count}"
                    value = f"value of {key}"
                    self._account.asked[key] = value
                    await self._submit(admin, key, "put", key, value)
                await asyncio.sleep(self._pause_s)
            except ChaindockError as error:
                self._account.refused.append(error)
                # Refused at once: a busy loop would keep the node from coming up.
                await asyncio.sleep(REFUSED_PAUSE_S)
            except LOST:
                self._account.lost += 1
                return

    async def _submit(self, admin: Admin, key: str, *args: str) -> None:
        answer = await admin.call("invoke", self._name, *args)
        if answer["code"] is not None:
            told = Told(answer["tx_id"], answer["block"], answer["code"], key)
            self._account.told.append(told)
            self.answered.set()
