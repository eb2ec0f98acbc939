"""The operations endpoint, asked with curl."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import pytest

from chaindock import telemetry
from chaindock.errors import ConfigInvalid, LedgerClosed, NodeError
from chaindock.identity.ca import TlsAuthority
from chaindock.operations import http
from chaindock.operations.health import Health, Trouble
from chaindock.operations.http import OperationsOptions, OperationsServer
from support.need import need_ipv6
from support.nodes.curl import curl

Check = Callable[[], Awaitable[None]]


class Parts:
    """What is watched."""

    def __init__(self) -> None:
        self.found: dict[str, Check] = {"ledger": self.well}
        self.waits: list[Trouble] = []

    async def well(self) -> None:
        return

    async def ill(self) -> None:
        raise LedgerClosed("the ledger of channel 'c' is not open")

    async def hangs(self) -> None:
        await asyncio.Event().wait()

    def checks(self) -> dict[str, Check]:
        return self.found

    def missing(self) -> list[Trouble]:
        return self.waits


def server(health: Health | None = None, **options) -> OperationsServer:
    return OperationsServer(OperationsOptions(**options), health or Health())


@pytest.fixture(autouse=True)
def _same_levels_afterwards():
    before = telemetry.active()
    yield
    telemetry.activate(before)


# --- health and readiness -------------------------------------------------------------


async def test_health_has_the_shape_of_fabric():
    health, parts = Health(check_s=0.2), Parts()
    health.parts = cast(Any, parts)
    async with server(health) as endpoint:
        reply = await curl(f"{endpoint.url}/healthz")
        assert reply.status == 200
        body = json.loads(reply.body)
        assert set(body) == {"status", "time"}
        assert body["status"] == "OK"
        assert datetime.fromisoformat(body["time"]).tzinfo is not None
        assert "content-type: application/json" in reply.headers.lower()
        assert "aiohttp" not in reply.headers

        parts.found |= {"docker": parts.hangs, "chaincode/a": parts.ill}
        reply = await curl(f"{endpoint.url}/healthz")
        assert reply.status == 503
        body = json.loads(reply.body)
        assert body["status"] == "Service Unavailable"
        assert body["failed_checks"] == [
            {"component": "docker", "reason": "no answer within 0.2 s"},
            {
                "component": "chaincode/a",
                "reason": "the ledger of channel 'c' is not open",
            },
        ]


async def test_checks_run_side_by_side():
    health, parts = Health(check_s=0.5), Parts()
    parts.found = {f"chaincode/{number}": parts.hangs for number in range(50)}
    health.parts = cast(Any, parts)
    async with server(health) as endpoint, asyncio.timeout(10):
        assert (await curl(f"{endpoint.url}/healthz")).status == 503


async def test_health_that_takes_too_long_is_a_408(monkeypatch):
    monkeypatch.setattr(http, "HEALTH_S", 0.1)
    health, parts = Health(), Parts()
    parts.found = {"docker": parts.hangs}
    health.parts = cast(Any, parts)
    async with server(health) as endpoint:
        reply = await curl(f"{endpoint.url}/healthz")
        assert (reply.status, reply.body) == (408, "")


async def test_ready_only_between_start_and_stop():
    health, parts = Health(), Parts()
    async with server(health) as endpoint:

        async def missing() -> tuple[int, list[str]]:
            reply = await curl(f"{endpoint.url}/readyz")
            body = json.loads(reply.body)
            return reply.status, [one["component"] for one in body.get("missing", [])]

        assert await missing() == (503, ["node"])
        assert (await curl(f"{endpoint.url}/healthz")).status == 200
        parts.waits = [Trouble("chaincode/a", "it is coming up")]
        health.parts = cast(Any, parts)
        assert await missing() == (503, ["chaincode/a"])
        parts.waits = []
        assert await missing() == (200, [])
        health.going_down = True
        assert await missing() == (503, ["node"])


# --- methods, version, levels ---------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/healthz", 405),
        ("DELETE", "/readyz", 405),
        ("POST", "/metrics", 405),
        ("POST", "/logspec", 400),
        ("PUT", "/version", 400),
        ("GET", "/", 404),
        ("GET", "/debug/pprof", 404),
    ],
)
async def test_other_methods_and_paths_are_refused_as_fabric_does(method, path, status):
    async with server() as endpoint:
        reply = await curl(f"{endpoint.url}{path}", "--request", method)
    assert reply.status == status
    if status == 400:
        error = f"invalid request method: {method}"
        assert json.loads(reply.body) == {"error": error}


async def test_head_is_a_405_for_health_and_fine_for_metrics():
    async with server() as endpoint:
        assert (await curl(f"{endpoint.url}/healthz", "--head")).status == 405
        assert (await curl(f"{endpoint.url}/metrics", "--head")).status == 200


async def test_version_has_the_shape_of_fabric():
    async with server() as endpoint:
        reply = await curl(f"{endpoint.url}/version")
    assert set(json.loads(reply.body)) == {"CommitSHA", "Version"}


async def test_log_levels_are_shown_and_changed():
    async with server() as endpoint:
        url = f"{endpoint.url}/logspec"
        put = ("--request", "PUT", "--data")
        reply = await curl(url, *put, '{"spec": "warn:chaincode,endorser=debug"}')
        assert (reply.status, reply.body) == (204, "")
        reply = await curl(url)
        assert json.loads(reply.body) == {"spec": "chaincode=debug:endorser=debug:warn"}
        for wrong in ('{"spec": "loud"}', '{"spec": 1}', "{}", "[]", "warn", "\xff"):
            reply = await curl(url, *put, wrong)
            assert reply.status == 400, wrong
            assert "expected" in json.loads(reply.body)["error"]
        assert telemetry.active() == "chaincode=debug:endorser=debug:warn"


async def test_a_huge_body_is_refused(tmp_path):
    body = tmp_path / "body"
    body.write_bytes(b"x" * (1 << 20))
    async with server() as endpoint:
        reply = await curl(
            f"{endpoint.url}/logspec", "--upload-file", str(body), "--header", "Expect:"
        )
        assert reply.status == 413
        assert (await curl(f"{endpoint.url}/healthz")).status == 200


async def test_metrics_can_be_turned_off():
    async with server(metrics="disabled") as endpoint:
        assert (await curl(f"{endpoint.url}/metrics")).status == 404


# --- who may ask ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:1", 200),
        ("LOCALHOST.", 200),
        ("127.0.0.5", 200),
        ("[::1]:80", 200),
        ("evil.example", 403),
        ("evil.example:80", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("10.0.0.1", 403),
        ("[::ffff:10.0.0.1]", 403),
        ("127.0.0.1:evil.example", 403),
        ("127.0.0.1@evil.example", 403),
        ("evil.example@127.0.0.1", 403),
        ("127.0.0.1/evil.example", 403),
        ("127.0.0.1:80:evil.example", 403),
        ("", 403),
    ],
)
async def test_a_web_page_cannot_ask_under_its_own_name(host, status):
    header = f"Host: {host}" if host else "Host;"
    async with server() as endpoint:
        reply = await curl(f"{endpoint.url}/healthz", "--header", header)
    assert reply.status == status


@pytest.mark.parametrize("origin", ["https://evil.example", "http://127.0.0.1", "null"])
async def test_a_page_of_another_site_gets_no_answer(origin):
    """Also when it asks under the name or address of this machine."""
    async with server() as endpoint:
        reply = await curl(f"{endpoint.url}/logspec", "--header", f"Origin: {origin}")
        assert reply.status == 403
        assert "expected 'http://127.0.0.1:" in json.loads(reply.body)["message"]
        own = await curl(
            f"{endpoint.url}/logspec", "--header", f"Origin: {endpoint.url}"
        )
        assert own.status == 200


async def test_an_address_that_is_taken_is_told():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(NodeError, match=f"127.0.0.1:{port}") as caught:
            await server(address=("127.0.0.1", port)).__aenter__()
    assert "operations.listenAddress" in (caught.value.hint or "")


async def test_without_an_address_there_is_no_endpoint():
    async with server(address=None) as endpoint:
        assert endpoint.url is None


async def test_ipv6_loopback_is_served():
    need_ipv6()
    async with server(address=("::1", 0)) as endpoint:
        assert endpoint.url is not None
        assert endpoint.url.startswith("http://[::1]:")
        assert (await curl(f"{endpoint.url}/healthz")).status == 200


# --- TLS ------------------------------------------------------------------------------


class Files:
    """Certificates of a server and of clients: `ours`, and `others` of another CA."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        authority, other = TlsAuthority(), TlsAuthority()
        self.root = self._write("root.pem", authority.root_pem)
        pair = authority.issue_server("127.0.0.1")
        self.cert = self._write("cert.pem", pair.cert_pem)
        self.key = self._write("key.pem", pair.key_pem)
        self.ours = self._client("ours", authority)
        self.others = self._client("others", other)

    def _write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text)
        return path

    def _client(self, name: str, authority: TlsAuthority) -> tuple[str, ...]:
        pair = authority.issue_client()
        cert = self._write(f"{name}.pem", pair.cert_pem)
        key = self._write(f"{name}.key", pair.key_pem)
        return ("--cert", str(cert), "--key", str(key))

    def server(self, **more) -> OperationsServer:
        options = {
            "tls": True,
            "cert_file": self.cert,
            "key_file": self.key,
            "client_roots": (self.root,),
        }
        return server(**{**options, **more})

    async def status(self, endpoint: OperationsServer, path: str, *options: str) -> int:
        roots = ("--cacert", str(self.root))
        return (await curl(f"{endpoint.url}{path}", *roots, *options)).status


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


