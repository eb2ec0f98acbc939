"""Without an engine, and with a package that nobody takes: what people are told."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from support import archives
from support.nodes.node import FIXTURES, PROCESS, Node, environment, eventually, started

pytestmark = [
    pytest.mark.slow,
    pytest.mark.nodejs,
    pytest.mark.network,
    pytest.mark.timeout(300),
]
SHIM = FIXTURES / "foreign" / "node-shim"


def nowhere(folder: Path) -> dict[str, str]:
    """Name an engine that is not there."""
    return {"DOCKER_HOST": f"unix://{folder}/no-engine.sock"}


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A user who named no engine and has none in the usual places."""
    if Path("/var/run/docker.sock").exists():
        pytest.skip("an engine of this machine listens on /var/run/docker.sock")
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_without_an_engine_chaincode_runs_as_a_process_and_the_reason_is_told(
    tmp_path: Path, no_engine: None
):
    with started("auto", tmp_path / "node") as node:
        assert node.status["backend"] == PROCESS
        assert "no container engine answers" in node.status["reason"]
        assert "less isolated" in node.status["reason"]
        assert "chaindock doctor" in node.status["reason"]
        done = node.deploy(SHIM, "notes")
        assert done["backend"] == PROCESS
        assert "no container engine answers" in done["reason"]
        node.invoke("notes", "put", "n1", "kept")
        assert node.query("notes", "get", "n1") == b"kept"


def test_a_named_engine_that_is_not_there_makes_nothing_a_process(tmp_path: Path):
    with started("auto", tmp_path, **nowhere(tmp_path)) as node:
        assert node.status["backend"] == "docker"
        told = node.ask("deploy", SHIM, "--name", "notes", code=None)
        assert told["error"] == "build-failed", told
        assert f"{tmp_path}/no-engine.sock" in told["message"]
        assert "DOCKER_HOST" in told["message"]
        assert "--backend process" in told["hint"]
        assert node.ask("ps") == []
        done = node.ask("deploy", SHIM, "--name", "notes", "--backend", PROCESS)
        assert done["backend"] == PROCESS


def test_an_engine_that_was_asked_for_and_is_not_there_stops_the_start(tmp_path: Path):
    env = {**environment(PROCESS, tmp_path / "tmp"), **nowhere(tmp_path)}
    node = Node("docker", tmp_path / "home", env)
    for words in (("up", "-d"), ("up",)):
        began = time.monotonic()
        told = node.ask(*words, "--backend", "docker", code=None)
        assert time.monotonic() - began < 20
        assert told["error"] == "engine-unavailable"
        assert f"{tmp_path}/no-engine.sock" in json.dumps(told)
        assert told["hint"]
    assert "chaindock up" in node.cli("ps", code=3).err


def test_what_ran_in_a_container_waits_for_its_engine_after_a_restart(tmp_path: Path):
    """docs/security.md: nothing loses its isolation unasked."""
    env = environment("docker", tmp_path / "tmp")
    engine = tmp_path / "engine.sock"
    real = env.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    engine.symlink_to(real.removeprefix("unix://"))
    env["DOCKER_HOST"] = f"unix://{engine}"
    # Images of a backend named docker are removed at the end; it is started as auto.
    node = Node("docker", tmp_path / "home", env)
    try:
        node.status = node.ask("up", "-d")
        assert node.deploy(SHIM, "notes")["backend"] == "docker"
        node.invoke("notes", "put", "n1", "kept")
        node.cli("down")
        engine.rename(tmp_path / "away.sock")
        node.status = node.ask("up", "-d")

        said = eventually(lambda: waits(node), "it waits for the engine")
        assert "no container engine answers" in said["error"]["message"]
        assert "--backend process" in said["error"]["hint"]
        assert "waiting for chaincode/notes" in node.cli("status").err
        # Nor does what is new beside it: the engine is known, and away.
        assert node.status["backend"] == "docker"
        assert "waiting for the container engine" in node.status["reason"]
        told = node.ask("deploy", SHIM, "--name", "new", code=None)
        assert told["error"] == "build-failed", told
        assert "no container engine answers" in told["message"]
        assert "--backend process" in told["hint"]
        (tmp_path / "away.sock").rename(engine)
        assert eventually(lambda: answers(node), "it is back", 60) == b"kept"
        assert shown(node)["backend"] == "docker"

        node.cli("down")
        engine.rename(tmp_path / "away.sock")
        node.status = node.ask("up", "-d")
        done = node.ask("deploy", SHIM, "--name", "notes", "--backend", PROCESS)
        assert done["backend"] == PROCESS  # it was asked for
        assert node.query("notes", "get", "n1") == b"kept"
    finally:
        node.cli("down", "--timeout", "20", "--force", code=None)
        node.remains.remove()


def waits(node: Node) -> dict[str, Any] | None:
    """Return what `ps` says of a chaincode that is in back-off."""
    found = shown(node)
    assert found["backend"] != PROCESS
    return found if found["state"] == "back-off" else None


def shown(node: Node) -> dict[str, Any]:
    found = node.ps("notes")
    assert found is not None
    return found


def answers(node: Node) -> bytes | None:
    return node.cli("query", "notes", "get", "n1", code=None).out.strip() or None


def test_a_package_that_nobody_takes_lists_the_known_types(tmp_path: Path):
    file = tmp_path / "far.tar.gz"
    served = archives.zipped(
        archives.raw_tar(archives.Raw(b"connection.json", b'{"address":"far:9999"}'))
    )
    described = b'{"path":"","type":"ccaas","label":"far_1.0"}'
    file.write_bytes(archives.package(served, described))
    with started(PROCESS, tmp_path, **nowhere(tmp_path)) as node:
        told = node.ask("deploy", file, code=None)
        assert "'ccaas'" in told["message"]
        said = json.dumps(told)
        assert "golang, node, python" in told["message"]
        assert "docker: " not in told["message"].lower()
        assert "daemon" not in said.lower()
        assert node.ask("ps") == []
