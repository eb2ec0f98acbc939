"""`doctor`: what it finds, what it advises, when it is content."""

import json
import os
import socket
import sys
from contextlib import closing

import pytest

from chaindock.cli import checks
from chaindock.cli.doctor import _sentence


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """Return a function that makes programs; nothing else is on the PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in list(os.environ):  # noqa: TID251
        if name.startswith(("CORE_", "DOCKER_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    for name in ("SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS", "PIP_CERT"):
        monkeypatch.delenv(name, raising=False)
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    # Places outside the temporary directory are not the test's to judge.
    monkeypatch.setattr(
        "chaindock.controllers.docker.endpoints.VAR_RUN", tmp_path / "run" / "x"
    )

    def make(name: str, text: str) -> None:
        path = folder / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    return make


@pytest.fixture
def doctor(run):
    def call(**env):
        result = run("doctor", "--json", env=env)
        body = json.loads(result.stdout)
        return result.exit_code, body, {one["name"]: one for one in body["checks"]}

    return call


def test_nothing_at_all_ends_with_6_and_remedies(run, tools):
    result = run("doctor")
    assert result.exit_code == 6
    assert "No chaincode can run here yet." in result.stdout
    assert "do: install Go\n" in result.stdout
    assert "do: start the engine, or name its place" in result.stdout


def test_a_home_that_cannot_be_looked_at_is_a_finding(run, tools, tmp_path):
    home = str(tmp_path / ("x" * 300))  # as one in a directory of somebody else
    result = run("--home", home, "doctor")
    assert result.exit_code == 6
    assert "x' cannot be read" in result.stdout
    assert run("--home", home, "config", "show").exit_code == 5


def test_one_toolchain_is_enough(doctor, tools):
    tools("go", "echo go version go1.99 linux/amd64")
    status, body, found = doctor()
    assert status == 0
    assert body["process"] == ["Go"]
    assert found["go"]["found"].startswith("go version go1.99")
    assert found["node"]["state"] == "warn"
    assert found["node"]["remedy"] == "install Node.js"


def test_python_needs_venv(doctor, tools):
    tools("python3", 'case "$1" in --version) echo Python 3.99;; *) exit 1;; esac')
    status, body, found = doctor()
    assert (status, body["process"]) == (6, [])
    assert found["python3"]["state"] == "warn"
    assert "python3-venv" in found["python3"]["remedy"]
    tools("python3", f'exec {sys.executable} "$@"')
    assert doctor()[1]["process"] == ["Python"]


def test_program_that_fails_in_the_environment_of_builds_is_found_out(doctor, tools):
    tools("go", 'test "$HOME" = / && echo go version; exit 3')
    status, _, found = doctor()
    assert (status, found["go"]["state"]) == (6, "warn")
    assert "version manager" in found["go"]["remedy"]


def test_engine_paths_are_tried_one_by_one(doctor, tools, tmp_path):
    dead = tmp_path / ".docker" / "run"
    dead.mkdir(parents=True)
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(dead / "docker.sock"))
    _, body, _ = doctor()
    engines = [one for one in body["checks"] if one["group"] == "engine"]
    assert len(engines) > 5
    by_place = {one["found"].split("  ")[0]: one for one in engines}
    refused = by_place[f"unix://{dead}/docker.sock"]
    assert refused["state"] == "warn"
    assert "refused" in refused["found"]
    assert "start the engine" in refused["remedy"]


def test_engine_that_was_named_and_is_not_there_is_a_warning(doctor, tools, tmp_path):
    _, _, found = doctor(DOCKER_HOST=f"unix://{tmp_path}/none.sock")
    assert found["DOCKER_HOST"]["state"] == "warn"
    _, _, found = doctor(CORE_VM_ENDPOINT=f"unix://{tmp_path}/none.sock")
    remedy = found["vm.endpoint"]["remedy"]
    assert "named (vm.endpoint: env CORE_VM_ENDPOINT) and no engine" in remedy
    _, _, found = doctor(CORE_VM_ENDPOINT="")
    assert found["engine"]["found"] == "turned off: vm.endpoint is empty"


def test_wrong_settings_are_a_failure_with_the_way_out(doctor, tools, home):
    tools("go", "echo go version")
    (home / "core.yaml").write_text("chaindock: {backen: x}\n")
    status, _, found = doctor()
    assert status == 6
    assert found["settings"]["state"] == "fail"
    assert found["settings"]["remedy"] == "did you mean 'chaindock.backend'?"


def test_home_is_judged_before_it_exists(run, tools, tmp_path):
    (tmp_path / "file").write_text("")
    result = run("doctor", "--json", "--home", str(tmp_path / "file"))
    found = {one["name"]: one for one in json.loads(result.stdout)["checks"]}
    assert found["directory"]["state"] == "fail"
    result = run("doctor", "--json", "--home", str(tmp_path / "new" / ("x" * 120)))
    found = {one["name"]: one for one in json.loads(result.stdout)["checks"]}
    assert found["directory"]["found"].endswith(", will be made")


def test_full_disk_is_a_failure(monkeypatch, tmp_path):
    class Usage:
        free = checks.LEAST_BYTES - 1

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage)
    assert checks._disk(tmp_path).state == "fail"
    Usage.free = checks.WANTED_BYTES - 1
    assert checks._disk(tmp_path).state == "warn"


def test_killed_node_is_noticed(doctor, tools, home):
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(home / "admin.sock"))
    _, _, found = doctor()
    assert found["node process"]["state"] == "warn"
    assert "chaindock up" in found["node process"]["remedy"]


def test_ca_and_proxies_are_shown_without_passwords(doctor, tools, tmp_path):
    bundle = tmp_path / "ca.pem"
    bundle.write_text("-----BEGIN CERTIFICATE-----\n" * 2)
    _, body, found = doctor(PIP_CERT=str(bundle), HTTPS_PROXY="http://u:pw@p:1")
    assert found["CA"]["found"] == f"{bundle}, 2 certificates"
    assert found["HTTPS_PROXY"]["found"] == "http://[secret]@p:1"
    assert "pw" not in json.dumps(body)


def test_last_sentence_says_how_chaincode_can_run(run, tools, monkeypatch):
    tools("go", "echo go version go1.99")
    text = run("doctor").stdout
    assert "Chaincode in Go can run as local processes; no engine" in text
    assert _sentence(["Go"], docker=True) == (
        "Chaincode can run in containers, and Go as local processes too."
    )
    assert _sentence([], docker=True) == "Chaincode can run in containers."


async def test_engine_that_answers_makes_the_others_quiet(tmp_path, monkeypatch):
    from chaindock.config.load import load
    from chaindock.controllers.docker.endpoints import Probe, Verdict

    async def probes(_):
        return [
            Probe("unix:///a", "usual socket", Verdict.NO_PERMISSION, "EACCES"),
            Probe("unix:///b", "Podman", Verdict.ANSWERS, "API 1.41"),
        ]

    monkeypatch.setattr(checks, "probe_all", probes)
    found, answered = await checks._engines(load(tmp_path, env={}))
    assert answered
    assert [one.state for one in found] == ["absent", "ok"]
