"""A world state of a few dictionaries, as far as the stream uses a simulator."""

from __future__ import annotations

import hashlib
import itertools
from collections import defaultdict
from collections.abc import Callable
from typing import Any, cast

from fabric_protos.ledger.queryresult import kv_query_result_pb2
from fabric_protos.peer import chaincode_pb2, proposal_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from chaindock.chaincode.invocation import Invocation
from chaindock.errors import LedgerClosed, ReadOnlyViolation, Unsupported
from chaindock.ids import ChannelId, TxId

CHANNEL = ChannelId("dev")
NAMESPACE = "basic"
_numbers = itertools.count(1)


class MemoryState:
    """Committed keys of one namespace; `commit` applies a simulation."""

    def __init__(self, keys: dict[str, bytes] | None = None) -> None:
        self.keys: dict[str, bytes] = dict(keys or {})
        self.history: dict[str, list[bytes]] = defaultdict(list)

    def commit(self, simulator: MemorySimulator) -> None:
        for key, value in simulator.writes.items():
            self.history[key].append(value)
            if value:
                self.keys[key] = value
            else:
                self.keys.pop(key, None)


class MemorySimulator:
    """The part of ledger.Simulator that requests use."""

    def __init__(self, state: MemoryState) -> None:
        self._state = state
        self.reads: list[str] = []
        self.writes: dict[str, bytes] = {}
        self.paged = False
        self.closed = False
        self.queries: list[MemoryResults] = []
        self.asked: tuple[str, str, int, str] | None = None

    def _open(self) -> None:
        if self.closed:
            raise LedgerClosed("this instance should not be used after calling Done()")

    def get_state(self, ns: str, key: str) -> bytes | None:
        self._open()
        self.reads.append(key)
        return self._state.keys.get(key)

    def put_state(self, ns: str, key: str, value: bytes) -> None:
        self._open()
        if key == "forbidden":
            raise ReadOnlyViolation("txid [t]: unsuppored transaction")
        if key == "broken":
            raise ZeroDivisionError
        self.writes[key] = value

    def open_range(
        self, ns: str, start: str, end: str, *, page_size: int = 0, bookmark: str = ""
    ) -> MemoryResults:
        self._open()
        start = bookmark or start
        keys = sorted(
            k for k in self._state.keys if start <= k and (not end or k < end)
        )
        rest = ""
        if page_size:
            rest = keys[page_size] if len(keys) > page_size else ""
            keys = keys[:page_size]
        rows = [
            kv_query_result_pb2.KV(
                namespace=ns, key=key, value=self._state.keys[key]
            ).SerializeToString()
            for key in keys
        ]
        return self._keep(MemoryResults(rows, rest))

    def open_query(
        self,
        ns: str,
        query: str,
        *,
        collection: str,
        page_size: int,
        bookmark: str,
        parse: Any,
    ) -> MemoryResults:
        """Return the range from the bookmark on; its results let wait for them."""
        if query == "unsupported":
            raise Unsupported("the query is not supported")
        self.asked = (query, collection, page_size, bookmark)
        results = self.open_range(ns, "", "", page_size=page_size, bookmark=bookmark)
        results.waits = 3
        return results

    def open_history(self, ns: str, key: str) -> MemoryResults:
        self._open()
        rows = [
            kv_query_result_pb2.KeyModification(
                tx_id=f"tx{number}",
                value=value,
                timestamp=Timestamp(seconds=number + 1),
                is_delete=not value,
            ).SerializeToString()
            for number, value in enumerate(self._state.history[key])
        ]
        return self._keep(MemoryResults(rows[::-1], ""))

    def _keep(self, results: MemoryResults) -> MemoryResults:
        self.queries.append(results)
        return results

    def done(self) -> None:
        self.closed = True


class MemoryResults:
    """Rows of one query."""

    def __init__(self, rows: list[bytes], bookmark: str) -> None:
        self._rows = rows
        self.bookmark = bookmark
        self.closed = False
        self.waits = 0
        self.largest_take = 0
        """Bytes of the most that was read at a time."""
        self.slow: Callable[[], None] | None = None

    def advance(self) -> bool:
        if self.closed:
            raise LedgerClosed("the query was closed")
        self.waits -= 1
        return self.waits < 0

    def take(self, n: int, max_bytes: int) -> list[bytes]:
        if self.closed:
            raise LedgerClosed("the query was closed")
        taken: list[bytes] = []
        while self._rows and len(taken) < n and sum(map(len, taken)) < max_bytes:
            taken.append(self._rows.pop(0))
        self.largest_take = max(self.largest_take, sum(map(len, taken)))
        return taken

    @property
    def exhausted(self) -> bool:
        return not self._rows

    def close(self) -> None:
        self.closed = True


def new_tx() -> TxId:
    return TxId(hashlib.sha256(b"%d" % next(_numbers)).hexdigest())


def invocation(
    *args: bytes | str,
    state: MemoryState | None = None,
    tx_id: str | None = None,
    channel: str = CHANNEL,
    **fields: Any,
) -> Invocation:
    """Return an invocation with these arguments on `state`."""
    raw = [arg.encode() if isinstance(arg, str) else arg for arg in args]
    return Invocation(
        channel_id=ChannelId(channel),
        tx_id=TxId(tx_id) if tx_id is not None else new_tx(),
        namespace=NAMESPACE,
        input=chaincode_pb2.ChaincodeInput(args=raw),
        signed_proposal=fields.pop(
            "signed_proposal",
            proposal_pb2.SignedProposal(proposal_bytes=b"proposal", signature=b"sig"),
        ),
        nbytes=len(b"".join(raw)) + 100,
        simulator=cast("Any", MemorySimulator(state or MemoryState())),
        capability=fields.pop("capability", "V2_5"),
        **fields,
    )


def simulator_of(call: Invocation) -> MemorySimulator:
    """Return the simulator of an invocation made above."""
    return cast("MemorySimulator", call.simulator)
