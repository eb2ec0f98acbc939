"""Answer range queries, histories and their follow-ups.

A query reads no more than about 1 MiB from the ledger between two moments in which other
streams are served, and hands out batches that every shim can take.
Source: docs/fabric/shim-protocol.md#queries
"""

from __future__ import annotations

import uuid
from collections import deque
from typing import TYPE_CHECKING, Final

from fabric_protos.peer import chaincode_shim_pb2 as shim

from chaindock.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from chaindock.chaincode.calls import Call
    from chaindock.chaincode.options import StreamOptions
    from chaindock.ledger.simulator import Results

BATCH_RESULTS: Final = 100
"""Rows of one batch, as Fabric has it."""
BATCH_BYTES: Final = 1024 * 1024
"""A batch ends at this size: some shims take messages of 4 MiB only."""
PAGE_STEP: Final = 500
"""Rows of a page that are read at a time, if they are small."""
HELD_BYTES: Final = 64 * 1024 * 1024
"""What the open queries of one call may have read ahead; one row may be 10 MiB."""
STEP_BYTES: Final = 1024 * 1024
"""Bytes of a page that are read at a time; one row may be larger."""


class Query:
    """One open query: its rows, cut into batches.

    A batch that announces more is never followed by an empty one.

    Args:
        rows: of the ledger.
        limit: rows handed out in all; the rest is cut silently.
    """

    __slots__ = ("_left", "_pending", "_rows", "held", "name")

    def __init__(self, rows: Results, limit: int) -> None:
        self.name = str(uuid.uuid4())
        self._rows: Results | None = rows
        self._left = limit
        self._pending: deque[bytes] = deque()
        self.held = 0
        """Bytes that were read for the next batch."""

    def batch(self) -> tuple[list[bytes], bool]:
        """Return the next rows, and whether there are more."""
        pending = self._pending
        size = sum(map(len, pending))
        while len(pending) <= BATCH_RESULTS and size <= BATCH_BYTES:
            found = self._fetch(BATCH_RESULTS + 1 - len(pending))
            if not found:
                break
            size += found
        batch: list[bytes] = []
        size = 0
        while pending and len(batch) < BATCH_RESULTS:
            size += len(pending[0])
            if batch and size > BATCH_BYTES:
                break
            batch.append(pending.popleft())
        if not pending:
            # One row ahead, or the next batch might be empty.
            self._fetch(1)
        self.held = sum(map(len, pending))
        return batch, bool(pending)

    def _fetch(self, wanted: int) -> int:
        """Read up to `wanted` rows. Returns: their size in bytes."""
        if self._rows is None:
            return 0
        found = self._rows.take(min(wanted, self._left), BATCH_BYTES)
        self._left -= len(found)
        self._pending.extend(found)
        if self._rows.exhausted or self._left <= 0:
            self.close()
        return sum(map(len, found))

    def close(self) -> None:
        """Release the rows. Idempotent."""
        if self._rows is not None:
            self._rows.close()
            self._rows = None


def open_range(
    call: Call, request: shim.GetStateByRange, options: StreamOptions
) -> bytes | Generator[None, None, bytes]:
    """Answer GET_STATE_BY_RANGE of public state."""
    paging = shim.QueryMetadata.FromString(request.metadata)
    bounds = (call.namespace, request.startKey, request.endKey)
    limit = options.total_query_limit
    if not (paging.pageSize or paging.bookmark):
        return _first(call, call.simulator.open_range(*bounds), limit)
    size = min(paging.pageSize, limit) if paging.pageSize > 0 else limit
    rows = call.simulator.open_range(*bounds, page_size=size, bookmark=paging.bookmark)
    return _page(rows, size, options.max_message_bytes)


def _page(rows: Results, size: int, max_bytes: int) -> Generator[None, None, bytes]:
    """Return the one answer with all rows of a page; yield between two steps."""
    page: list[bytes] = []
    total = 0
    try:
        while True:
            found = rows.take(min(PAGE_STEP, size - len(page)), STEP_BYTES)
            page += found
            total += sum(map(len, found))
            if total > max_bytes:
                raise InvalidInput(
                    f"page of more than {max_bytes} bytes; ask for fewer than {size} "
                    "rows"
                )
            if not found or rows.exhausted or len(page) >= size:
                break
            yield
        bookmark = rows.bookmark
    finally:
        rows.close()
    metadata = shim.QueryResponseMetadata(
        fetched_records_count=len(page), bookmark=bookmark
    )
    return _response(page, has_more=False, name=str(uuid.uuid4()), metadata=metadata)


def open_history(call: Call, payload: bytes, options: StreamOptions) -> bytes:
    """Answer GET_HISTORY_FOR_KEY."""
    request = shim.GetHistoryForKey.FromString(payload)
    rows = call.simulator.open_history(call.namespace, request.key)
    return _first(call, rows, options.total_query_limit)


def next_batch(call: Call, payload: bytes, _options: StreamOptions) -> bytes:
    """Answer QUERY_STATE_NEXT."""
    name = shim.QueryStateNext.FromString(payload).id
    query = call.queries.get(name)
    if query is None:
        raise NotFound("query iterator not found")
    return _batch(call, query)


def close_query(call: Call, payload: bytes, _options: StreamOptions) -> bytes:
    """Answer QUERY_STATE_CLOSE; an unknown id is fine."""
    name = shim.QueryStateClose.FromString(payload).id
    _drop(call, name)
    return _response((), has_more=False, name=name)


def _first(call: Call, rows: Results, limit: int) -> bytes:
    query = Query(rows, limit)
    call.add_query(query)
    return _batch(call, query)


def _batch(call: Call, query: Query) -> bytes:
    try:
        rows, has_more = query.batch()
    except BaseException:
        _drop(call, query.name)
        raise
    if not has_more:
        _drop(call, query.name)
    elif sum(one.held for one in call.queries.values()) > HELD_BYTES:
        _drop(call, query.name)
        raise InvalidInput(
            f"open queries hold more than {HELD_BYTES} bytes; close some of them"
        )
    return _response(rows, has_more=has_more, name=query.name)


def _drop(call: Call, name: str) -> None:
    if (query := call.queries.pop(name, None)) is not None:
        query.close()


def _response(
    rows: Iterable[bytes],
    *,
    has_more: bool,
    name: str,
    metadata: shim.QueryResponseMetadata | None = None,
) -> bytes:
    response: bytes = shim.QueryResponse(
        results=[shim.QueryResultBytes(resultBytes=row) for row in rows],
        has_more=has_more,
        id=name,
        metadata=metadata.SerializeToString() if metadata is not None else b"",
    ).SerializeToString()
    return response
