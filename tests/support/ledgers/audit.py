"""An account of the ledger from outside: blocks read through the admin API, replayed."""

from __future__ import annotations

import json
from base64 import b64decode
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from support.nodes.load import HOT

if TYPE_CHECKING:
    from support.nodes.killable import Admin
    from support.nodes.load import Account

VALID, MVCC_READ_CONFLICT = 0, 11
_BATCH = 400
Version = list[int]


class Audit:
    """Reads what is new at each visit; what was read before must stay as it was."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.blocks: list[dict[str, Any]] = []
        self.places: dict[str, list[tuple[int, int]]] = defaultdict(list)
        """transaction id → (block, code) of every occurrence"""
        self.state: dict[tuple[str, str], tuple[bytes, Version]] = {}
        self.hot: list[str] = []
        """valid transactions that wrote the hot key, oldest first"""

    async def read(self, admin: Admin, *, again: bool = False) -> None:
        """Read new blocks, check them, replay them.

        Args:
            admin: of the node.
            again: read the old ones too and compare; else only the last of them.
        """
        height = (await admin.get("/blocks"))["height"]
        known = len(self.blocks)
        assert height >= known, f"the ledger shrank from {known} to {height} blocks"
        for number in range(0 if again else max(0, known - 1), height):
            block = await admin.get(f"/blocks/{number}")
            if number < known:
                assert block == self.blocks[number], f"block {number} changed"
            else:
                self._take(block)

    def _take(self, block: dict[str, Any]) -> None:
        number = len(self.blocks)
        assert block["number"] == number
        self.blocks.append(block)
        for position, tx in enumerate(block["transactions"]):
            code = tx["code"]
            self.places[tx["tx_id"]].append((number, code))
            stale = any(self._version(read) != read["version"] for read in tx["reads"])
            if code == VALID:
                assert not stale, f"valid on an old read: {tx}"
                self._apply(tx, [number, position])
            else:
                assert code == MVCC_READ_CONFLICT, tx
                assert stale, f"void for no reason: {tx}"

    def _version(self, read: dict[str, Any]) -> Version | None:
        found = self.state.get((read["namespace"], read["key"]))
        return found and found[1]

    def _apply(self, tx: dict[str, Any], version: Version) -> None:
        for write in tx["writes"]:
            key = write["namespace"], write["key"]
            assert not write["is_delete"]
            self.state[key] = b64decode(write["value"]), version
            if key == (self.name, HOT):
                self.hot.append(tx["tx_id"])

    @property
    def definitions(self) -> int:
        """How often the chaincode was defined: its sequence."""
        return sum(
            any(w["key"].endswith(f"/{self.name}/Sequence") for w in tx["writes"])
            for block in self.blocks
            for tx in block["transactions"]
            if tx["code"] == VALID
        )

    def check_account(self, account: Account) -> None:
        """Every acknowledged transaction is there once; nothing unexplained is."""
        for tx_id, places in self.places.items():
            assert len(places) == 1, f"{tx_id} is there {len(places)} times: {places}"
        for told in account.told:
            places = self.places.get(told.tx_id, [])
            assert places == [(told.block, told.code)], f"{told}: {places}"
        values = self.values
        assert account.kept <= values.keys(), sorted(account.kept - values.keys())
        for key, value in values.items():
            assert account.asked.get(key) == value, key
        told_hot = {t.tx_id for t in account.told if t.key == HOT and t.code == VALID}
        assert told_hot <= set(self.hot)

    async def check_state(self, admin: Admin) -> None:
        """What chaincode reads is what the blocks say."""
        values = self.values
        keys = json.loads(await admin.value(self.name, "range", "u", "v"))
        assert keys == sorted(values)
        for start in range(0, len(keys), _BATCH):
            part = keys[start : start + _BATCH]
            found = json.loads(await admin.value(self.name, "multi", *part))
            assert found == [values[key] for key in part]
        history = json.loads(await admin.value(self.name, "history", HOT))
        assert [entry["tx"] for entry in reversed(history)] == self.hot

    @property
    def values(self) -> dict[str, str]:
        """All own keys of the load, with their values."""
        return {
            key: value.decode()
            for (namespace, key), (value, _) in self.state.items()
            if namespace == self.name and key.startswith("u-")
        }
