"""Every key of Fabric about chaincode is used with its meaning, or said why not."""

from pathlib import Path

import pytest

from chaindock.config.load import load
from chaindock.config.sections import KNOWN, Config
from chaindock.controllers.docker.options import Ulimit
from chaindock.errors import ConfigInvalid

HOST = "vm.docker.hostConfig."
KEYS = """
chaincode.id.path chaincode.id.name chaincode.builder chaincode.pull
chaincode.golang.runtime chaincode.golang.dynamicLink chaincode.java.runtime
chaincode.node.runtime chaincode.externalBuilders chaincode.installTimeout
chaincode.startuptimeout chaincode.executetimeout chaincode.mode chaincode.keepalive
chaincode.system._lifecycle chaincode.system.cscc chaincode.logging.level
chaincode.logging.shim chaincode.logging.format chaincode.runtimeParams.useWriteBatch
chaincode.runtimeParams.maxSizeWriteBatch chaincode.runtimeParams.useGetMultipleKeys
chaincode.runtimeParams.maxSizeGetMultipleKeys ledger.state.totalQueryLimit
vm.endpoint vm.docker.tls.enabled vm.docker.tls.ca.file vm.docker.tls.cert.file
vm.docker.tls.key.file vm.docker.attachStdout peer.id peer.networkId peer.localMspId
peer.address peer.chaincodeListenAddress peer.chaincodeAddress peer.tls.enabled
peer.fileSystemPath peer.maxRecvMsgSize peer.maxSendMsgSize
"""
HOST_KEYS = """
NetworkMode Dns DnsSearch ExtraHosts LogConfig.Type LogConfig.Config.max-size
LogConfig.Config.max-file CapAdd CapDrop IpcMode PidMode UTSMode ReadonlyRootfs
SecurityOpt Memory MemorySwap MemorySwappiness OomKillDisable CpuShares CpuQuota
CpuPeriod CpusetCPUs CpusetMEMs CgroupParent BlkioWeight Privileged Binds Links
PortBindings Mounts Tmpfs PidsLimit Ulimits NanoCpus RestartPolicy Runtime UsernsMode
GroupAdd
"""
FABRIC = [*KEYS.split(), *(HOST + name for name in HOST_KEYS.split())]


@pytest.mark.parametrize("key", FABRIC)
def test_a_key_of_fabric_is_used_or_has_a_reason(tmp_path, key):
    if key.lower() in KNOWN:
        return
    parts = key.split(".")
    text = "".join(f"{'  ' * depth}{part}:\n" for depth, part in enumerate(parts))
    (tmp_path / "core.yaml").write_text(text.rstrip("\n") + " x\n")
    (ignored,) = load(tmp_path, env={}).ignored
    assert ignored.key == key
    assert ignored.reason


def host(tmp_path: Path, text: str) -> Config:
    (tmp_path / "core.yaml").write_text(f"vm: {{docker: {{hostConfig: {{{text}}}}}}}\n")
    return load(tmp_path, env={})


def test_limits_of_fabric_reach_the_sandbox(tmp_path):
    text = (
        "Memory: 268435456, CpuShares: 512, CpuQuota: 50000, CpuPeriod: 200000, "
        "CpusetCPUs: 0-1, CpusetMEMs: '0', PidsLimit: 64, CgroupParent: /cd, "
        "Ulimits: [{Name: nofile, Soft: 100, Hard: 200}], "
        "SecurityOpt: ['no-new-privileges:true', 'apparmor=docker-default'], "
        "Dns: [10.0.0.1], ExtraHosts: ['a:10.0.0.2']"
    )
    config = host(tmp_path, text)
    sandbox = config.docker.sandbox
    assert sandbox.memory_bytes == config.process.memory_bytes == 2**28
    assert (sandbox.cpu_shares, sandbox.cpu_quota) == (512, 50_000)
    assert (sandbox.cpu_period, sandbox.pids) == (200_000, 64)
    assert (sandbox.cpuset_cpus, sandbox.cpuset_mems) == ("0-1", "0")
    assert sandbox.cgroup_parent == "/cd"
    assert sandbox.ulimits == (Ulimit("nofile", 100, 200),)
    assert sandbox.security_opt == ("apparmor=docker-default",)
    assert sandbox.dns == ("10.0.0.1",)
    assert sandbox.extra_hosts == ("a:10.0.0.2",)


def test_limits_can_be_given_as_text(tmp_path):
    flags = {f"{HOST}Ulimits": "nofile=100:200,core=0"}
    found = load(tmp_path, flags, env={}).docker.sandbox.ulimits
    assert found == (Ulimit("nofile", 100, 200), Ulimit("core", 0, 0))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SecurityOpt: ['seccomp=unconfined']", "not taken away"),
        ("SecurityOpt: ['apparmor:unconfined']", "not taken away"),
        ("SecurityOpt: ['label=disable']", "not taken away"),
        ("SecurityOpt: ['no-new-privileges=false']", "not taken away"),
        ("Ulimits: [{Name: nofile, Soft: 300, Hard: 200}]", "not above the hard one"),
        ("Ulimits: [{Name: files, Soft: 1}]", "nofile"),
        ("Ulimits: [{Name: nofile, Soft: -1}]", "Name, Soft and Hard"),
        ("Dns: [example]", "IP addresses"),
        ("ExtraHosts: [nowhere]", "host:IP"),
        ("Memory: 1k", "6m or more"),
        ("CpuQuota: -1", "0 or more"),
        ("CpusetCPUs: all", "0-2,4"),
    ],
)
def test_values_that_cannot_be_honoured_are_refused_with_their_line(
    tmp_path, text, expected
):
    with pytest.raises(ConfigInvalid) as caught:
        host(tmp_path, text)
    assert expected in caught.value.message
    assert f"{tmp_path / 'core.yaml'}:1" in caught.value.message


def test_a_password_in_a_wrong_value_is_not_repeated(tmp_path):
    with pytest.raises(ConfigInvalid) as caught:
        load(tmp_path, {"chaindock.build.variables": "NPM_TOKEN hunter2"}, env={})
    assert "hunter2" not in caught.value.message
