"""Answer what people ask about the ledger of a channel.

An answer is JSON that was made off the event loop; lists come page by page. Only
committed state is shown.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Concatenate, Final, ParamSpec

from fabric_protos.common import common_pb2
from fabric_protos.peer import transaction_pb2 as codes

from chaindock.endorser.channel import Members
from chaindock.errors import InvalidInput, LedgerClosed, LedgerError, NotFound
from chaindock.ids import ChannelId, SpaceName, require_chaincode_name
from chaindock.ledger.encoding import Version
from chaindock.ledger.ledger import Ledger, TxLocation
from chaindock.ledger.queries import encode_key
from chaindock.ledger.reader import Change, Entry, LedgerReader, View
from chaindock.ledger.snapshots import ABOVE_ALL, END_OF_HISTORY, after
from chaindock.ledger.transaction import parse_transaction
from chaindock.lifecycle.collections import IMPLICIT
from chaindock.lifecycle.definitions import DEFINITIONS, NAMESPACE, read_definition
from chaindock.node.conflicts import reasons
from chaindock.node.described import describe, describe_block, events_of, iso
from chaindock.operations.serving import encoded
from chaindock.operations.wire import encode
from chaindock.values import MIB

MOST: Final = 1000
"""Entries in a page; more are refused."""
PAGE_BYTES: Final = MIB
"""Keys and values read for a page, after which the page ends."""
BLOCKS_BYTES: Final = 16 * MIB
"""Blocks read for a page of the list of blocks, after which the page ends."""
COUNTED: Final = 10_000
_REMEMBERED: Final = 1000
"""Transactions whose requests are remembered."""
POLL_S: Final = 0.2
P = ParamSpec("P")
_DEFINED: Final = f"{DEFINITIONS}/metadata/".encode()
_MOST: Final = 10_000
"""Definitions that are read; later ones are left out of lists."""


def _answer(
    job: Callable[Concatenate[Explorer, View, P], Any],
) -> Callable[Concatenate[Explorer, P], Coroutine[Any, Any, bytes]]:
    """Have a method get a view of the ledger, in a thread; return its result as JSON."""

    async def answer(self: Explorer, /, *args: P.args, **named: P.kwargs) -> bytes:
        return await self._reader.run(
            lambda view: encoded(job(self, view, *args, **named))
        )

    return answer


class Explorer:
    """Looks into one channel's ledger; answers are serialised JSON."""

    def __init__(self, ledger: Ledger, reader: LedgerReader, members: Members) -> None:
        self._ledger, self._reader = ledger, reader
        self._members = members
        self._spent: dict[str, Mapping[str, Sequence[float]]] = {}

    def remember(self, tx_id: str, spent: Mapping[str, Sequence[float]]) -> None:
        """Keep what a transaction asked the node for; the oldest of many is dropped."""
        self._spent[tx_id] = spent
        while len(self._spent) > _REMEMBERED:
            del self._spent[next(iter(self._spent))]

    # ---- state

    @_answer
    def names(self, view: View) -> Any:
        """Return {"namespaces": [{name, collection, keys, more}]}: whose state there is.

        `collection`: "" = public. `more`: there are above `keys`, which were counted.
        """
        public = [(name, "") for name in (*defined(view), NAMESPACE)]
        spaces = sorted(
            [*public, *view.collections()], key=lambda one: (one[0] == NAMESPACE, one)
        )
        found = []
        for name, collection in spaces:
            keys = view.count(name, collection, COUNTED + 1)
            told: dict[str, Any] = {"name": name, "collection": collection}
            told |= {"keys": min(keys, COUNTED), "more": keys > COUNTED}
            found.append(told)
        return {"namespaces": found}

    @_answer
    def page(
        self,
        view: View,
        space: SpaceName,
        prefix: str,
        start: str,
        limit: int,
        cut: int,
    ) -> Any:
        """Return {"height", "rows": [row], "next"}: keys that begin with `prefix`.

        A row has `key`, `version` [block, position], `size` of the value in bytes, and
        `value`: base64 of its first `cut` bytes. `next` is the `start` of the next page,
        None at the end. Raises: InvalidInput.
        """
        _require(space[0], limit)
        low, high = encode_key(prefix), _stop(encode_key(prefix))
        require_space(view, *space)
        begin = max(low, encode_key(start))
        rows, ended = view.scan(*space, (begin, high), limit, PAGE_BYTES)
        following = None if ended else after(rows[-1].key).decode()
        shown = [_row(row, cut) for row in rows]
        return {"height": view.height(), "rows": shown, "next": following}

    @_answer
    def value(self, view: View, name: str, collection: str, key: str) -> Any:
        """Return the row of one key with its whole value, and who wrote it.

        `tx_id` and `time` are those of the transaction that wrote a public value.

        Raises: NotFound: absent, or this node has its hash only. InvalidInput.
        """
        _require(name)
        require_space(view, name, collection)
        row = view.get(name, collection, encode_key(key))
        if row is None:
            raise _absent(view, name, collection, key)
        if collection:
            return _row(row, len(row.value))
        last = next(view.history(name, row.key, END_OF_HISTORY), None)
        wrote = _wrote(last) if last is not None else {}
        return {**_row(row, len(row.value)), **wrote}

    @_answer
    def history(
        self, view: View, name: str, key: str, before: Version, limit: int
    ) -> Any:
        """Return {"rows": [row], "next"}: changes of a key before a version, newest first.

        A row has `version`, `tx_id`, `time`, `is_delete`, `size` and `value` (base64).
        `next` is the `before` of the next page, None at the end.

        Raises: InvalidInput.
        """
        _require(name, limit)
        require_space(view, name)
        rows: list[Change] = []
        size = 0
        for change in view.history(name, encode_key(key), before):
            if len(rows) == limit or size >= PAGE_BYTES:
                last = [rows[-1].block, rows[-1].tx]
                return {"rows": [_change(row) for row in rows], "next": last}
            rows.append(change)
            size += len(change.entry.value)
        return {"rows": [_change(row) for row in rows], "next": None}

    # ---- blocks

    @_answer
    def blocks(self, view: View, below: int | None, limit: int) -> Any:
        """Return {"height", "blocks": [block], "next"}, the newest first.

        A block has `number`, `hash`, `size` in bytes, `transactions`, `valid` (how many)
        and `time` of its first transaction. `next` is the `below` of the next page.

        Raises: InvalidInput.
        """
        _require(None, limit)
        height = view.height()
        number = height if below is None else min(below, height)
        found: list[dict[str, Any]] = []
        size = 0
        while number and len(found) < limit and size < BLOCKS_BYTES:
            number -= 1
            hashed, data = view.block(number)
            found.append({"hash": hashed.hex(), **_outline(number, data)})
            size += len(data)
        return {"height": height, "blocks": found, "next": number or None}

    @_answer
    def block(self, view: View, number: int, *, brief: bool) -> Any:
        """Return `describe_block` and its `hash`. Raises: NotFound."""
        hashed, data = view.block(number)
        return {"hash": hashed.hex(), **describe_block(data, brief=brief)}

    @_answer
    def transaction(self, view: View, tx_id: str) -> Any:
        """Return `describe` of a transaction, its `block`, why it was refused, `requests`.

        `requests` is what the chaincode asked the node for, as `Invocation.spent`; None
        if the node does not remember it. `tx_id` may be the beginning of an id.

        Raises: NotFound. InvalidInput: several ids begin like this.
        """
        if not tx_id or not tx_id.isascii() or not tx_id.isalnum():
            raise InvalidInput(
                f"transaction {tx_id!r}: expected its id, or the first digits of it"
            )
        _, place = view.find(tx_id.lower())
        block = common_pb2.Block.FromString(view.block(place.block)[1])
        envelope = block.data.data[place.index]
        found = describe(envelope, place.code, place.index)
        why = reasons(view, envelope, place, self._members)
        requests = self._spent.get(found["tx_id"])
        return {"block": place.block, **found, **why, "requests": requests}

    # ---- reasons

    async def reasons(self, envelope: bytes, place: TxLocation) -> dict[str, Any]:
        """Return `conflicts.reasons` of a committed transaction."""
        return await self._reader.run(
            lambda view: reasons(view, envelope, place, self._members)
        )

    # ---- events

    async def require(
        self, name: str, collection: str = "", first: int | None = None
    ) -> None:
        """Raise NotFound unless there are the chaincode, its collection and the block."""

        def job(view: View) -> None:
            if name:
                require_space(view, name, collection)
            if first is not None and first > view.height():
                view.block(first)

        await self._reader.run(job)

    async def events(
        self, name: str, first: int | None, *, follow: bool, over: Callable[[], bool]
    ) -> AsyncGenerator[list[dict[str, Any]], None]:
        """Yield the chaincode events of each block that has some, block by block.

        Args:
            name: only events of this chaincode; "" = of all.
            first: number of the first block; None = the next one.
            follow: wait for more blocks.
            over: whether followers are to end.
        """
        ledger = self._ledger
        number = ledger.height if first is None else first
        reverts = len(ledger.reverted_to)
        while True:
            number = min((number, *ledger.reverted_to[reverts:]))
            reverts = len(ledger.reverted_to)
            if number < ledger.height:
                read = partial(_events, number, name)
                number += 1
                with suppress(NotFound):  # the ledger was reverted meanwhile
                    if found := await self._reader.run(read):
                        yield found
            elif not follow or over():
                return
            else:
                try:
                    async with asyncio.timeout(POLL_S):
                        await ledger.wait_above(number)
                except LedgerClosed:  # the channel was removed
                    return
                except (TimeoutError, LedgerError):  # the latter: it was reverted
                    pass


