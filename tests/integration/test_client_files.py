"""What the node gives to applications and to the `peer` command, used as they do."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from fabric_protos.msp import msp_config_pb2
from google.protobuf.json_format import Parse

from chaindock.identity.organization import Organization
from support.clients.peer_cli import program
from support.nodes.node import EXAMPLES, PROCESS, Node, started
from support.nodes.pages import ROOT, run_in_shell
from support.shims import builds

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.slow,
    pytest.mark.nodejs,
    pytest.mark.golang,
    pytest.mark.network,
    pytest.mark.timeout(600),
]
TASKS = ROOT / "docs" / "tasks"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node of two organisations that runs the contract `coldchain`."""
    with started(PROCESS, tmp_path_factory.mktemp("node")) as node:
        node.cli("org", "add", "Org2")
        node.deploy(EXAMPLES / "node", "coldchain")
        yield node


def in_shell(node: Node, script: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-ec", script],
        env={**node.env, **env},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("org", ["Org1", "Org2"])
@pytest.mark.parametrize("user", ["Admin", "User1"])
def test_the_peer_command_loads_the_msp_directory_and_connects(
    node: Node, org: str, user: str
):
    """It checks certificate, key, roots and roles, as Fabric's does."""
    lines = node.cli("env", "peer", "--org", org, "--user", user).out.decode()
    done = in_shell(node, f"{lines}\n{program()} channel list")
    assert done.returncode == 0, done.stderr
    assert "mychannel" in done.stdout.splitlines()


def test_the_programs_show_a_certificate_if_the_node_asks_for_one(tmp_path: Path):
    key = "peer.tls.clientAuthRequired=true"
    with started(PROCESS, tmp_path, "--set", key) as node:
        node.deploy(EXAMPLES / "node", "coldchain")
        test_the_program_for_java_runs(node, _folder(tmp_path / "j"))
        test_the_program_for_node_runs(node, _folder(tmp_path / "n"), "Org1")
        # The clients of an organisation that joins are admitted at once.
        node.cli("org", "add", "Org2")
        test_the_program_for_go_runs(node, _folder(tmp_path / "g"))


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.parametrize("tls", ["mutual", "none"])
def test_the_lines_fit_a_node_with_mutual_tls_or_without_tls(tmp_path: Path, tls: str):
    """The options for the orderer are those of the comment."""
    key = "clientAuthRequired=true" if tls == "mutual" else "enabled=false"
    with started(PROCESS, tmp_path, "--set", f"peer.tls.{key}") as node:
        told = node.cli("env", "peer").out.decode()
        flags = told.rpartition("# peer … ")[2].replace("-C ", "-c ").strip()
        fetch = f"{program()} channel fetch newest {tmp_path}/block {flags}"
        done = in_shell(node, f"{told}\n{program()} channel list\n{fetch}")
        assert done.returncode == 0, done.stderr
        assert "mychannel" in done.stdout.splitlines()
        assert (tmp_path / "block").stat().st_size > 1000


@pytest.mark.parametrize("of", ["msp", "peers/*/msp", "orderers/*/msp", "users/*/msp"])
def test_each_directory_says_what_a_channel_says(tmp_path: Path, of: str):
    """Read by Fabric's rules, the directory has the definition of our channels."""
    org = Organization.open(tmp_path, "Org1MSP", "org1.example.com")
    (folder,) = org.path.glob(of)
    argv = [str(program()), "inspect", "msp", str(folder), "--name", "Org1MSP"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = Parse(done.stdout, msp_config_pb2.FabricMSPConfig())
    ours = msp_config_pb2.FabricMSPConfig.FromString(org.msp.config().config)
    assert found == ours


def test_the_node_is_the_same_in_a_shell_of_the_peer_command(tmp_path: Path):
    with started(PROCESS, tmp_path) as node:
        node.cli("org", "add", "Org2")
        before = node.ask("status")
        lines = node.cli("env", "peer", "--org", "Org2").out.decode()
        again = " ".join(node.argv("--json", "up", "-d", "--backend", "process"))
        node.cli("down")
        done = in_shell(node, f"{lines}\n{again}")
        assert done.returncode == 0, done.stderr
        after = json.loads(done.stdout)
        same = ("msp_id", "channel", "height", "identities", "warnings")
        assert [after[key] for key in same] == [before[key] for key in same]
        assert after["gateway"]["tls_name"] == "peer0.org1.example.com"
        assert set(after["endpoints"]) == set(before["endpoints"])


def calls(node: Node, org: str, words: list[str], cwd: Path, parcel: str) -> None:
    """Submit and evaluate with a program that `connect` has printed."""
    submit = [*words, "submit", "register", parcel, "2", "8"]
    for argv in (submit, [*words, "evaluate", "parcel", parcel]):
        done = subprocess.run(
            argv, cwd=cwd, env=node.env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        assert (found["id"], found["custodian"]) == (parcel, f"{org}MSP")
    for argv in (words, [*words, "parcel", parcel]):
        done = subprocess.run(
            argv, cwd=cwd, capture_output=True, text=True, check=False
        )
        assert done.returncode in {1, 2}
        assert "submit|evaluate FUNCTION ARG..." in done.stderr


@pytest.mark.parametrize("org", ["Org1", "Org2"])
def test_the_program_for_node_runs(node: Node, tmp_path: Path, org: str):
    project = builds.node_project(EXAMPLES / "apps" / "node")
    (tmp_path / "node_modules").symlink_to(project / "node_modules")
    program = node.cli("connect", "coldchain", "--org", org, "--lang", "node").out
    (tmp_path / "app.mjs").write_bytes(program)
    calls(node, org, ["node", "app.mjs"], tmp_path, f"N{org}")


def test_the_program_for_go_runs(node: Node, tmp_path: Path):
    for name in ("go.mod", "go.sum"):
        (tmp_path / name).write_bytes((EXAMPLES / "apps" / "go" / name).read_bytes())
    program = node.cli("connect", "coldchain", "--org", "Org2", "--lang", "go").out
    (tmp_path / "main.go").write_bytes(program)
    build = ["go", "build", "-ldflags=-w", "-o", "app", "."]
    subprocess.run(build, cwd=tmp_path, env=node.env, check=True)
    calls(node, "Org2", ["./app"], tmp_path, "G1")


def test_the_program_for_java_runs(node: Node, tmp_path: Path):
    jars = builds.java_classes(EXAMPLES / "apps" / "java") / "lib"
    program = node.cli("connect", "coldchain", "--lang", "java").out
    (tmp_path / "App.java").write_bytes(program)
    compile_ = ["javac", *builds.JAVAC, "-cp", f"{jars}/*", "App.java"]
    subprocess.run(compile_, cwd=tmp_path, check=True)
    words = ["java", *builds.JAVA, "-cp", f".:{jars}/*", "App"]
    calls(node, "Org1", words, tmp_path, "J1")


@pytest.mark.parametrize("page", ["applications.md", "peer-cli.md"])
def test_the_page_shows_what_happens(tmp_path: Path, page: str):
    folder = tmp_path / "reader"
    folder.mkdir()
    with started(PROCESS, tmp_path) as node:
        run_in_shell(node, TASKS / page, folder, {"peer": program()})
