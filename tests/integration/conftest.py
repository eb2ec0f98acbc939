"""Back ends: Docker by itself on each engine in turn, a node on each; the peer command."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.clients.peer_cli import PeerCli
from support.engines.each import ENGINES, Target, backend_on, engine
from support.nodes.node import BACKENDS, Node, started

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from support.clients.network import Network
    from support.engines.docker_backend import DockerBackend


@pytest.fixture(scope="module", params=ENGINES)
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    with engine(request.param) as target:
        yield target


@pytest.fixture
async def backend(tmp_path: Path, target: Target) -> AsyncIterator[DockerBackend]:
    async with backend_on(tmp_path, target) as backend:
        yield backend


@pytest.fixture(scope="module", params=BACKENDS)
def node(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Node]:
    with started(request.param, tmp_path_factory.mktemp("node")) as node:
        yield node


@pytest.fixture(scope="module")
def peer(net: Network, tmp_path_factory: pytest.TempPathFactory) -> PeerCli:
    return PeerCli(net, tmp_path_factory.mktemp("cli"))