def _events(number: int, name: str, view: View) -> list[dict[str, Any]]:
    found = events_of(view.block(number)[1])
    return [one for one in found if not name or one["chaincode"] == name]


def _outline(number: int, data: bytes) -> dict[str, Any]:
    block = common_pb2.Block.FromString(data)
    entries = block.data.data
    filter_ = block.metadata.metadata[common_pb2.TRANSACTIONS_FILTER]
    # Parsed for no channel, only headers are read.
    first = parse_transaction(entries[0], ChannelId("")) if entries else None
    return {
        "number": number,
        "size": len(data),
        "transactions": len(entries),
        "valid": filter_.count(codes.VALID),
        "time": first and iso(first.timestamp),
    }


def _row(row: Entry, cut: int) -> dict[str, Any]:
    return {
        "key": row.key.decode(),
        "version": [row.block, row.tx],
        "size": len(row.value),
        "value": encode(row.value[:cut]),
    }


def _wrote(change: Change) -> dict[str, Any]:
    return {"tx_id": change.entry.tx_id, "time": iso(change.entry.timestamp)}


def _change(change: Change) -> dict[str, Any]:
    return {
        "version": [change.block, change.tx],
        **_wrote(change),
        "is_delete": change.entry.is_delete,
        "size": len(change.entry.value),
        "value": encode(change.entry.value),
    }


