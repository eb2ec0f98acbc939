"""A chaincode that no supervisor watches any more is told by /healthz."""

from typing import Any

import pytest

from chaindock.errors import LaunchFailed
from chaindock.operations.health import Parts
from support.doubles.deployments import CHANNEL, Node, package


async def test_a_chaincode_that_nothing_watches_is_not_healthy(tmp_path):
    none: Any = None
    async with Node(tmp_path) as node:
        await node.deployer.deploy(package("one"), "basic")
        parts = Parts({CHANNEL: none}, node.fleet, node.custodian, none, tuple)
        check = parts.checks()["chaincode/basic"]
        await check()
        node.custodian._supervisors.clear()
        with pytest.raises(LaunchFailed, match="nothing watches it"):
            await check()
