"""What an engine did not give is named; what it gave is not."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from chaindock.container.contracts import RunSettings
from chaindock.controllers.docker.options import SandboxOptions
from chaindock.controllers.docker.sandbox import (
    Attachment,
    container_lacks,
    engine_lacks,
    host_config,
    is_rootless,
    run_facts,
)
from chaindock.platforms.base import Connection

INFO = {
    "MemoryLimit": True,
    "SwapLimit": True,
    "CpuCfsQuota": True,
    "PidsLimit": True,
    "SecurityOptions": ["name=seccomp,profile=default"],
}


def asked() -> dict[str, Any]:
    return {"HostConfig": host_config(SandboxOptions()), "User": "501:501"}


def found(**changes: Any) -> dict[str, Any]:
    body = copy.deepcopy(asked())
    return {
        "HostConfig": {**body["HostConfig"], "CapAdd": None, **changes},
        "Config": {"User": "501:501"},
    }


def lacks(
    given: dict[str, Any] | None = None, info: dict[str, Any] | None = None
) -> list[str]:
    return list(container_lacks(asked(), given or found(), info or INFO))


def test_a_container_that_has_everything_lacks_nothing():
    assert lacks() == []


@pytest.mark.parametrize(
    ("changes", "phrase"),
    [
        ({"Memory": 0}, "no memory limit"),
        ({"MemorySwap": -1}, "no swap limit"),
        ({"CpuQuota": 0}, "no CPU limit"),
        ({"PidsLimit": None}, "no limit of processes"),
        ({"CapDrop": None}, "the chaincode has capabilities"),
        ({"CapAdd": ["NET_ADMIN"]}, "the chaincode has capabilities"),
        ({"SecurityOpt": None}, "the chaincode may gain privileges"),
        ({"ReadonlyRootfs": False}, "the root file system is writable"),
        ({"Privileged": True}, "no seccomp"),
        ({"Ulimits": [{"Name": "core", "Soft": 0, "Hard": 0}]}, "no limit fsize"),
    ],
)
def test_what_the_engine_dropped_is_named(changes, phrase):
    assert any(one.startswith(phrase) for one in lacks(found(**changes)))


@pytest.mark.parametrize(
    ("flag", "phrase"),
    [
        ("MemoryLimit", "no memory limit"),
        ("SwapLimit", "no swap limit"),
        ("CpuCfsQuota", "no CPU limit"),
        ("PidsLimit", "no limit of processes"),
    ],
)
def test_what_the_kernel_lacks_is_named_though_the_engine_took_it(flag, phrase):
    info = {**INFO, flag: False}
    assert any(one.startswith(phrase) for one in lacks(info=info))
    assert any(one.startswith(phrase) for one in engine_lacks(info))


@pytest.mark.parametrize("rootless", [{"Rootless": True}, {}])
@pytest.mark.parametrize("version", ["1", "2"])
def test_a_rootless_engine_has_no_limits_under_cgroup_v1(rootless, version):
    found = engine_lacks({**INFO, **rootless, "CgroupVersion": version})
    assert len(found) == (4 if rootless and version == "1" else 0)


@pytest.mark.parametrize(
    "options", [[], ["name=apparmor"], ["name=seccomp,profile=unconfined"]]
)
def test_an_engine_without_seccomp_is_named(options):
    info = {**INFO, "SecurityOptions": options}
    assert lacks(info=info) == ["no seccomp filter of system calls"]
    assert engine_lacks(info) == ["no seccomp filter of system calls"]


@pytest.mark.parametrize("user", ["", "0", "0:0", "root"])
def test_root_in_a_container_is_named(user):
    given = {**found(), "Config": {"User": user}}
    assert lacks(given) == ["the chaincode is root in its container"]


def test_an_engine_that_counts_processors_in_another_way_gives_them():
    assert lacks(found(CpuQuota=0, NanoCpus=2 * 10**9)) == []


def test_a_rootless_engine_is_seen():
    assert is_rootless({"SecurityOptions": ["name=seccomp", "name=rootless"]})
    assert not is_rootless(INFO)


def facts(
    attachment: Attachment, lacks: list[str], settings: RunSettings
) -> dict[str, str]:
    return run_facts({}, attachment, lacks, Connection.CALLS_BACK, settings)


def test_people_are_told_walls_gaps_and_settings():
    attachment = Attachment("n", "", "internal network", weaker=("a is open",))
    said = facts(attachment, ["no CPU limit"], RunSettings(network="shared"))
    assert said["isolation"] == "internal network"
    assert said["weaker"].startswith(
        "a is open; no CPU limit; by its settings it can connect"
    )
    assert "'shared'" in said["weaker"]
    assert said["settings"] == "network"
    assert facts(Attachment("n", "", "i"), [], RunSettings()) == {
        "isolation": "i",
        "stream": "plain, on the node's network",
    }