def _absent(view: View, name: str, collection: str, key: str) -> NotFound:
    shown = f"key {key!r}"
    if key.startswith("\0"):
        shown = f"composite key {' '.join(key.split(chr(0))[1:-1])!r}"
    if collection:
        return NotFound(
            f"collection {collection!r} of {name!r} has no {shown}",
            hint=f"list the keys: chaindock state ls {name} --collection {collection}",
            key=key,
        )
    last = next(view.history(name, encode_key(key), END_OF_HISTORY), None)
    if last is None:
        hint = f"list the keys: chaindock state ls {name}"
        return NotFound(f"{name!r} has no {shown}", hint=hint, key=key)
    return NotFound(
        f"{shown} of {name!r} was deleted by transaction {last.entry.tx_id[:12]} in "
        f"block {last.block}",
        hint=f"see its former values: chaindock state history {name} KEY",
        key=key,
        tx_id=last.entry.tx_id,
    )


def _require(name: str | None, limit: int = 1) -> None:
    if name is not None and name != NAMESPACE:
        require_chaincode_name(name)
    if not 1 <= limit <= MOST:
        raise InvalidInput(f"limit {limit}: expected 1 to {MOST}")


def _stop(prefix: bytes) -> bytes:
    """Return the end of the range of keys that begin with `prefix`."""
    # No byte of UTF-8 is 0xff, so the last one can be raised.
    return prefix[:-1] + bytes([prefix[-1] + 1]) if prefix else ABOVE_ALL


# --- names that the ledger knows --------------------------------------------------------


def defined(view: View) -> list[str]:
    """Return the names of the chaincodes that are defined."""
    rows, _ = view.scan(NAMESPACE, "", (_DEFINED, _DEFINED + b"\xff"), _MOST, MIB)
    return [row.key.removeprefix(_DEFINED).decode() for row in rows]


def require_space(view: View, name: str, collection: str = "") -> None:
    """Raise NotFound unless the chaincode, and its collection unless "", are known.

    A chaincode is known when it is defined or has written; so is a collection.
    """
    if view.has_written(name, collection):
        return
    definition = None if name == NAMESPACE else read_definition(view, name)
    written = [one for one in view.collections() if one[0] == name]
    known = definition is not None or written or view.has_written(name, "")
    if not known and name != NAMESPACE:
        names = ", ".join(defined(view)) or "none"
        raise NotFound(
            f"there is no chaincode {name!r} on the ledger; it has {names}",
            hint="see which have state: chaindock state ls",
            chaincode=name,
        )
    if not collection or collection.startswith(IMPLICIT):
        return
    configs = definition.collections.config if definition else ()
    collections = [one.static_collection_config.name for one in configs]
    if collection not in collections:
        told = ", ".join(dict.fromkeys([*collections, *(one for _, one in written)]))
        raise NotFound(
            f"{name!r} has no collection {collection!r}; it has {told or 'none'}",
            hint=f"define it: chaindock deploy DIR --name {name} --collections-config FILE",
            chaincode=name,
            collection=collection,
        )
