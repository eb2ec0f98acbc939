"""Every way in which an engine cannot be reached has a verdict of its own."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import socket
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from chaindock.controllers.docker import endpoints
from chaindock.controllers.docker.endpoints import (
    Verdict,
    candidates,
    find_engine,
    probe_all,
)
from chaindock.controllers.docker.options import EndpointOptions
from chaindock.errors import EngineUnavailable
from support.doubles.fake_engine import fake_engine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


async def verdict(address: str, **more: Any) -> endpoints.Probe:
    options = EndpointOptions(docker_host=address, connect_s=1.0, **more)
    began = time.monotonic()
    (probe,) = await probe_all(options)
    assert time.monotonic() - began < 2
    if probe.verdict is not Verdict.ANSWERS:
        with pytest.raises(EngineUnavailable) as caught:
            await find_engine(options)
        assert caught.value.hint == probe.remedy
        assert "\n" not in probe.remedy
    return probe


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


async def test_an_engine_that_answers(tmp_path: Path):
    async with fake_engine(tmp_path / "s"):
        probe = await verdict(f"unix://{tmp_path / 's'}")
    assert probe.verdict is Verdict.ANSWERS


async def test_a_missing_socket(tmp_path: Path):
    probe = await verdict(f"unix://{tmp_path / 's'}")
    assert probe.verdict is Verdict.MISSING
    assert "vm.endpoint, or else DOCKER_HOST" in probe.remedy, "the first one counts"


async def test_a_socket_without_permission(tmp_path: Path):
    folder = tmp_path / "private"
    folder.mkdir()
    async with fake_engine(folder / "s"):
        folder.chmod(0)
        try:
            with unprivileged():
                probe = await verdict(f"unix://{folder / 's'}")
        finally:
            folder.chmod(0o700)
    assert probe.verdict is Verdict.NO_PERMISSION
    assert "group" in probe.remedy


async def test_a_socket_that_nobody_listens_on(tmp_path: Path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "s"))
    assert (await verdict(f"unix://{tmp_path / 's'}")).verdict is Verdict.REFUSED


async def test_a_port_that_nobody_listens_on():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert (await verdict(f"tcp://127.0.0.1:{port}")).verdict is Verdict.REFUSED


async def test_something_that_is_no_engine(tmp_path: Path):
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(greet, tmp_path / "s")
    probe = await verdict(f"unix://{tmp_path / 's'}")
    server.close()
    assert probe.verdict is Verdict.NOT_AN_ENGINE


async def test_a_web_server_that_is_no_engine(tmp_path: Path):
    async def page(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
        await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(page, tmp_path / "s")
    probe = await verdict(f"unix://{tmp_path / 's'}")
    server.close()
    assert probe.verdict is Verdict.NOT_AN_ENGINE


async def test_a_directory_where_the_socket_should_be(tmp_path: Path):
    assert (await verdict(f"unix://{tmp_path}")).verdict is Verdict.NOT_AN_ENGINE


async def test_an_engine_that_never_answers(tmp_path: Path):
    held = []

    async def hold(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)

    server = await asyncio.start_unix_server(hold, tmp_path / "s")
    probe = (
        await probe_all(
            EndpointOptions(docker_host=f"unix://{tmp_path / 's'}", connect_s=0.2)
        )
    )[0]
    for writer in held:
        writer.close()
    server.close()
    assert probe.verdict is Verdict.NO_ANSWER


async def test_tls_asked_of_a_port_without_it():
    async def page(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(page, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    https = await verdict(f"https://127.0.0.1:{port}")
    plain = await verdict(f"tcp://127.0.0.1:{port}")
    server.close()
    assert https.verdict is Verdict.TLS
    assert plain.verdict is Verdict.TLS


async def test_certificates_that_cannot_be_read(tmp_path: Path):
    probe = await verdict("tcp://127.0.0.1:1", tls=True, ca_file=tmp_path / "no.pem")
    assert probe.verdict is Verdict.TLS


@pytest.mark.parametrize("address", ["nonsense", "ftp://x", "unix://", "tcp://"])
async def test_an_address_that_is_none(address: str):
    assert (await verdict(address)).verdict is Verdict.INVALID


def test_the_order_of_places(tmp_path: Path):
    run, home = tmp_path / "run", tmp_path / "home"
    found = candidates(EndpointOptions(runtime_dir=run, home=home))
    origins = list(dict.fromkeys(one.origin for one in found))
    assert origins == [
        "usual socket",
        "rootless Docker",
        "Docker Desktop",
        "Colima",
        "Rancher Desktop",
        "OrbStack",
        "rootless Podman",
        "Podman",
        "Podman machine",
    ]


def test_what_was_named_is_the_only_place():
    options = EndpointOptions(endpoint="unix:///a", docker_host="unix:///b")
    assert [one.address for one in candidates(options)] == ["unix:///a"]
    options = EndpointOptions(docker_host="unix:///b", docker_context="c")
    assert [one.address for one in candidates(options)] == ["unix:///b"]


def context(folder: Path, name: str, host: str) -> None:
    meta = folder / "contexts/meta" / hashlib.sha256(name.encode()).hexdigest()
    meta.mkdir(parents=True)
    endpoint = {"Name": name, "Endpoints": {"docker": {"Host": host}}}
    (meta / "meta.json").write_text(json.dumps(endpoint))


def test_the_current_context_of_the_docker_cli_comes_first(tmp_path: Path):
    context(tmp_path, "colima", "unix:///colima.sock")
    (tmp_path / "config.json").write_text('{"currentContext": "colima"}')
    first, *others = candidates(EndpointOptions(docker_config=tmp_path))
    assert first.address == "unix:///colima.sock"
    assert "colima" in first.origin
    assert others


async def test_a_context_that_does_not_exist_is_named(tmp_path: Path):
    options = EndpointOptions(docker_config=tmp_path, docker_context="gone")
    (probe,) = await probe_all(options)
    assert probe.verdict is Verdict.INVALID
    assert "gone" in probe.origin


def test_the_default_context_is_the_usual_places(tmp_path: Path):
    usual = EndpointOptions(docker_config=tmp_path, home=tmp_path)
    named = replace(usual, docker_context="default")
    assert not named.named
    assert replace(usual, docker_context="c").named
    assert list(candidates(named)) == list(candidates(usual))


async def test_a_context_that_nobody_can_look_up_is_named():
    with pytest.raises(EngineUnavailable, match="'far'"):
        await find_engine(EndpointOptions(docker_context="far"))


async def test_without_any_engine_every_place_is_in_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(endpoints, "VAR_RUN", tmp_path)
    with pytest.raises(EngineUnavailable) as caught:
        await find_engine(EndpointOptions(home=tmp_path, runtime_dir=tmp_path))
    assert len(caught.value.tried) == 10
    assert {probe.verdict for probe in caught.value.tried} == {Verdict.MISSING}


async def test_a_place_that_has_a_problem_is_told_before_the_missing_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(endpoints, "VAR_RUN", tmp_path)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "docker.sock"))
    with pytest.raises(EngineUnavailable, match="refused"):
        await find_engine(EndpointOptions(home=tmp_path))