async def test_with_tls_metrics_and_levels_need_a_certificate(files: Files):
    async with files.server() as endpoint:
        assert endpoint.url is not None
        assert endpoint.url.startswith("https://")
        for path in ("/healthz", "/readyz", "/version"):
            assert await files.status(endpoint, path) in {200, 503}
        for path in ("/metrics", "/logspec"):
            assert await files.status(endpoint, path) == 401
            assert await files.status(endpoint, path, *files.ours) == 200
            assert await files.status(endpoint, path, *files.others) == 0
        change = ("--request", "PUT", "--data", '{"spec": "error"}')
        assert await files.status(endpoint, "/logspec", *change) == 401
        assert await files.status(endpoint, "/logspec", *change, *files.ours) == 204
        plain = await curl(f"{endpoint.url}/healthz".replace("https", "http"))
        assert plain.status in {0, 400}
        old = ("--tls-max", "1.1")
        assert await files.status(endpoint, "/healthz", *old) == 0


async def test_with_required_certificates_nobody_else_gets_an_answer(files: Files):
    async with files.server(client_auth_required=True) as endpoint:
        for path in ("/healthz", "/metrics", "/version"):
            assert await files.status(endpoint, path) == 0
            assert await files.status(endpoint, path, *files.others) == 0
            assert await files.status(endpoint, path, *files.ours) == 200


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"cert_file": None}, "operations.tls.cert.file"),
        ({"cert_file": Path("/nowhere.pem")}, "/nowhere.pem"),
        ({"client_roots": (Path("/nowhere.pem"),)}, "/nowhere.pem"),
        ({"client_roots": (), "client_auth_required": True}, "clientRootCAs"),
    ],
)
async def test_certificates_that_cannot_be_used_are_named(files: Files, more, named):
    with pytest.raises(ConfigInvalid) as caught:
        await files.server(**more).__aenter__()
    assert named in caught.value.message


async def test_a_key_of_another_certificate_is_refused(files: Files):
    with pytest.raises(ConfigInvalid, match=r"key\.pem"):
        await files.server(cert_file=files.folder / "ours.pem").__aenter__()


async def test_one_look_at_the_parts_serves_all_who_ask_at_once():
    """Many requests at a time must not each look at engine, ledger and contracts."""
    health, parts = Health(), Parts()
    looks = 0

    async def slow() -> None:
        nonlocal looks
        looks += 1
        await asyncio.sleep(1)

    parts.found = {"docker": slow}
    health.parts = cast(Any, parts)
    async with server(health) as endpoint:
        asked = (curl(f"{endpoint.url}/healthz") for _ in range(10))
        assert {reply.status for reply in await asyncio.gather(*asked)} == {200}
    assert looks < 10
