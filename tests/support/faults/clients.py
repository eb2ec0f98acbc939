"""Clients that call all the time, and a record of the answers that they got."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Self

from typing_extensions import override

from chaindock.errors import ChaindockError, ExecuteFailed, LaunchFailed, NodeError
from support.ledgers.audit import MVCC_READ_CONFLICT, VALID, Audit
from support.nodes.load import HOT, Account, Told

if TYPE_CHECKING:
    from collections.abc import Sequence

    from support.faults.world import World

REFUSED_PAUSE_S = 0.02
END_S = 120.0
_BATCH = 400
_numbers = itertools.count()


class CallRecord:
    """The calls to each chaincode and their answers, compared with the ledger."""

    def __init__(self) -> None:
        self.accounts: dict[str, Account] = {}
        self._audit = _Audit()

    def account(self, name: str) -> Account:
        return self.accounts.setdefault(name, Account())

    def put(self, world: World, name: str, timeout_s: float | None = None) -> Told:
        """Write a new key; record the answer. Raises: ChaindockError."""
        key = f"u-{name}-{next(_numbers)}"
        account = self.account(name)
        account.asked[key] = f"value of {key}"
        return self._submit(
            world, name, key, ("put", key, account.asked[key]), timeout_s
        )

    def add(self, world: World, name: str) -> Told:
        """Add one to the key that all clients count in. Raises: ChaindockError."""
        return self._submit(world, name, HOT, ("add", HOT), None)

    def _submit(
        self,
        world: World,
        name: str,
        key: str,
        args: Sequence[str],
        timeout_s: float | None,
    ) -> Told:
        account = self.account(name)
        try:
            answer = world.invoke(name, *args, timeout_s=timeout_s)
        except NodeError:
            account.lost += 1
            raise
        except ChaindockError as error:
            account.refused.append(error)
            raise
        assert answer["code"] in {VALID, MVCC_READ_CONFLICT}, answer
        told = Told(answer["tx_id"], answer["block"], answer["code"], key)
        account.told.append(told)
        return told

    def check(self, world: World, *, running: Sequence[str]) -> None:
        """The ledger holds each acknowledged write once, and its replay gives the state.

        Args:
            world: its node runs.
            running: chaincodes that can answer a query.
        """
        self._audit.read_new(world)
        for name, account in list(self.accounts.items()):
            self._audit.name = name
            self._audit.check_account(account)
        for name in running:
            self._audit.name = name
            self._check_state(world, name)

    def _check_state(self, world: World, name: str) -> None:
        values = self._audit.values
        keys = json.loads(world.query(name, "range", "u-", "v"))
        assert keys == sorted(values), f"{name}: keys differ from the blocks"
        for start in range(0, len(keys), _BATCH):
            part = keys[start : start + _BATCH]
            found = json.loads(world.query(name, "multi", *part))
            assert found == [values[key] for key in part], f"{name}: values differ"
        counted = self._audit.counted
        found = world.query(name, "get", HOT)
        assert found == (str(counted) if counted else ""), (
            f"{name}: {found!r}, not {counted}"
        )
        assert not world.query(name, "get", "crash"), "a crashed call left its write"


class _Audit(Audit):
    """Audits all chaincodes: `name` is the chaincode whose keys are checked."""

    def __init__(self) -> None:
        self._writers: dict[str, list[str]] = defaultdict(list)
        super().__init__("")

    def read_new(self, world: World) -> None:
        """Read the new blocks, as `read` does, without an event loop."""
        known = len(self.blocks)
        first = max(0, known - 1)
        blocks = world.admin.blocks(first)
        height = first + len(blocks)
        assert height >= known, f"the ledger shrank from {known} to {height} blocks"
        for number, block in enumerate(blocks, first):
            if number < known:
                assert block == self.blocks[number], f"block {number} changed"
            else:
                self._take(block)

    @override
    def _apply(self, tx: dict[str, Any], version: list[int]) -> None:
        super()._apply(tx, version)
        for write in tx["writes"]:
            if write["key"] == HOT:
                self._writers[write["namespace"]].append(tx["tx_id"])

    @property
    def counted(self) -> int:
        """How often the hot key of `name` was written."""
        return len(self._writers[self.name])

    @override
    def check_account(self, account: Account) -> None:
        self.hot = list(self._writers[self.name])
        super().check_account(account)


class Callers:
    """Threads that call chaincodes without a pause, until the block ends.

    Args:
        names: of the chaincodes.
        each: threads for each of them.
    """

    def __init__(
        self, world: World, calls: CallRecord, names: Sequence[str], each: int = 2
    ) -> None:
        self._world, self._calls = world, calls
        self._ended = threading.Event()
        self.answered = threading.Semaphore(0)
        self.slowest_s = 0.0
        self.defects: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._run, args=(name, number), daemon=True)
            for name in names
            for number in range(each)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(END_S)
            assert not thread.is_alive(), "a call does not end"
        assert not self.defects, self.defects

    def wait(self, answers: int, limit_s: float = 60.0) -> None:
        """Wait until that many more calls were answered."""
        for _ in range(answers):
            assert self.answered.acquire(timeout=limit_s), "no call is answered"

    def _run(self, name: str, number: int) -> None:
        try:
            while not self._ended.is_set():
                self._call(name, number)
        except BaseException as error:  # noqa: BLE001  # the test is told
            self.defects.append(error)

    def _call(self, name: str, number: int) -> None:
        began = time.monotonic()
        try:
            if number % 2:
                self._calls.add(self._world, name)
            else:
                self._calls.put(self._world, name)
            self.answered.release()
        except (NodeError, ExecuteFailed, LaunchFailed):
            # Only a restart of the node or of the chaincode excuses a refused call.
            time.sleep(REFUSED_PAUSE_S)
        self.slowest_s = max(self.slowest_s, time.monotonic() - began)
