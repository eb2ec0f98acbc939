"""The part of the admin API that is about channels: their members and their ledgers.

Source: docs/admin-api.md
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import msgspec
from aiohttp import web

from chaindock.endorser.configuration import FOLLOWED
from chaindock.errors import InvalidInput
from chaindock.ids import require_chaincode_name
from chaindock.ledger.snapshots import END_OF_HISTORY
from chaindock.node.channels import NodeChannel
from chaindock.node.explorer import Explorer
from chaindock.node.facade import Node
from chaindock.operations import wire
from chaindock.operations.serving import Inflight, read_json, reply, reply_in_pieces
from chaindock.operations.stream import stream_lines

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_MOST_DIGITS = 18
_ROWS = 100


class ChannelRoutes:
    """Handlers of these routes."""

    def __init__(self, node: Node, inflight: Inflight) -> None:
        self._node, self._inflight = node, inflight

    def _channel(self, request: web.Request) -> NodeChannel:
        return self._node.channel(asked_channel(request))

    def _explorer(self, request: web.Request) -> Explorer:
        return self._channel(request).explorer

    def routes(self) -> Iterator[tuple[str, str, Handler]]:
        """Yield each method, path and handler."""
        yield "GET", "/channels", self._list
        yield "POST", "/channels", self._create
        yield "DELETE", "/channels/{name}", self._remove
        yield "GET", "/organizations", self._organizations
        yield "POST", "/organizations", self._add_organization
        yield "PUT", "/organizations/{name}", self._run_peer
        yield "POST", "/connections", self._connection
        yield "GET", "/state", self._names
        yield "GET", "/state/{name}", self._page
        yield "POST", "/state/{name}", self._write
        yield "GET", "/state/{name}/value", self._value
        yield "GET", "/state/{name}/history", self._history
        yield "GET", "/blocks", self._blocks
        yield "POST", "/blocks/cut", self._cut
        yield "GET", "/blocks/{number}", self._block
        yield "GET", "/transactions/{id}", self._transaction
        yield "GET", "/events", self._events
        yield "GET", "/snapshots", self._snapshots
        yield "POST", "/snapshots", self._snapshots
        yield "DELETE", "/snapshots/{name}", self._drop
        yield "POST", "/revert", self._revert
        yield "GET", "/time", self._time
        yield "PUT", "/time", self._time

    async def _list(self, _request: web.Request) -> web.Response:
        return reply({"channels": self._node.channel_list()})

    async def _create(self, request: web.Request) -> web.Response:
        asked = await read_json(request, _NewChannel, '{"name": NAME}')
        work = self._node.create_channel(*msgspec.structs.astuple(asked))
        return reply(await self._inflight.run(work))

    async def _remove(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        await self._inflight.run(self._node.remove_channel(name))
        return reply({"name": name})

    async def _organizations(self, request: web.Request) -> web.Response:
        found = self._node.organizations(asked_channel(request))
        return reply({"organizations": found})

    async def _add_organization(self, request: web.Request) -> web.Response:
        asked = await read_json(request, _Named, '{"name": NAME}')
        work = self._node.add_organization(asked.name, asked_channel(request))
        return reply(await self._inflight.run(work))

    async def _run_peer(self, request: web.Request) -> web.Response:
        asked = await read_json(request, _Running, '{"running": BOOL}')
        name, channel = request.match_info["name"], asked_channel(request)
        work = self._node.run_peer(name, channel, running=asked.running)
        return reply(await self._inflight.run(work))

    async def _connection(self, request: web.Request) -> web.Response:
        asked = await read_json(request, _Connecting, '{"user": NAME}')
        channel, describe = asked_channel(request), self._node.connections.describe
        work = asyncio.to_thread(describe, asked.user, asked.org, channel)
        return reply(await self._inflight.run(work))

    # ---- the ledger

    async def _names(self, request: web.Request) -> web.Response:
        return _answer(await self._explorer(request).names())

    async def _page(self, request: web.Request) -> web.Response:
        space, asked = _space(request), request.query
        prefix, start = asked.get("prefix", ""), asked.get("start", "")
        limit = number_of(request, "limit", _ROWS)
        cut = number_of(request, "cut", 1 << 60)
        page = self._explorer(request).page(space, prefix, start, limit, cut)
        return _answer(await page)

    async def _value(self, request: web.Request) -> web.Response:
        found = await self._explorer(request).value(*_space(request), _key(request))
        return _answer(found)

    async def _history(self, request: web.Request) -> web.Response:
        before = END_OF_HISTORY
        if text := request.query.get("before"):
            block, _, tx = text.partition(",")
            before = _digits("before", block), _digits("before", tx)
        found = await self._explorer(request).history(
            request.match_info["name"],
            _key(request),
            before,
            number_of(request, "limit", _ROWS),
        )
        return _answer(found)

    async def _blocks(self, request: web.Request) -> web.Response:
        if "limit" not in request.query:
            return reply({"height": self._channel(request).ledger.height})
        below = request.query.get("below")
        number = None if below is None else _digits("below", below)
        limit = number_of(request, "limit", 0)
        return _answer(await self._explorer(request).blocks(number, limit))

    async def _block(self, request: web.Request) -> web.Response:
        number = _digits("block", request.match_info["number"])
        brief = bool(number_of(request, "brief", 0))
        return _answer(await self._explorer(request).block(number, brief=brief))

    async def _transaction(self, request: web.Request) -> web.Response:
        return _answer(
            await self._explorer(request).transaction(request.match_info["id"])
        )

    async def _write(self, request: web.Request) -> web.Response:
        name = require_chaincode_name(request.match_info["name"])
        expected = '{"writes": [{"key": KEY, "value": BASE64}]}'
        body = await read_json(request, _Writes, expected)
        pairs = [(one.key, one.value) for one in body.writes]
        if body.collection:
            await self._explorer(request).require(name, body.collection)
        work = self._channel(request).controls.write(
            name, pairs, body.collection, body.org
        )
        answer = await self._inflight.run(work)
        return reply_in_pieces(wire.answer_json(answer))

    async def _cut(self, request: web.Request) -> web.Response:
        channel = self._channel(request)
        cut = await self._inflight.run(channel.orderer.cut())
        return reply({"transactions": cut, "height": channel.ledger.height})

    async def _snapshots(self, request: web.Request) -> web.Response:
        ledger = self._channel(request).ledger
        if request.method == "POST":
            name = (await read_json(request, _Named, '{"name": NAME}')).name
            return reply(vars(await self._inflight.run(ledger.take_snapshot(name))))
        found = await self._inflight.run(ledger.snapshots())
        return reply({"snapshots": [vars(mark) for mark in found]})

    async def _drop(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        work = self._channel(request).ledger.drop_snapshot(name)
        await self._inflight.run(work)
        return reply({"name": name})

    async def _revert(self, request: web.Request) -> web.Response:
        name = (await read_json(request, _Named, '{"name": NAME}')).name
        work = self._channel(request).controls.revert(name)
        return reply(await self._inflight.run(work))

    async def _time(self, request: web.Request) -> web.Response:
        if request.method == "GET":
            return reply(self._channel(request).controls.time())
        shift = await read_json(request, _Shift, '{"at_s": S} or {"advance_s": S}')
        told = msgspec.structs.asdict(shift)
        return reply(self._channel(request).controls.set_time(**told))

    async def _events(self, request: web.Request) -> web.StreamResponse:
        name, text = request.query.get("name", ""), request.query.get("from")
        first = None if text is None else _digits("from", text)
        follow = bool(number_of(request, "follow", 0))
        if not follow:  # a follower may wait for a chaincode that is deployed later
            await self._explorer(request).require(name, first=first)
        batches = self._explorer(request).events(
            name, first, follow=follow, over=lambda: self._inflight.closing
        )
        return await stream_lines(request, batches, "chaincode-event")


class _NewChannel(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    organizations: list[str] = []
    capability: str = FOLLOWED[-1]


class _Connecting(msgspec.Struct, forbid_unknown_fields=True):
    user: str
    org: str | None = None


class _Write(msgspec.Struct, forbid_unknown_fields=True):
    key: str
    value: bytes


class _Writes(msgspec.Struct, forbid_unknown_fields=True):
    writes: list[_Write]
    collection: str = ""
    org: str | None = None


class _Running(msgspec.Struct, forbid_unknown_fields=True):
    running: bool


class _Named(msgspec.Struct, forbid_unknown_fields=True):
    name: str = ""


class _Shift(msgspec.Struct, forbid_unknown_fields=True):
    at_s: float | None = None
    advance_s: float | None = None


def asked_channel(request: web.Request) -> str | None:
    """Return the channel that a request names."""
    return request.query.get("channel")


def _answer(body: bytes) -> web.Response:
    return web.Response(body=body, content_type="application/json")


def _space(request: web.Request) -> tuple[str, str]:
    return request.match_info["name"], request.query.get("collection", "")


def _key(request: web.Request) -> str:
    key = request.query.get("key", "")
    if not key:
        raise InvalidInput("the key is missing: expected ?key=KEY")
    return key


def number_of(request: web.Request, name: str, default: int) -> int:
    """Return a parameter that is a number. Raises: InvalidInput."""
    text = request.query.get(name)
    return default if text is None else _digits(name, text)


def _digits(what: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > _MOST_DIGITS:
        raise InvalidInput(f"{what} {text!r}: expected a number below 10^18")
    return int(text)
