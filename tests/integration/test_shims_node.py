"""The real Node shim and contract API."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.shims.builds import node_project
from support.shims.suite import RichShimSuite
from support.shims.world import Program, ShimWorld

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [pytest.mark.nodejs, pytest.mark.network, pytest.mark.timeout(300)]


def dials() -> Program:
    argv = ("node", "plain.js", "--peer.address", "{peer}")
    return Program((*argv, "--chaincode-id-name", "{ccid}"), node_project())


class TestNodeDials(RichShimSuite):
    @pytest.fixture
    def program(self) -> Program:
        return dials()


class TestNodeServes(RichShimSuite):
    @pytest.fixture
    def program(self) -> Program:
        address = {"CHAINCODE_SERVER_ADDRESS": "{listen}"}
        return Program(("node", "plain.js"), node_project(), dialled=True, env=address)


def contract_dials() -> Program:
    project = node_project()
    cli = str(project / "node_modules" / ".bin" / "fabric-chaincode-node")
    return Program((cli, "start", "--peer.address", "{peer}"), project)


def contract_serves() -> Program:
    project = node_project()
    cli = str(project / "node_modules" / ".bin" / "fabric-chaincode-node")
    where = ("--chaincode-address={listen}", "--chaincode-id={ccid}")
    return Program((cli, "server", *where), project, dialled=True)


@pytest.mark.parametrize("start", [contract_dials, contract_serves])
@pytest.mark.statement(25, by="node")
async def test_contract_api(start: Callable[[], Program], tmp_path: Path):
    async with ShimWorld(start(), tmp_path) as world:
        await world.value("put", "k", "v", commit=True)
        assert await world.value("get", "k") == b"v"
        assert await world.value("whoami") == b"Org1MSP"
        response = (await world.call("nothing")).response
        assert response.status == 500
        assert "does not exist" in response.message
