"""What a chaincode container is created with."""

from __future__ import annotations

import base64
import io
import tarfile
from dataclasses import replace
from typing import Any

from chaindock.container.attempt import Attempt
from chaindock.container.contracts import (
    ClientTls,
    NodeLabels,
    PeerConnection,
    RunSettings,
)
from chaindock.controllers.docker.images import BaseImage, BuiltImage
from chaindock.controllers.docker.options import DockerOptions, SandboxOptions, Ulimit
from chaindock.controllers.docker.sandbox import Attachment, run_body
from chaindock.controllers.docker.streams import tls_archive
from chaindock.ids import Ccid
from chaindock.platforms.base import Connection, LaunchCommand
from chaindock.values import MIB
from support.doubles.backend import CountingListener

CCID = Ccid("basic:" + "0" * 64)
TLS = ClientTls("KEY\n", "CERT\n", "ROOT\n")
GO = LaunchCommand(
    ("{output}/chaincode", "-peer.address={peer}"), "{output}", Connection.CALLS_BACK
)
SERVED = LaunchCommand(
    ("{tool:python3}", "main.py"), "{output}", Connection.DIALLED, {"ADDR": "{listen}"}
)
INSIDE = Attachment("net", "10.0.0.1:7052", "internal", dns=("127.0.0.1",))
LOGGING = {
    "CORE_CHAINCODE_LOGGING_LEVEL": "INFO",
    "CORE_CHAINCODE_LOGGING_SHIM": "WARN",
    "CORE_CHAINCODE_LOGGING_FORMAT": "%{message}",
}


def body(
    launch: LaunchCommand = GO,
    tls: ClientTls | None = None,
    attachment: Attachment = INSIDE,
    options: DockerOptions | None = None,
    settings: RunSettings | None = None,
) -> dict[str, Any]:
    return run_body(
        options or DockerOptions(),
        NodeLabels("node1", "peer0", "dev"),
        BuiltImage(CCID, "image:key", "/usr/local/bin", launch, BaseImage("", "")),
        PeerConnection(
            CountingListener(), "Org1MSP", tls, LOGGING, settings or RunSettings()
        ),
        Attempt(CCID),
        attachment,
    )


def test_command_and_environment_are_those_of_a_fabric_peer():
    made = body()
    assert made["Image"] == "image:key"
    assert made["Cmd"] == ["/usr/local/bin/chaincode", "-peer.address=10.0.0.1:7052"]
    assert made["Env"][:6] == [
        f"CORE_CHAINCODE_ID_NAME={CCID}",
        "CORE_CHAINCODE_LOGGING_LEVEL=INFO",
        "CORE_CHAINCODE_LOGGING_SHIM=WARN",
        "CORE_CHAINCODE_LOGGING_FORMAT=%{message}",
        "CORE_PEER_TLS_ENABLED=false",
        "CORE_PEER_LOCALMSPID=Org1MSP",
    ]
    assert not made["AttachStdout"]
    assert "Volumes" not in made


def test_with_tls_the_files_are_named_in_fabrics_order():
    made = body(tls=TLS)
    assert made["Env"][4:11] == [
        "CORE_PEER_TLS_ENABLED=true",
        "CORE_TLS_CLIENT_KEY_PATH=/etc/hyperledger/fabric/client.key",
        "CORE_TLS_CLIENT_CERT_PATH=/etc/hyperledger/fabric/client.crt",
        "CORE_TLS_CLIENT_KEY_FILE=/etc/hyperledger/fabric/client_pem.key",
        "CORE_TLS_CLIENT_CERT_FILE=/etc/hyperledger/fabric/client_pem.crt",
        "CORE_PEER_TLS_ROOTCERT_FILE=/etc/hyperledger/fabric/peer.crt",
        "CORE_PEER_LOCALMSPID=Org1MSP",
    ]
    assert list(made["Volumes"]) == ["/etc/hyperledger/fabric"]


def test_tls_files_have_fabrics_names_and_encodings():
    with tarfile.open(fileobj=io.BytesIO(tls_archive(TLS))) as tar:
        entries = {entry.name: entry for entry in tar}
        found = {name: tar.extractfile(e).read() for name, e in entries.items()}  # type: ignore[union-attr]
    assert found == {
        "client.key": base64.b64encode(b"KEY\n"),
        "client.crt": base64.b64encode(b"CERT\n"),
        "client_pem.key": b"KEY\n",
        "client_pem.crt": b"CERT\n",
        "peer.crt": b"ROOT\n",
    }
    assert {(e.mode, e.uid, e.gid) for e in entries.values()} == {(0o644, 0, 0)}


def test_rights_are_taken_away_by_default():
    made = body()
    host = made["HostConfig"]
    assert made["User"] == "501:501"
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["ReadonlyRootfs"]
    assert list(host["Tmpfs"]) == ["/tmp"]
    assert host["Memory"] == host["MemorySwap"] == 2147483648
    assert host["PidsLimit"] == 512
    assert host["CpuQuota"] == 200_000
    assert host["LogConfig"]["Config"]["max-size"]
    assert host["NetworkMode"] == "net"
    assert host["Dns"] == ["127.0.0.1"]


