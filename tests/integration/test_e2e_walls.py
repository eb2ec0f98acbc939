"""How a contract is shut in: what it is given, and what it is not."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from chaindock.controllers.process.instance import SANDBOX
from support.nodes.node import DOCKER, EXAMPLES, FIXTURES, SECRETS, Node
from support.nodes.remains import inspect, inspect_network

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.slow,
    pytest.mark.nodejs,
    pytest.mark.network,
    pytest.mark.timeout(300),
]
PROBE = """\
const fs = require('fs');
const { writable } = require('./writable');
const open = fs.existsSync('/proc/self/fd') ? fs.readdirSync('/proc/self/fd') : [];
const links = open.map((fd) => {
    try { return fs.readlinkSync(`/proc/self/fd/${fd}`); } catch { return ''; }
});
console.log('probe ' + JSON.stringify({
    env: process.env, argv: process.argv, uid: process.getuid(), files: links,
    written: ['/', '/etc', process.cwd(), '/tmp'].filter(writable),
}));
"""
WRITABLE = """\
const fs = require('fs');
exports.writable = (folder) => {
    const file = `${folder}/probe-${process.pid}`;
    try { fs.writeFileSync(file, ''); fs.unlinkSync(file); return true; } catch { return false; }
};
"""
GIVEN = {
    *("PATH", "HOME", "TMPDIR", "LANG", "HOSTNAME"),
    *("CORE_CHAINCODE_ID_NAME", "CORE_PEER_LOCALMSPID", "CORE_PEER_TLS_ENABLED"),
    *("CORE_TLS_CLIENT_KEY_PATH", "CORE_TLS_CLIENT_CERT_PATH"),
    *("CORE_TLS_CLIENT_KEY_FILE", "CORE_TLS_CLIENT_CERT_FILE"),
    *("CORE_PEER_TLS_ROOTCERT_FILE", "CORE_CHAINCODE_BUILDLEVEL"),
    *("CORE_CHAINCODE_LOGGING_LEVEL", "CORE_CHAINCODE_LOGGING_SHIM"),
    *("CORE_CHAINCODE_LOGGING_FORMAT", "CHAINDOCK_NODE", "CHAINDOCK_RUN"),
    *("npm_config_logs_max", "npm_config_update_notifier"),
}
EVERYWHERE = {"NODE_VERSION", "YARN_VERSION", "PWD", "SHLVL", "_"}
"""What images and shells set themselves."""


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    """A contract that says what it sees, and ends."""
    folder = tmp_path / "probe"
    folder.mkdir()
    manifest = {
        "name": "probe",
        "version": "1.0.0",
        "scripts": {"start": "node probe.js"},
    }
    (folder / "package.json").write_text(json.dumps(manifest))
    (folder / "probe.js").write_text(PROBE)
    (folder / "writable.js").write_text(WRITABLE)
    return folder


def seen_by(node: Node, probe: Path) -> dict[str, Any]:
    told = node.ask("deploy", probe, code=4)
    lines = [line for line in told["facts"]["output"] if line.startswith("probe ")]
    found: dict[str, Any] = json.loads(lines[0].removeprefix("probe "))
    return found


def test_a_contract_is_given_what_it_needs_and_no_secrets(node: Node, probe: Path):
    seen = seen_by(node, probe)
    assert set(seen["env"]) - EVERYWHERE <= GIVEN
    text = json.dumps(seen)
    assert [secret for secret in SECRETS.values() if secret in text] == []
    assert not [file for file in seen["files"] if str(node.home) in file]
    assert not [file for file in seen["files"] if "docker.sock" in file]
    if node.backend == "docker":
        assert seen["uid"] == 501
    assert seen["written"] == ["/tmp"]


def test_a_build_gets_registry_settings_and_no_other_secrets(
    node: Node, tmp_path: Path
):
    folder = tmp_path / "curious"
    folder.mkdir()
    tell = "console.log('probe ' + JSON.stringify(process.env)); process.exit(1)"
    scripts = {"build": f'node -e "{tell}"', "start": "node dist/index.js"}
    manifest = {"name": "curious", "version": "1.0.0", "main": "dist/index.js"}
    (folder / "package.json").write_text(json.dumps({**manifest, "scripts": scripts}))
    (folder / "tsconfig.json").write_text("{}")
    seen = seen_by(node, folder)
    assert seen["NPM_TOKEN"] == SECRETS["NPM_TOKEN"]
    others = set(SECRETS.values()) - {SECRETS["NPM_TOKEN"]}
    assert not others & set(seen.values())


@pytest.mark.parametrize("source", ["node", "python"])
@pytest.mark.parametrize("node", [DOCKER], indirect=True)
def test_a_container_has_its_walls(node: Node, source: str):
    """`node` dials, `python` is dialled."""
    name = f"walled-{source}"
    node.deploy(EXAMPLES / source, name)
    found = inspect(node.where(name))
    host, config = found["HostConfig"], found["Config"]
    assert config["User"] == "501:501"
    assert host["CapDrop"] == ["ALL"]
    assert not host["CapAdd"]
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["ReadonlyRootfs"] is True
    assert host["Privileged"] is False
    assert host["Memory"] == host["MemorySwap"] == 2048 * 1024**2
    assert host["CpuQuota"] == 2 * host["CpuPeriod"]
    assert host["PidsLimit"] == 512
    assert host["LogConfig"] == {
        "Type": "json-file",
        "Config": {"max-size": str(10 * 1024**2), "max-file": "3"},
    }
    assert not host["Binds"]
    assert not host["PortBindings"]
    assert (host["PidMode"], host["IpcMode"]) == ("", "private")
    assert host["RestartPolicy"]["Name"] in {"", "no"}
    (network,) = found["NetworkSettings"]["Networks"]
    attached = inspect_network(network)
    assert attached["Internal"] is True
    assert attached["Labels"]["org.chaindock.node"] == node.id
    mounts = {mount["Destination"]: mount["Type"] for mount in found["Mounts"]}
    assert set(mounts.values()) <= {"volume"}
    assert set(mounts) <= {"/etc/hyperledger/fabric"}
    assert not [
        line for line in config["Env"] if set(line.split("=", 1)) & {*SECRETS.values()}
    ]


def test_ps_says_which_walls_there_are(node: Node):
    name = node.deploy(FIXTURES / "foreign" / "node-shim")["name"]
    line = node.ps(name)
    assert line is not None
    isolation = line["details"]["isolation"]
    if node.backend == "docker":
        assert "internal network" in isolation
    else:
        assert isolation == SANDBOX
        assert "memory 2048 MiB" in line["details"]["limits"]
    assert isolation[:16] in node.cli("ps").out.decode()
