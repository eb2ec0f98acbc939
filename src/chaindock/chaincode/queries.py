"""Answer queries: ranges, pages, histories and rich queries, batch by batch.

Source: docs/fabric/shim-protocol.md#queries
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from types import GeneratorType
from typing import Any, Final

from fabric_protos.peer import chaincode_shim_pb2 as shim
from google.protobuf.message import DecodeError

from chaindock.chaincode.invocation import Call, Nested, Payload, Query, Steps
from chaindock.chaincode.options import StreamOptions
from chaindock.chaincode.wire import why_unreadable
from chaindock.errors import InvalidInput, NotFound, Unsupported
from chaindock.ledger.budget import Budget
from chaindock.ledger.encoding import LEAD, SHORT, lead
from chaindock.ledger.mango.query import is_quick, parse_query
from chaindock.ledger.mango.results import QueryResults
from chaindock.ledger.queries import STEP_BYTES, RangeResults, Results

SLICE: Final = 500
"""Keys, records or rows of one request that are handled in one step."""
_slow: Final = ThreadPoolExecutor(2, "rich-query")


def open_range(
    call: Call, request: shim.GetStateByRange, options: StreamOptions
) -> Payload | Steps:
    """Open a query of keys; of a collection, no page but a bound of the results."""
    paging = _paging_of(request.metadata)
    invocation, collection = call.invocation, request.collection
    simulator, ns = invocation.simulator, invocation.namespace
    limit = options.total_query_limit
    size = min(paging.pageSize, limit) if paging.pageSize > 0 else limit
    if collection:
        stored = invocation.require(collection)
        found = simulator.open_private_range(
            ns, collection, request.startKey, request.endKey
        )
        found.exhausted = not stored  # a peer without the values finds none
        return _batch(call, call.open_query(found, size))
    bounds = (ns, request.startKey, request.endKey)
    if not (paging.pageSize or paging.bookmark):
        return _batch(call, call.open_query(simulator.open_range(*bounds), limit))
    rows = simulator.open_range(*bounds, page_size=size, bookmark=paging.bookmark)
    name = f"the page (ask for fewer than {size} rows)"
    return _page(rows, size, Budget(options.max_message_bytes, name, call.budget))


def _paging_of(metadata: bytes) -> shim.QueryMetadata:
    try:
        return shim.QueryMetadata.FromString(metadata)
    except DecodeError:
        raise InvalidInput(f"unmarshal failed: {why_unreadable(metadata)}") from None


def _page(rows: RangeResults | QueryResults, size: int, budget: Budget) -> Steps:
    """Return the one answer with all rows of a page."""
    page: list[bytes] = []
    count = 0
    try:
        while True:
            while not rows.advance():
                yield _pause(rows)
            found = rows.take(min(SLICE, size - count), STEP_BYTES)
            budget.take(sum(map(len, found)))
            count += len(found)
            page.append(b"".join(_rows(found, "", more=False)))
            if not found or rows.exhausted or count >= size:
                break
            yield None
        while not rows.advance():
            yield _pause(rows)
        bookmark = rows.bookmark
    finally:
        rows.close()
        budget.give_back()
    metadata = shim.QueryResponseMetadata(
        fetched_records_count=count, bookmark=bookmark
    )
    last = {"more": False, "metadata": metadata.SerializeToString()}
    return page + _rows((), str(uuid.uuid4()), **last)


def open_history(
    call: Call, request: shim.GetHistoryForKey, options: StreamOptions
) -> Payload | Steps:
    """Open the history of a key, newest first."""
    if not options.history_database:
        raise Unsupported("history database is not enabled")
    invocation = call.invocation
    rows = invocation.simulator.open_history(invocation.namespace, request.key)
    return _batch(call, call.open_query(rows, options.total_query_limit))


def next_batch(
    call: Call, request: shim.QueryStateNext, _options: StreamOptions
) -> Payload | Steps:
    """Return the next results of an open query."""
    query = call.queries.get(request.id)
    if query is None:
        raise NotFound("query iterator not found")
    return _batch(call, query)


def close_query(
    call: Call, request: shim.QueryStateClose, _options: StreamOptions
) -> Payload:
    """Release a query; one that is not open is no error."""
    call.drop_query(request.id)
    return _rows((), request.id, more=False)


def _batch(call: Call, query: Query) -> list[bytes] | Steps:
    try:
        if not query.advance():
            return _later(call, query)
        rows, more = query.batch()
    except BaseException:
        call.drop_query(query.name)
        raise
    if not more:
        call.drop_query(query.name)
    return _rows(rows, query.name, more=more)


def _later(call: Call, query: Query) -> Steps:
    """Return the batch of a query that has to look at many keys for it."""
    while True:
        yield _pause(query.rows)
        answer = _batch(call, query)
        if isinstance(answer, list):
            return answer


def _pause(rows: Results | None) -> Nested | None:
    """Return what is done between two steps of a query."""
    return partial(_done, rows.slow) if rows and rows.slow else None


def _rows(
    rows: Iterable[bytes], name: str, *, more: bool, metadata: bytes = b""
) -> list[bytes]:
    """Return a QueryResponse in pieces; those of several make one message."""
    parts: list[bytes] = []
    for row in rows:  # each a QueryResultBytes
        size = len(row)
        if size < SHORT - 2:
            parts.append(LEAD[1][size + 2] + LEAD[1][size] + row)
        else:
            inner = lead(1, size)
            parts += lead(1, len(inner) + size), inner, row
    rest = shim.QueryResponse(has_more=more, id=name, metadata=metadata)
    parts.append(rest.SerializeToString())
    return parts


def open_query(
    call: Call, request: shim.GetQueryResult, options: StreamOptions
) -> Payload | Steps:
    """Open a rich query; of a collection, no page but a bound of the results."""
    if is_quick(request.query):
        return _open_query(call, request, options, parse_query)
    return _open_slow(call, request, options)


def _open_slow(
    call: Call, request: shim.GetQueryResult, options: StreamOptions
) -> Steps:
    bookmark = "" if request.collection else _paging_of(request.metadata).bookmark
    parse = yield partial(_done, partial(parse_query, request.query, bookmark))
    found: Any = _open_query(call, request, options, parse)
    result: Payload = (yield from found) if isinstance(found, GeneratorType) else found
    return result


async def _done(work: Callable[[], Any]) -> Callable[..., Any]:
    """Do `work` in a thread; return what returns its result, or raises its error."""
    made = _slow.submit(work)
    with suppress(InvalidInput):
        await asyncio.wrap_future(made)
    return lambda *_: made.result()


def _open_query(
    call: Call,
    request: shim.GetQueryResult,
    options: StreamOptions,
    parse: Callable[[str, str], Any],
) -> Payload | Steps:
    paging = _paging_of(request.metadata)
    invocation, collection = call.invocation, request.collection
    stored = not collection or invocation.require(collection)
    limit = options.total_query_limit
    size = min(paging.pageSize, limit) if paging.pageSize > 0 else limit
    pages = bool(paging.pageSize or paging.bookmark)
    if options.state_database == "goleveldb":
        text = "ExecuteQueryWithMetadata" if pages else "ExecuteQuery"
        raise Unsupported(f"{text} not supported for leveldb")
    paged = pages and not collection
    rows = invocation.simulator.open_query(
        invocation.namespace,
        request.query,
        collection=collection,
        page_size=size if paged else 0,
        bookmark=paging.bookmark if paged else "",
        parse=parse,
    )
    if not stored:
        rows.exhausted = True
    if not paged:
        return _batch(call, call.open_query(rows, size))
    name = f"the page (ask for fewer than {size} rows)"
    return _page(rows, size, Budget(options.max_message_bytes, name, call.budget))