def test_whose_container_it_is_stands_on_it():
    labels = body()["Labels"]
    assert labels["org.chaindock.node"] == "node1"
    assert labels["org.chaindock.ccid"] == CCID
    assert labels["org.chaindock.role"] == "chaincode"
    assert labels["org.chaindock.attempt"]


def test_zero_means_no_limit():
    sandbox = SandboxOptions(memory_bytes=0, cpus=0, pids=0)
    host = body(options=DockerOptions(sandbox=sandbox))["HostConfig"]
    assert not {"Memory", "CpuQuota", "PidsLimit"} & host.keys()


def test_the_users_own_dns_counts():
    sandbox = SandboxOptions(dns=("10.1.1.1",), extra_hosts=("a:10.0.0.9",))
    attachment = replace(INSIDE, extra_hosts=("b:host-gateway",))
    host = body(options=DockerOptions(sandbox=sandbox), attachment=attachment)
    assert host["HostConfig"]["Dns"] == ["10.1.1.1"]
    assert host["HostConfig"]["ExtraHosts"] == ["a:10.0.0.9", "b:host-gateway"]


def test_chaincode_that_is_dialled_listens_inside_and_knows_its_id():
    made = body(SERVED, tls=TLS)
    assert made["Cmd"] == ["python3", "main.py"]
    assert "CHAINCODE_SERVER_ADDRESS=0.0.0.0:9999" in made["Env"]
    assert f"CHAINCODE_ID={CCID}" in made["Env"]
    assert "ADDR=0.0.0.0:9999" in made["Env"]
    assert "CORE_PEER_TLS_ENABLED=false" in made["Env"]
    assert "PortBindings" not in made["HostConfig"]


def test_a_published_port_is_on_loopback_only():
    host = body(SERVED, attachment=replace(INSIDE, publishes=True))["HostConfig"]
    assert host["PortBindings"] == {
        "9999/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}]
    }


def test_settings_of_one_chaincode_take_the_place_of_the_defaults():
    options = DockerOptions(
        sandbox=SandboxOptions(cpu_quota=5000, extra_hosts=("a:10.0.0.1",))
    )
    settings = RunSettings(
        memory_bytes=64 * MIB,
        cpus=0.5,
        pids=0,
        tmp_bytes=8 * MIB,
        env={"HOME": "/elsewhere", "TOKEN": "t"},
        network="shared",
        extra_hosts=("b:10.0.0.2",),
        user="600:600",
    )
    made = body(options=options, settings=settings)
    host = made["HostConfig"]
    assert host["Memory"] == host["MemorySwap"] == 64 * MIB
    assert (host["CpuQuota"], host["CpuPeriod"]) == (50_000, 100_000)
    assert "PidsLimit" not in host
    assert "size=8388608" in host["Tmpfs"]["/tmp"]
    assert host["ExtraHosts"] == ["a:10.0.0.1", "b:10.0.0.2"]
    assert made["User"] == "600:600"
    # One of each name, and with a network of its own names are looked up there.
    assert [line for line in made["Env"] if line.startswith("HOME=")] == [
        "HOME=/elsewhere"
    ]
    assert "TOKEN=t" in made["Env"]
    assert host["Dns"] == []


def test_limits_of_one_process_are_set_and_can_be_others():
    def limits(**changes: Any) -> dict[str, tuple[int, int]]:
        made = body(options=DockerOptions(sandbox=SandboxOptions(**changes)))
        given = made["HostConfig"]["Ulimits"]
        return {one["Name"]: (one["Soft"], one["Hard"]) for one in given}

    tmp = 64 * MIB
    assert limits() == {
        "core": (0, 0),
        "nofile": (4096, 4096),
        "nproc": (4096, 4096),
        "fsize": (tmp, tmp),
    }
    assert limits(file_bytes=MIB)["fsize"] == (MIB, MIB)
    given = limits(ulimits=(Ulimit("nofile", 10, 20), Ulimit("stack", 1, 1)))
    assert given["nofile"] == (10, 20)
    assert given["stack"] == (1, 1)


def test_limits_of_fabric_are_handed_on():
    sandbox = SandboxOptions(
        cpu_shares=512,
        cpu_quota=20_000,
        cpu_period=50_000,
        cpuset_cpus="0",
        cgroup_parent="/cd",
        security_opt=("apparmor=docker-default",),
    )
    host = body(options=DockerOptions(sandbox=sandbox))["HostConfig"]
    assert (host["CpuQuota"], host["CpuPeriod"]) == (20_000, 50_000)
    assert (host["CpuShares"], host["CpusetCpus"]) == (512, "0")
    assert host["CgroupParent"] == "/cd"
    assert host["SecurityOpt"] == ["no-new-privileges", "apparmor=docker-default"]
