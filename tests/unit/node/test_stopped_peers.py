"""The peer of an organisation is stopped: everything that serves it ends."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from chaindock.errors import EngineTimeout
from chaindock.ids import Ccid, at_peer
from chaindock.lifecycle.custodian import Custodian
from chaindock.node.facade import Node
from support.doubles.machine import Machine
from support.eventually import eventually

A, B = Ccid("a:" + "1" * 64), Ccid("b:" + "2" * 64)


async def closed(_mspid: str) -> None:
    return


async def test_one_process_that_cannot_be_stopped_leaves_no_other() -> None:
    machine = Machine()
    async with Custodian(machine) as custodian:
        for ccid in (A, B):
            await custodian.launch(ccid)
            await custodian.ready(at_peer(ccid, "Org2MSP"), 5)
        machine.runs[at_peer(A, "Org2MSP")].stop_error = EngineTimeout("no answer")
        node = object.__new__(Node)
        double: Any = SimpleNamespace(
            organizations=SimpleNamespace(stopped=set()),
            values=list,
            close=closed,
            serves=lambda ccid: ccid in {A, B},
        )
        node.channels = node.clients = node.fleet = double
        node.custodian = custodian
        with pytest.raises(EngineTimeout):
            await node._run_peer("Org2MSP", running=False)
        await eventually(lambda: {*machine.runs} == {A, B})
