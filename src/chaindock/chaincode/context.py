"""The node's record of one invocation that runs on a stream.

Owns:    the wait for its final message, its clock, its open queries, what it wrote.
Not:     whose turn it is (turns.py).
Entry:   Context
Holds:   one outcome, the first one; nothing of it stays open afterwards.
Source:  shim-protocol.md §4.4
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from chaindock.errors import InvalidInput

if TYPE_CHECKING:
    from fabric_protos.peer.chaincode_shim_pb2 import ChaincodeMessage

    from chaindock.chaincode.batches import Query
    from chaindock.chaincode.invocation import Invocation
    from chaindock.errors import ChaindockError

MAX_QUERIES = 1000
"""Open queries of one transaction. Shims close them; hostile chaincode may not."""
MAX_WRITTEN_BYTES = 256 * 1024 * 1024
"""A transaction has to fit into a message of 100 MiB; this leaves room to rewrite."""


class Context:
    """One running invocation."""

    __slots__ = (
        "final",
        "invocation",
        "is_init",
        "key",
        "namespace",
        "over",
        "queries",
        "sent",
        "simulator",
        "timeout_s",
        "timer",
        "written",
    )

    def __init__(self, invocation: Invocation, timeout_s: float) -> None:
        self.invocation = invocation
        self.key = (invocation.channel_id, invocation.tx_id)
        self.namespace = invocation.namespace
        self.simulator = invocation.simulator
        self.is_init = invocation.is_init
        self.timeout_s = timeout_s
        # An error is a result here: an abandoned future must not log it.
        self.final: asyncio.Future[ChaincodeMessage | ChaindockError] = (
            asyncio.get_running_loop().create_future()
        )
        self.timer: asyncio.TimerHandle | None = None
        self.queries: dict[str, Query] | None = None
        self.written = 0
        self.sent = False
        self.over = False

    def finish(self, final: ChaincodeMessage | ChaindockError) -> None:
        """Hand `final` to the waiter and release everything."""
        self.over = True
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if self.queries is not None:
            for query in self.queries.values():
                query.close()
            self.queries = None
        if not self.final.done():
            self.final.set_result(final)

    def note_written(self, size: int) -> None:
        """Count `size` more bytes. Raises: InvalidInput beyond the limit."""
        self.written += size
        if self.written > MAX_WRITTEN_BYTES:
            raise InvalidInput(
                f"transaction wrote {self.written} bytes, more than the limit of "
                f"{MAX_WRITTEN_BYTES}"
            )

    def add_query(self, name: str, query: Query) -> None:
        """Keep an open query. Raises: InvalidInput beyond the limit."""
        if self.queries is None:
            self.queries = {}
        if len(self.queries) >= MAX_QUERIES:
            query.close()
            raise InvalidInput(
                f"transaction holds {MAX_QUERIES} open queries; close some of them"
            )
        self.queries[name] = query
