"""The part of the admin API that is about channels and their members.

GET    /channels                    → {"channels": [{"name", "height",
                                       "organizations": [MSPID]}]}, the first first
POST   /channels       {"name", "organizations": [MSPID], [] = all}
       → the same of one
DELETE /channels/NAME               → {"name"}
GET    /organizations?channel=      → {"organizations": [{"mspid", "domain", "path",
                                       "orders", "address", "tls_name", "ca"}]}
POST   /organizations?channel=      {"name"} → the same of one, and "block"
POST   /connections?channel=        {"user", "org": as written, null = the first}
       → what a client needs, as node.connections.Connections.describe
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from chaindock.node.ledger_routes import asked_channel
from chaindock.operations.serving import read_json, reply

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiohttp import web

    from chaindock.node.facade import Node
    from chaindock.node.ledger_routes import Handler
    from chaindock.operations.serving import Inflight


class ChannelRoutes:
    """Handlers of these routes."""

    def __init__(self, node: Node, inflight: Inflight) -> None:
        self._node, self._inflight = node, inflight

    def routes(self) -> Iterator[tuple[str, str, Handler]]:
        """Yield each method, path and handler."""
        yield "GET", "/channels", self._list
        yield "POST", "/channels", self._create
        yield "DELETE", "/channels/{name}", self._remove
        yield "GET", "/organizations", self._organizations
        yield "POST", "/organizations", self._add_organization
        yield "POST", "/connections", self._connection

    async def _list(self, _request: web.Request) -> web.Response:
        return reply({"channels": self._node.channel_list()})

    async def _create(self, request: web.Request) -> web.Response:
        asked = await read_json(request, _NewChannel, '{"name": NAME}')
        work = self._node.create_channel(asked.name, asked.organizations)
        return reply(await self._inflight.run(work))

    async def _remove(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        await self._inflight.run(self._node.remove_channel(name))
        return reply({"name": name})

    async def _organizations(self, request: web.Request) -> web.Response:
        found = self._node.organizations(asked_channel(request))
        return reply({"organizations": found})

    async def _add_organization(self, request: web.Request) -> web.Response:
        asked = await read_json(request, _NewOrganization, '{"name": NAME}')
        work = self._node.add_organization(asked.name, asked_channel(request))
        return reply(await self._inflight.run(work))

    async def _connection(self, request: web.Request) -> web.Response:
        asked = await read_json(request, _Connecting, '{"user": NAME}')
        channel, describe = asked_channel(request), self._node.connections.describe
        work = asyncio.to_thread(describe, asked.user, asked.org, channel)
        return reply(await self._inflight.run(work))


class _NewChannel(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    organizations: list[str] = []


class _Connecting(msgspec.Struct, forbid_unknown_fields=True):
    user: str
    org: str | None = None


class _NewOrganization(msgspec.Struct, forbid_unknown_fields=True):
    name: str
