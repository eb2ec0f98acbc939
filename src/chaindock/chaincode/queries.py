"""Queries: what a chaincode asks of them, and what it is answered.

Owns:    the messages; pages, bookmarks.
Not:     batches (batches.py), which rows there are (ledger), text of ERROR replies
         (requests.py).
Entry:   open_range, open_history, next_batch, close_query
Holds:   no more than one step of rows is fetched without letting others run.
Source:  shim-protocol.md §5
"""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING, Final

from fabric_protos.peer import chaincode_shim_pb2 as shim

from chaindock.chaincode.batches import Query
from chaindock.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    from collections.abc import Iterable

    from chaindock.chaincode.context import Context
    from chaindock.ledger.results import Results

PAGE_STEP: Final = 500
"""Rows of a page fetched before other streams get their turn."""
NO_CONTEXT: Final = "no ledger context"


async def open_range(
    context: Context,
    request: shim.GetStateByRange,
    total_limit: int,
    max_bytes: int,
) -> bytes:
    """Answer GET_STATE_BY_RANGE of public state (limits in rows and bytes)."""
    paging = shim.QueryMetadata.FromString(request.metadata)
    bounds = (context.namespace, request.startKey, request.endKey)
    if not (paging.pageSize or paging.bookmark):
        return _first(context, context.simulator.open_range(*bounds), total_limit)
    size = min(paging.pageSize, total_limit) if paging.pageSize > 0 else total_limit
    results = context.simulator.open_range(
        *bounds, page_size=size, bookmark=paging.bookmark
    )
    try:
        rows = await _page(context, results, size, max_bytes)
        bookmark = results.bookmark
    finally:
        results.close()
    metadata = shim.QueryResponseMetadata(
        fetched_records_count=len(rows), bookmark=bookmark
    )
    return _response(rows, has_more=False, name=str(uuid.uuid4()), metadata=metadata)


async def _page(
    context: Context, results: Results, size: int, max_bytes: int
) -> list[bytes]:
    rows: list[bytes] = []
    total = 0
    while len(rows) < size:
        wanted = min(PAGE_STEP, size - len(rows))
        found = results.take(wanted)
        rows += found
        total += sum(map(len, found))
        if total > max_bytes:
            raise InvalidInput(
                f"page of more than {max_bytes} bytes; ask for fewer than {size} rows"
            )
        if len(found) < wanted:
            break
        if len(rows) < size:
            await asyncio.sleep(0)  # let other streams run
            if context.over:
                raise NotFound(NO_CONTEXT)
    return rows


def open_history(context: Context, payload: bytes, total_limit: int) -> bytes:
    """Answer GET_HISTORY_FOR_KEY."""
    request = shim.GetHistoryForKey.FromString(payload)
    results = context.simulator.open_history(context.namespace, request.key)
    return _first(context, results, total_limit)


def next_batch(context: Context, payload: bytes) -> bytes:
    """Answer QUERY_STATE_NEXT."""
    name = shim.QueryStateNext.FromString(payload).id
    query = context.queries.get(name) if context.queries else None
    if query is None:
        raise NotFound("query iterator not found")
    return _batch(context, query)


def close_query(context: Context, payload: bytes) -> bytes:
    """Answer QUERY_STATE_CLOSE; an unknown id is fine."""
    name = shim.QueryStateClose.FromString(payload).id
    _drop(context, name)
    return _response((), has_more=False, name=name)


def _first(context: Context, results: Results, total_limit: int) -> bytes:
    query = Query(results, total_limit)
    context.add_query(query.name, query)
    return _batch(context, query)


def _batch(context: Context, query: Query) -> bytes:
    try:
        rows, has_more = query.batch()
    except BaseException:
        _drop(context, query.name)
        raise
    if not has_more:
        _drop(context, query.name)
    return _response(rows, has_more=has_more, name=query.name)


def _drop(context: Context, name: str) -> None:
    if context.queries and (query := context.queries.pop(name, None)) is not None:
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
