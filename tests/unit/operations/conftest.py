"""An API in front of a node in memory, and a client."""

import json
from pathlib import Path

import aiohttp
import pytest

from chaindock.node.admin import AdminServer
from chaindock.operations.address import find_socket
from chaindock.operations.serving import AdminOptions
from support.doubles.fake_node import FakeNode


class Api:
    """Plain requests, decoded answers."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session

    async def ask(self, method: str, path: str, **options):
        async with self.session.request(
            method, f"http://node{path}", **options
        ) as answer:
            return answer.status, json.loads(await answer.read())

    async def stream(self, method: str, path: str, **options):
        async with self.session.request(
            method, f"http://node{path}", **options
        ) as answer:
            assert answer.status == 200
            assert answer.content_type == "application/x-ndjson"
            return [json.loads(line) async for line in answer.content]


@pytest.fixture
def node(tmp_path: Path):
    node = FakeNode(tmp_path)
    yield node
    node.close()


@pytest.fixture
def options() -> AdminOptions:
    return AdminOptions(max_package_bytes=1 << 20, max_call_bytes=1 << 20)


@pytest.fixture
async def api(tmp_path, node, options):
    async with (
        AdminServer(tmp_path, node, options),
        aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(str(find_socket(tmp_path)))
        ) as session,
    ):
        yield Api(session)
