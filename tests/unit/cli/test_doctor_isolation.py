"""`doctor` on walls: what can be had, what stays open, and what to do about it."""

from __future__ import annotations

import socket
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import pytest

from chaindock.cli import checks
from chaindock.cli.checks import Check, State
from chaindock.config.load import load

if TYPE_CHECKING:
    from pathlib import Path

    from chaindock.config.sections import Config

INFO = {"SecurityOptions": ["name=seccomp,profile=default"]}


@pytest.fixture
def config(tmp_path: Path) -> Config:
    found = load(tmp_path, env={})
    return replace(found, docker=replace(found.docker, path=str(tmp_path)))


def program(folder: Path, text: str) -> None:
    for name in ("iptables", "ip6tables"):
        path = folder / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)


async def network(config: Config, *, here: bool = True) -> Check:
    return await checks._network(config, here=here)


@pytest.mark.parametrize(
    ("sandbox", "state"),
    [("auto", State.ABSENT), ("require", State.FAIL), ("off", State.ABSENT)],
)
async def test_without_an_engine_only_processes_are_spoken_of(
    config: Config,
    sandbox: Literal["auto", "require", "off"],
    state: State,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(checks, "find_bwrap", find_bwrap)
    config = replace(config, process=replace(config.process, sandbox=sandbox))
    (only,) = await checks._containers(config, engine_answers=False)
    assert (only.name, only.state) == ("processes", state)
    assert "run as you" in only.found
    assert ("off" if sandbox == "off" else "bubblewrap is missing") in only.found


def find_bwrap(wanted: str):
    return (), "off" if wanted == "off" else "bubblewrap is missing"


async def test_a_sandbox_of_processes_is_told(
    config: Config, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(checks, "find_bwrap", lambda _: (("bwrap",), ""))
    (only,) = await checks._containers(config, engine_answers=False)
    assert only.state is State.OK
    assert "sandbox" in only.found


def test_an_engine_that_limits_everything_is_fine():
    assert checks._limits(INFO).state is State.OK


def test_limits_that_are_missing_are_named():
    found = checks._limits({**INFO, "PidsLimit": False, "MemoryLimit": False})
    assert found.state is State.WARN
    assert "no memory limit, no limit of processes" in found.found
    assert "control groups" in found.remedy


async def test_what_is_open_on_this_machine_is_named(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    program(tmp_path, "echo 'Permission denied (you must be root)' >&2; exit 4")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setattr(checks, "_EVERYWHERE", {"127.0.0.1"})
        monkeypatch.setattr(checks, "_MOST_TOLD", 10_000)
        found = await network(config)
    assert found.state is State.WARN
    assert f"tcp {port}" in found.found
    assert "needs root or CAP_NET_ADMIN" in found.found
    assert "127.0.0.1" in found.remedy


async def test_a_filter_that_can_be_used_closes_it(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    program(tmp_path, "exit 0")
    monkeypatch.setattr(checks, "bridges_filtered", lambda: True)
    found = await network(config)
    assert (found.state, found.found) == (
        State.OK,
        "chaincode reaches the node and nothing else",
    )
    monkeypatch.setattr(checks, "bridges_filtered", lambda: False)
    found = await network(config)
    assert found.state is State.WARN
    assert "br_netfilter" in found.remedy


async def test_a_rootless_engine_has_no_walls_of_the_network(config: Config):
    found = await checks._network(config, here=False, rootless=True)
    assert found.state is State.WARN
    assert "rootless" in found.found
    assert "other machines, and all services of this one" in found.found


def test_limits_of_a_rootless_engine_need_the_newer_control_groups():
    info = {**INFO, "Rootless": True, "CgroupVersion": "1"}
    found = checks._limits(info)
    assert found.state is State.WARN
    assert found.found.startswith("rootless engine: no memory limit, no swap limit")
    assert "version 2" in found.remedy
    assert checks._limits({**info, "CgroupVersion": "2"}).state is State.OK


async def test_engines_elsewhere_and_open_networks_are_told(config: Config):
    assert (
        "the isolation is known after the first start"
        in (await network(config, here=False)).found
    )
    docker = config.docker
    sandbox = replace(docker.sandbox, internal=False)
    opened = replace(config, docker=replace(docker, sandbox=sandbox))
    found = await network(opened)
    assert found.state is State.WARN
    assert "reaches other machines" in found.found
