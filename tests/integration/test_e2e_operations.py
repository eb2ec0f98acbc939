"""A real node, watched as people watch it: with curl and Prometheus' own parser."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import socket
import sys
import uuid
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from chaindock.identity.ca import TlsAuthority
from chaindock.node.serve import raise_limit
from support.nodes.curl import Reply, curl
from support.nodes.node import BACKENDS, FIXTURES, PROCESS, Node, eventually, started
from support.nodes.scrape import Scrape

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.slow,
    pytest.mark.nodejs,
    pytest.mark.network,
    pytest.mark.timeout(600),
]
HOSTILE = FIXTURES / "hostile"
KEYS = FIXTURES / "foreign" / "node-shim"
CRASHES, CHATTY = HOSTILE / "registers-then-crashes", HOSTILE / "prints-a-lot"
LAUNCHES = "chaincode_launch_duration_count"
SETTINGS = {
    "CORE_VM_DOCKER_ATTACHSTDOUT": "true",
    "CORE_CHAINCODE_EXECUTETIMEOUT": "2s",
    "CORE_CHAINDOCK_LAUNCH_STOPGRACE": "2s",
    "FABRIC_LOGGING_SPEC": "info:endorser=debug",
    "CORE_CHAINDOCK_LOG_FORMAT": "json",
}


@pytest.fixture(scope="module", params=BACKENDS)
def node(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Node]:
    folder = tmp_path_factory.mktemp("node")
    with started(request.param, folder, **SETTINGS) as node:
        yield node


def ask(node: Node, path: str, *options: str) -> Reply:
    url = node.ask("status")["endpoints"]["operations"]
    return asyncio.run(curl(url + path, *options))


def scrape(node: Node) -> Scrape:
    reply = ask(node, "/metrics")
    assert reply.status == 200
    assert "text/plain; version=0.0.4" in reply.headers
    return Scrape(reply.body)


def failed(node: Node) -> dict[str, str]:
    body = json.loads(ask(node, "/healthz").body)
    return {one["component"]: one["reason"] for one in body.get("failed_checks", [])}


def logged(node: Node) -> list[dict[str, Any]]:
    text = (node.home / "node.log").read_text()
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


@pytest.fixture(scope="module")
def metered(node: Node) -> tuple[dict[str, Any], Scrape, Scrape]:
    """Package ids, and what was scraped before and after some calls."""
    packages = {
        "keys": node.deploy(KEYS, "keys")["package_id"],
        "crashes": node.deploy(CRASHES, "crashes")["package_id"],
    }
    node.ask("deploy", HOSTILE / "crashes-before-register", code=4)
    before = scrape(node)
    node.invoke("keys", "put", "n1", "v")
    node.query("keys", "get", "n1")
    node.ask("query", "keys", "refuse", code=None)
    node.ask("query", "crashes", "hang", code=None)
    node.ask("query", "crashes", "crash", code=None)
    up = {"chaincode": packages["crashes"], "success": "true"}
    once_more = (before.value(LAUNCHES, **up) or 0) + 1
    eventually(lambda: scrape(node).value(LAUNCHES, **up) == once_more, "up again", 60)
    return packages, before, scrape(node)


def grown(metered: Any, name: str, **labels: str) -> float:
    _, before, found = metered
    return (found.value(name, **labels) or 0) - (before.value(name, **labels) or 0)


def test_metrics_tell_of_launches_and_ends(node: Node, metered: Any):
    packages, _, found = metered
    package = packages["keys"]
    assert grown(metered, LAUNCHES, chaincode=package, success="true") == 0
    assert found.value(LAUNCHES, chaincode=package, success="true")
    assert found.value(LAUNCHES, chaincode=package, success="false") is None
    failures = found.samples["chaincode_launch_failures"]
    lost = [dict(labels)["chaincode"] for labels, count in failures.items() if count]
    assert [one.partition("_")[0] for one in lost] == ["crashes-before-register"]
    exits = {"chaincode": "crashes", "cause": "exited"}
    assert grown(metered, "chaindock_chaincode_exits_total", **exits) == 1
    restarts = "chaindock_chaincode_restarts_total"
    assert grown(metered, restarts, chaincode="crashes") == 1
    assert grown(metered, restarts, chaincode="keys") == 0
    there = found.check()
    assert {"chaindock_phase_duration_seconds", "chaindock_custodian_chores"} <= there
    if node.backend == PROCESS:
        assert "dockercontroller_chaincode_container_build_duration" not in there


def test_metrics_tell_of_calls(metered: Any):
    packages, _, _ = metered
    more = partial(grown, metered)
    assert more("chaincode_execute_timeouts", chaincode=packages["crashes"]) == 1
    labels = {"channel": "mychannel", "chaincode": packages["keys"]}
    request = {**labels, "type": "PUT_STATE"}
    assert more("chaincode_shim_requests_received", **request) == 1
    done = "chaincode_shim_requests_completed"
    assert more(done, success="true", **request) == 1
    assert more("endorser_proposals_received") == 5
    assert more("endorser_successful_proposals") == 2
    assert more("endorser_endorsement_failures", chaincode="keys") == 1
    assert more("endorser_proposal_simulation_failures", chaincode="crashes") == 2
    assert more("ledger_blockchain_height", channel="mychannel") == 1
    assert more("ledger_block_processing_time_count", channel="mychannel") == 1
    called = {"transaction_type": "ENDORSER_TRANSACTION", "chaincode": "keys:1.0"}
    committed = {**called, "channel": "mychannel", "validation_code": "VALID"}
    assert more("ledger_transaction_count", **committed) == 1


def test_metrics_tell_how_it_is_now(metered: Any):
    _, _, found = metered
    assert found.value("chaindock_chaincode_up", chaincode="keys") == 1
    running = {"chaincode": "keys", "state": "running"}
    assert found.value("chaindock_chaincode_state", **running) == 1
    assert found.value("chaindock_open_calls", chaincode="keys") == 0
    assert found.value("chaindock_node_ready") == 1
    assert (found.value("process_resident_memory_bytes") or 0) > 10e6


def test_metrics_of_a_removed_chaincode_go_with_it(node: Node):
    told = node.ask("deploy", KEYS, "--name", "removed")
    node.cli("rm", "removed")
    text = ask(node, "/metrics").body
    assert '"removed"' not in text
    assert told["package_id"]


def test_health_tells_of_a_chaincode_that_died_until_it_is_back(node: Node):
    node.deploy(KEYS, "keys")
    node.deploy(CRASHES, "crashes")
    assert failed(node) == {}
    assert ask(node, "/healthz").status == 200
    pids = {}
    for _ in range(3):  # the pause before a restart grows
        node.ask("query", "crashes", "crash", code=None)
        pids = failed(node)
        if pids:
            break
        eventually(lambda: node.ps("crashes")["state"] == "running", "up")  # type: ignore[index]
    assert set(pids) == {"chaincode/crashes"}
    assert "exited with 7" in pids["chaincode/crashes"]
    eventually(lambda: not failed(node), "well again", 60)


def test_a_stopped_chaincode_is_not_missed(node: Node):
    node.deploy(KEYS, "keys")
    node.cli("stop", "keys")
    assert "chaincode/keys" not in failed(node)
    node.cli("start", "keys")


def test_levels_are_changed_by_command_and_by_curl(node: Node):
    assert node.ask("logspec") == {"spec": "endorser=debug:info"}
    assert node.ask("logspec", "warn") == {"spec": "warn"}
    assert json.loads(ask(node, "/logspec").body) == {"spec": "warn"}
    wrong = node.cli("--json", "logspec", "loud", code=None)
    assert wrong.code != 0
    assert "expected" in wrong.json["hint"]
    put = ("--request", "PUT", "--data", '{"spec": "info:endorser=debug"}')
    assert ask(node, "/logspec", *put).status == 204
    assert node.ask("logspec") == {"spec": "endorser=debug:info"}


def test_lines_of_a_call_carry_its_transaction(node: Node):
    node.deploy(CHATTY, "chatty")
    answer = node.invoke("chatty", "lines", "6")
    tx = answer["tx_id"]

    def lines() -> list[dict[str, Any]]:
        found = node.cli("--json", "logs", "chatty").out.decode().splitlines()
        return [one for one in map(json.loads, found) if " of 6" in one["line"]]

    eventually(lambda: len(lines()) == 6, "all lines are there")
    assert {one["tx"] for one in lines()} == {tx}
    stamped = node.cli("logs", "chatty", "-t").out.decode()
    assert re.search(rf"Z std(out|err)@{tx[:12]} line 1 of 6", stamped)
    assert tx[:12] not in node.cli("logs", "chatty").out.decode()
    mine = [one for one in logged(node) if one.get("tx") == tx]
    said = [one for one in mine if one["event"] == "chaincode output"]
    assert {one["component"] for one in said} == {"peer.chaincode.chatty_1.0"}
    assert {one["stream"] for one in said} == {"stdout", "stderr"}
    assert all(one["ccid"] and one["attempt"] for one in said)
    assert any(one["component"] == "endorser" for one in mine)


def test_a_flood_does_not_fill_the_log_of_the_node(node: Node):
    node.deploy(CHATTY, "chatty")
    before = (node.home / "node.log").stat().st_size
    node.invoke("chatty", "lines", "30000")

    def missing() -> list[int]:
        return [one["lines"] for one in logged(node) if "lines" in one]

    node.cli("stop", "chatty")
    eventually(lambda: sum(missing()) > 20_000, "what is missing is told")
    assert (node.home / "node.log").stat().st_size - before < 2 * 1024 * 1024
    node.cli("start", "chatty")


def test_launches_are_logged_with_package_and_attempt(node: Node):
    node.deploy(KEYS, "keys")
    launched = [one for one in logged(node) if one["event"] == "launched"]
    assert launched
    assert all(one["ccid"] and one["attempt"] for one in launched)
    text = (node.home / "node.log").read_text()
    assert "PRIVATE KEY" not in text
    assert "canary" not in text


# --- start and stop -------------------------------------------------------------------


def test_ready_is_said_when_all_that_should_run_is_up(tmp_path: Path):
    with started(PROCESS, tmp_path, **SETTINGS) as node:
        assert ask(node, "/readyz").status == 200
        node.deploy(KEYS, "keys")
        node.kill()
        status = node.up()
        # It answers before its chaincode is up, and says so.
        if status["state"] == "starting":
            assert [one["component"] for one in status["pending"]] == ["chaincode/keys"]
        eventually(lambda: ask(node, "/readyz").status == 200, "ready")
        state = node.ps("keys")
        assert state is not None
        assert state["state"] == "running"
        assert node.ask("status")["state"] == "ready"


LATE = """\
const { existsSync } = require('fs');
const [label] = process.env.CORE_CHAINCODE_ID_NAME.split(':');
while (!existsSync('/tmp/gate-of-' + label)) {
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 50);
}
"""


def test_one_that_is_not_up_yet_keeps_the_node_from_being_ready(tmp_path: Path):
    """The others serve meanwhile."""
    # Named by the label, so that the source is the same in each run and built already.
    label, source = f"late-{uuid.uuid4().hex}", tmp_path / "late"
    gate = Path(f"/tmp/gate-of-{label}")
    shutil.copytree(KEYS, source)
    program = source / "chaincode.js"
    program.write_text(LATE + program.read_text())
    # The gate lies outside of a sandbox.
    settings = {**SETTINGS, "CORE_CHAINDOCK_PROCESS_SANDBOX": "off"}
    with started(PROCESS, tmp_path, **settings) as node, ExitStack() as after:
        after.callback(gate.unlink, missing_ok=True)
        gate.touch()
        node.deploy(KEYS, "keys")
        node.ask("deploy", source, "--name", "late", "--label", label)
        node.kill()
        gate.unlink()
        node.up()
        eventually(lambda: (node.ps("keys") or {})["state"] == "running", "keys runs")
        reply = ask(node, "/readyz")
        assert reply.status == 503
        assert "chaincode/late" in reply.body
        assert "chaincode/keys" not in reply.body
        assert scrape(node).value("chaindock_node_ready") == 0
        node.invoke("keys", "put", "a", "text")
        gate.touch()
        eventually(lambda: ask(node, "/readyz").status == 200, "ready")
        assert scrape(node).value("chaindock_node_ready") == 1
        node.invoke("late", "put", "a", "text")


def test_with_tls_a_client_needs_its_certificate(tmp_path: Path):
    authority = TlsAuthority()
    files = {"root": authority.root_pem}
    pairs = (
        ("server", authority.issue_server("127.0.0.1")),
        ("client", authority.issue_client()),
    )
    for name, pair in pairs:
        files |= {name: pair.cert_pem, f"{name}-key": pair.key_pem}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    tls = "CORE_OPERATIONS_TLS_"
    settings = {
        f"{tls}ENABLED": "true",
        f"{tls}CERT_FILE": str(tmp_path / "server"),
        f"{tls}KEY_FILE": str(tmp_path / "server-key"),
        f"{tls}CLIENTROOTCAS_FILES": str(tmp_path / "root"),
    }
    with started(PROCESS, tmp_path / "node", **settings) as node:
        roots = ("--cacert", str(tmp_path / "root"))
        mine = (
            "--cert",
            str(tmp_path / "client"),
            "--key",
            str(tmp_path / "client-key"),
        )
        assert ask(node, "/healthz", *roots).status == 200
        assert ask(node, "/metrics", *roots).status == 401
        reply = ask(node, "/metrics", *roots, *mine)
        assert reply.status == 200
        Scrape(reply.body).check()


def test_only_loopback_without_tls(tmp_path: Path):
    with started(PROCESS, tmp_path) as node:
        second = Node(PROCESS, tmp_path / "second", node.env)
        flag = ("--set", "operations.listenAddress=0.0.0.0:0")
        told = second.ask("up", "-d", *flag, code=None)
        assert told["error"] == "config-invalid"
        assert "loopback" in told["message"]


# --- another user of this machine -----------------------------------------------------


def test_half_sent_and_malformed_requests_stop_nobody(tmp_path: Path):
    """1,100 connections that never end their request, then 3,000 without any sense."""
    raise_limit()
    with started(PROCESS, tmp_path) as node, ExitStack() as stack:
        status = node.ask("status")
        port = int(status["endpoints"]["operations"].rpartition(":")[2])
        log = node.home / "node.log"
        before = log.stat().st_size
        for _ in range(1100):
            client = socket.create_connection(("127.0.0.1", port), timeout=5)
            stack.enter_context(client).sendall(b"GET /healthz HTTP/1.1\r\nHost:")
        if sys.platform == "linux":
            files = len(list(Path(f"/proc/{status['pid']}/fd").iterdir()))
            assert files < 256
            other = ("--interface", "127.0.0.2", "--max-time", "2")
            assert ask(node, "/healthz", *other).status == 200
        assert ask(node, "/healthz", "--max-time", "2").status == 200
        for _ in range(3000):
            with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
                client.sendall(b"GET / HTTP/9.x\r\nnonsense\r\n\r\n")
        assert ask(node, "/healthz", "--max-time", "2").status == 200
        assert node.ask("status")["state"] == "ready"
        assert log.stat().st_size - before < 64 * 1024
