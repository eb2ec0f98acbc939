"""The functions of `_lifecycle` about packages, and how an installed package goes."""

import asyncio
import base64
import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fabric_protos.peer.lifecycle import lifecycle_pb2

from chaindock.errors import InvalidInput, NotFound, TooManyRequests
from chaindock.identity.msp import Role
from chaindock.ids import ChannelId
from chaindock.lifecycle.contract import LifecycleContract
from chaindock.lifecycle.definitions import Definition
from chaindock.lifecycle.deployments import Deployments
from chaindock.packaging.rules import Limits
from chaindock.packaging.store import PackageStore
from support.doubles.deployments import Committer, Node, archive, package

OF_PACKAGES = (
    "GetInstalledChaincodePackage",
    "InstallChaincode",
    "QueryInstalledChaincode",
    "QueryInstalledChaincodes",
)
RECORDED = Path(__file__).parents[2] / "fixtures" / "fabric31" / "installs.json"


def somebody(role: Any = Role.ADMIN, mspid: str = "Org1MSP") -> Any:
    return SimpleNamespace(role=role, mspid=mspid)


async def call(
    node: Any, function: str, message: Any, who: Any = None, peer: str = "Org1MSP"
) -> Any:
    """Call without a channel, at the peer of an organisation, as its admin."""
    raw = message if isinstance(message, bytes) else message.SerializeToString()
    contract = LifecycleContract("", list, node.packages, lambda *_: None)
    args = [function.encode(), raw]
    return await contract.execute(None, args, who or somebody(mspid=peer), peer)


async def install(node: Any, content: bytes, peer: str = "Org1MSP") -> Any:
    args = lifecycle_pb2.InstallChaincodeArgs(chaincode_install_package=content)
    return await call(node, "InstallChaincode", args, peer=peer)


async def installed(node: Any, peer: str = "Org1MSP") -> Any:
    """Return package id → channel → names and versions."""
    args = lifecycle_pb2.QueryInstalledChaincodesArgs()
    answer = await call(node, "QueryInstalledChaincodes", args, peer=peer)
    found = lifecycle_pb2.QueryInstalledChaincodesResult.FromString(answer.payload)
    return {one.package_id: references(one) for one in found.installed_chaincodes}


def references(found: Any) -> Any:
    return {
        channel: [(one.name, one.version) for one in of.chaincodes]
        for channel, of in found.references.items()
    }


def commit(node: Any, ccid: Any, name: str = "basic", sequence: int = 1) -> None:
    definition = Definition(name=name, sequence=sequence, version=f"{sequence}.0")
    node.committer.approve(definition, ccid)
    node.committer.define(definition)


async def test_recorded_installs_get_the_same_answers(node):
    recorded = json.loads(RECORDED.read_text())
    assert len(recorded) == 4
    for one in recorded:
        args = base64.b64decode(one["args"])
        answer = await call(node, one["function"], args)
        assert (answer.status, answer.message) == (one["status"], one["message"])
        assert answer.payload == base64.b64decode(one["payload"])


async def test_a_package_is_told_with_its_users_in_each_channel(node):
    one = (await node.packages.install(package("one", "one_1"), "Org1MSP")).ccid
    two = (await node.packages.install(package("two", "two_1"), "Org1MSP")).ccid
    other: Any = Committer()
    other.channel = ChannelId("other")
    deployments = Deployments(other, lambda: ["Org1MSP"], node.fleet)
    await deployments.load()
    other.watchers = [deployments.note]
    commit(node, one, "a")
    commit(node, one, "b")
    commit(SimpleNamespace(committer=other), one, "a")
    assert await installed(node) == {
        one: {"mychannel": [("a", "1.0"), ("b", "1.0")], "other": [("a", "1.0")]},
        two: {},
    }
    args = lifecycle_pb2.QueryInstalledChaincodeArgs(package_id=one)
    answer = await call(node, "QueryInstalledChaincode", args)
    found = lifecycle_pb2.QueryInstalledChaincodeResult.FromString(answer.payload)
    assert (found.package_id, found.label) == (one, "one_1")
    assert references(found)["other"] == [("a", "1.0")]
    await node.deployer.remove("b")
    assert (await installed(node))[one]["mychannel"] == [("a", "1.0")]


async def test_each_organisation_installs_for_its_own_peer(node):
    assert (await install(node, package("one"))).status == 200
    (ccid,) = await installed(node)
    assert await installed(node, "Org2MSP") == {}
    args = lifecycle_pb2.GetInstalledChaincodePackageArgs(package_id=ccid)
    answer = await call(node, "GetInstalledChaincodePackage", args, peer="Org2MSP")
    assert "not found" in answer.message
    assert (await install(node, package("one"), "Org2MSP")).status == 200
    assert list(await installed(node, "Org2MSP")) == [ccid]
    for peer in ("Org1MSP", "Org2MSP"):
        answer = await install(node, package("one"), peer)
        assert "chaincode already successfully installed" in answer.message
    done = await node.deployer.deploy(package("two"), "basic")
    assert done.ccid in await installed(node, "Org2MSP")
    assert [one["installed_by"] for one in node.packages.list()] == [
        ["Org1MSP", "Org2MSP"] if one == ccid else [] for one in node.store.list()
    ]


