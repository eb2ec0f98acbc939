"""Deploying onto a real ledger: definitions are transactions, and calls follow them."""

import asyncio
from functools import partial
from typing import Any, cast

import pytest
from fabric_protos.peer import proposal_response_pb2

from chaindock.chaincode.invocation import Kind
from chaindock.container.attempt import Attempt
from chaindock.endorser.acl import require
from chaindock.endorser.caller import Caller, DefinitionWriter
from chaindock.endorser.configuration import Configuration
from chaindock.endorser.cutting import OrdererOptions
from chaindock.endorser.endorser import Endorser
from chaindock.endorser.genesis import genesis_envelope
from chaindock.endorser.orderer import Orderer
from chaindock.errors import ChaincodeRetired, NotFound, StartFailed
from chaindock.ids import Ccid, ChannelId
from chaindock.ledger.ledger import Ledger
from chaindock.lifecycle.contract import LifecycleContract
from chaindock.lifecycle.custodian import Custodian
from chaindock.lifecycle.deploy import Deployer
from chaindock.lifecycle.deployments import Deployments, Fleet
from chaindock.lifecycle.packages import Packages
from chaindock.lifecycle.targets import TargetState
from chaindock.packaging.store import StoredPackage
from support.doubles.machine import Machine

CHANNEL = ChannelId("mychannel")


class Answers(Machine):
    """Stands for launcher and chaincode: answers with the package that runs."""

    def process_of(self, _mspid: Any) -> str:
        return ""

    async def execute(self, ccid: Any, invocation: Any, mspid: Any) -> Any:
        await asyncio.sleep(0)
        if ccid not in self.runs:
            raise ChaincodeRetired(f"chaincode {ccid} is not to run", ccid=ccid)
        invocation.simulator.put_state(invocation.namespace, "by", ccid.encode())
        said = proposal_response_pb2.Response(status=200, payload=ccid.encode())
        return Kind(type=Kind.COMPLETED, payload=said.SerializeToString())


async def keep_builds(ccid: Any) -> None:
    del ccid


class Store:
    def __init__(self) -> None:
        self.kept: set[Any] = set()

    def add(self, data: Any) -> Any:
        return data  # it comes stored

    def get(self, ccid: Any) -> Any:
        raise NotFound(f"{ccid} is not kept as a file")

    def remove(self, ccid: Any) -> Any:
        self.kept.discard(ccid)

    def list(self) -> list[Any]:
        return []

    def sweep(self, wanted: Any) -> Any:
        return []


def stored(label: Any, tmp_path: Any) -> Any:
    ccid = Ccid(f"{label}:" + (label[-1] * 64))
    return StoredPackage(ccid, label, "node", "", "0" * 64, tmp_path)


@pytest.fixture
async def parts(tmp_path: Any, org: Any) -> Any:
    machine: Any = Answers()
    targets = TargetState(tmp_path / "desired.db")
    opened = Ledger(
        tmp_path / "ledger.db",
        CHANNEL,
        org.orderer,
        lambda: genesis_envelope(CHANNEL, org.msp, OrdererOptions()),
    )
    async with opened as ledger:
        configuration = Configuration.of(ledger)
        deployments = Deployments(ledger, lambda: ["Org1MSP"], Fleet(targets))
        await deployments.load()
        endorser = Endorser(
            configuration=configuration,
            peers={org.mspid: org.peer},
            ledger=ledger,
            definitions=deployments,
            executor=machine,
            system={
                "_lifecycle": LifecycleContract(
                    CHANNEL,
                    lambda: ["Org1MSP"],
                    cast("Any", None),
                    partial(require, configuration),
                )
            },
        )
        async with (
            Orderer(ledger, configuration) as orderer,
            Custodian(machine) as custodian,
        ):
            caller = Caller(CHANNEL, endorser, orderer)
            store = cast(Any, Store())
            packages = Packages(store, deployments.fleet, custodian, keep_builds)
            async with (
                packages,
                Deployer(
                    deployments,
                    DefinitionWriter(caller, ledger, lambda: [org.admin]).commit,
                    lambda: ["Org1MSP"],
                    packages=packages,
                    custodian=custodian,
                    attempts=Attempt,
                ) as deployer,
            ):
                ledger.watchers.append(deployer.committed)
                yield deployer, caller, machine, targets
    targets.close()


async def test_calls_go_to_the_version_that_the_ledger_defines(parts, org, tmp_path):
    deployer, caller, _machine, _ = parts
    user = org.user("User1")
    sequences = []
    for label in ("v1", "v2", "v3"):
        done = await deployer.deploy(stored(label, tmp_path), "basic")
        said = await caller.invoke("basic", [b"who"], signer=user)
        assert said.payload.decode() == done.ccid
        assert said.code == 0
        sequences.append(done.sequence)
    assert sequences == [1, 2, 3]


async def test_an_upgrade_under_load_fails_no_call(parts, org, tmp_path):
    deployer, caller, _machine, _ = parts
    user = org.user("User1")
    await deployer.deploy(stored("v1", tmp_path), "basic")
    over = asyncio.Event()
    served = set()

    async def load() -> Any:
        while not over.is_set():
            said = await caller.invoke("basic", [b"who"], signer=user)
            assert said.code in {0, 11}, said
            served.add(said.payload.decode()[:2])
            asked = await caller.query("basic", [b"who"], signer=user)
            served.add(asked.payload.decode()[:2])
            await asyncio.sleep(0)

    users = [asyncio.ensure_future(load()) for _ in range(4)]
    for label in ("v2", "v3"):
        await deployer.deploy(stored(label, tmp_path), "basic")
        await asyncio.sleep(0.02)
    over.set()
    await asyncio.gather(*users)
    assert served >= {"v2", "v3"}


async def test_stopped_and_removed_answer_differently(parts, org, tmp_path):
    deployer, caller, machine, _desired = parts
    user = org.user("User1")
    await deployer.deploy(stored("v1", tmp_path), "basic")
    await deployer.stop("basic")
    assert machine.runs == {}
    with pytest.raises(StartFailed, match="was stopped"):
        await caller.query("basic", [b"who"], signer=user)
    await deployer.remove("basic")
    with pytest.raises(NotFound, match="exists, but chaincode is not installed"):
        await caller.query("basic", [b"who"], signer=user)
    done = await deployer.deploy(stored("v1", tmp_path), "basic")
    assert done.sequence == 2
    assert (await caller.query("basic", [b"who"], signer=user)).status == 200