async def test_what_is_not_installed_is_named(node):
    args = lifecycle_pb2.QueryInstalledChaincodeArgs(package_id="../../x:00")
    answer = await call(node, "QueryInstalledChaincode", args)
    assert answer.status == 404
    assert answer.message == "chaincode install package '../../x:00' not found"


HOSTILE = {
    "empty": b"",
    "text": b"no package",
    "cut off": package("one")[:-20],
    "no metadata": archive({"code.tar.gz": archive({"src/a": b""})}),
    "bad label": package("one", "bad label!"),
    "climbs out": package("one", more={"src/../../x": b""}),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
async def test_what_is_no_package_is_refused_and_leaves_nothing(node, content):
    answer = await install(node, content)
    assert answer.status == 500
    assert answer.message.startswith(
        "failed to invoke backing implementation of 'InstallChaincode': could not parse "
        "as a chaincode install package: "
    )
    assert await installed(node) == {}
    assert not node.targets.kept
    folder = node.root / "packages"
    assert not folder.exists() or not list(folder.iterdir())


async def test_a_package_above_the_limit_is_refused(node):
    node.packages._store = PackageStore(node.root / "p", Limits(package_bytes=100))
    answer = await install(node, package("one"))
    assert "a package has at most 100 bytes" in answer.message
    assert not list((node.root / "p").iterdir())


async def test_only_so_many_packages_come_at_once(node, monkeypatch):
    go_on, add = threading.Event(), node.store.add

    def slowly(content: Any) -> Any:
        assert go_on.wait(10)
        return add(content)

    monkeypatch.setattr(node.store, "add", slowly)
    coming = [
        asyncio.ensure_future(install(node, package(str(number))))
        for number in range(4)
    ]
    await asyncio.sleep(0)
    with pytest.raises(TooManyRequests, match="4 packages are being installed"):
        await node.packages.install(package("one more"), "Org1MSP")
    answer = await install(node, package("one more"))
    assert answer.message.endswith("4 packages are being installed already")
    go_on.set()
    assert [(await one).status for one in coming] == [200] * 4
    assert (await install(node, package("one more"))).status == 200


async def test_an_install_whose_client_leaves_is_complete(node):
    task = asyncio.ensure_future(node.packages.install(package("one"), "Org1MSP"))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (ccid,) = node.store.list()
    assert node.fleet.installed == {ccid}
    assert node.targets.kept == {ccid: {"Org1MSP"}}


@pytest.mark.statement(77, of="client")
@pytest.mark.parametrize(
    ("who", "text"),
    [
        (
            somebody(Role.CLIENT),
            "The identity is not an admin under this MSP [Org1MSP]",
        ),
        (somebody(mspid="Org2MSP"), "expected MSP ID Org1MSP, received Org2MSP"),
    ],
)
async def test_only_admins_of_the_peer_see_and_change_packages(node, who, text):
    for function in OF_PACKAGES:
        answer = await call(node, function, b"", who)
        assert answer.status == 500
        assert answer.message.startswith(
            "Failed to authorize invocation due to failed ACL check: "
        )
        assert text in answer.message


async def test_garbage_is_answered(node):
    for function in OF_PACKAGES:
        answer = await call(node, function, b"\xff" * 4)
        assert answer.message == (
            f"failed to invoke backing implementation of '{function}': could not decode "
            f"input arg for *lifecycle.Invocation.{function}: proto: cannot parse invalid "
            "wire-format data"
        )


# --- how long a package stays


async def test_an_installed_package_stays_over_deployments_and_restarts(tmp_path):
    async with Node(tmp_path) as node:
        kept = (await node.packages.install(package("one"), "Org1MSP")).ccid
        unused = (await node.packages.install(package("never"), "Org1MSP")).ccid
        await node.deployer.deploy(package("one"), "basic")
        last = await node.deployer.deploy(package("two"), "basic")
        await node.quiet()
        committer = node.committer
    async with Node(tmp_path, committer) as node:
        await node.restore()
        await node.quiet()
        assert node.store.list() == sorted([kept, unused, last.ccid])
        assert node.runtime.running == {last.ccid}
        await node.deployer.remove("basic")
        assert node.store.list() == sorted([kept, unused])


async def test_a_package_can_be_removed_when_nobody_runs_it(node):
    ccid = (await node.packages.install(package("one"), "Org1MSP")).ccid
    commit(node, ccid)
    await node.custodian.ready(ccid, 5)
    with pytest.raises(InvalidInput, match="is what basic runs"):
        await node.packages.remove(ccid)
    await node.deployer.remove("basic")
    assert node.store.list() == [ccid]
    await node.packages.remove(ccid)
    assert node.store.list() == []
    assert node.purged[-1] == (ccid, True)
    assert await installed(node) == {}
    with pytest.raises(NotFound, match="is not installed"):
        await node.packages.remove(ccid)


async def test_a_removed_chaincode_runs_again_when_its_package_is_installed_again(node):
    done = await node.deployer.deploy(package("one"), "basic")
    await node.deployer.remove("basic")
    assert node.store.list() == []
    assert (await install(node, package("one"))).status == 200
    await node.custodian.ready(done.ccid, 5)
    assert node.deployments.get("basic").approval.sequence == 1
