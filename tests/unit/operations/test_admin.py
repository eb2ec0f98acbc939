"""The routes of admin.py, over a real socket."""

import asyncio
import base64
import contextlib
import io
import json
import socket
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from chaindock.container.attempt import Event
from chaindock.node.admin import AdminServer
from chaindock.operations import serving
from chaindock.operations.address import find_socket
from chaindock.operations.stream import EventQueue
from chaindock.packaging.writer import package_directory


@pytest.fixture
def package(tmp_path) -> bytes:
    source = tmp_path / "source"
    source.mkdir()
    (source / "requirements.txt").write_text("")
    (source / "main.py").write_text("")
    out = io.BytesIO()
    package_directory(source, out, "basic_1.0")
    return out.getvalue()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


async def deployed(api: Any, package: bytes, name: str = "basic") -> None:
    events = await api.stream("POST", f"/deploy?name={name}", data=package)
    assert events[-1]["event"] == "result", events[-1]


async def test_status_describes_the_node(api):
    status, body = await api.ask("GET", "/status")
    assert status == 200
    assert body["channel"] == "mychannel"
    assert body["endpoints"]


async def test_deploy_streams_the_attempt_and_ends_with_the_result(api, package, node):
    events = await api.stream("POST", "/deploy?name=basic", data=package)
    assert [e["event"] for e in events] == [
        *("phase", "output", "phase-end", "phase", "note", "phase-end"),
        *("phase", "phase-end", "over", "result"),
    ]
    assert events[0]["phase"] == "dependencies"
    result = events[-1]["result"]
    assert result["package_id"].startswith("basic_1.0:")
    assert [phase for phase, _ in result["phases"]] == [
        "dependencies",
        "compile",
        "ready",
    ]
    assert not list((node.home / "incoming").iterdir())


async def test_failed_deploy_ends_with_the_error(api, package):
    events = await api.stream("POST", "/deploy?name=broken", data=package)
    error = events[-1]["error"]
    assert error["error"] == "build-failed"
    assert error["facts"]["exit_code"] == 1
    assert error["facts"]["phase"] == "compile"
    assert any("undefined" in line for line in error["facts"]["output"])


async def test_defect_in_a_deploy_ends_the_stream_too(api, package):
    events = await api.stream("POST", "/deploy?name=defect", data=package)
    assert events[-1]["error"]["code"] == "internal"
    assert "KeyError" in events[-1]["error"]["message"]


async def test_client_that_leaves_cancels_its_deploy(api, package, node):
    async with api.session.post("http://node/deploy?name=slow", data=package) as answer:
        assert b"phase" in await answer.content.readline()
        answer.close()
    async with asyncio.timeout(5):
        await node.cancelled.wait()


@pytest.mark.parametrize(
    ("query", "what"),
    [("name=a b", "name"), ("version=%20", "version"), ("init=yes", "init")],
)
async def test_bad_parameters_are_refused_before_the_upload(api, package, query, what):
    status, body = await api.ask("POST", f"/deploy?{query}", data=package)
    assert status == 400
    assert what in body["message"]


async def test_upload_beyond_the_limit_is_refused(api, node):
    for options in ({"data": io.BytesIO(b"x" * (2 << 20))}, {"data": chunks()}):
        status, body = await api.ask("POST", "/deploy?name=basic", **options)
        assert status == 400
        assert "the limit is 1048576" in body["message"]
    assert not list((node.home / "incoming").iterdir())


async def chunks() -> AsyncIterator[bytes]:
    for _ in range(3):
        yield b"x" * (1 << 19)


async def test_calls_carry_everything_and_bring_it_back(api, package, node):
    await deployed(api, package)
    body = {
        "args": [b64(b"put"), b64(b"k"), b64(b"\x00\xff")],
        "transient": {"t": b64(b"secret")},
        "user": "clerk",
        "attributes": {"role": "registrar"},
        "is_init": True,
        "timeout_s": 2.5,
    }
    status, answer = await api.ask("POST", "/chaincodes/basic/invoke", json=body)
    assert status == 200
    assert (answer["block"], answer["code"], answer["code_name"]) == (1, 0, "VALID")
    (call,) = node.calls
    assert list(call.args) == [b"put", b"k", b"\x00\xff"]
    assert call.transient == {"t": b"secret"}
    assert (call.user, call.attributes) == ("clerk", {"role": "registrar"})
    assert (call.is_init, call.timeout_s) == (True, 2.5)

    status, answer = await api.ask(
        "POST", "/chaincodes/basic/query", json={"args": [b64(b"get"), b64(b"k")]}
    )
    assert base64.b64decode(answer["payload"]) == b"\x00\xff"
    assert answer["block"] is None


async def test_answer_of_the_chaincode_is_not_an_http_error(api, package):
    await deployed(api, package)
    status, answer = await api.ask(
        "POST", "/chaincodes/basic/query", json={"args": [b64(b"get"), b64(b"no")]}
    )
    assert status == 200
    assert (answer["status"], answer["message"]) == (500, "there is no no")


@pytest.mark.parametrize(
    "body",
    [
        "[]",
        "{",
        "[" * 100_000,
        '{"args": "a"}',
        '{"args": ["!"]}',
        '{"args": [1]}',
        '{"transient": {"a": null}}',
        '{"timeout_s": 0}',
        '{"timeout_s": true}',
        '{"timeout_s": NaN}',
        '{"is_init": 1}',
        '{"user": null}',
        '{"arg": []}',
        r'{"transient": {"\ud800": "YQ=="}}',
        r'{"attributes": {"role": "\udfff"}}',
        r'{"user": "\ud800"}',
        b'{"user": "\xff"}',
    ],
)
async def test_malformed_calls_are_refused(api, package, body):
    await deployed(api, package)
    status, answer = await api.ask("POST", "/chaincodes/basic/query", data=body)
    assert status == 400
    assert answer["error"] == "invalid-input"


async def test_a_half_sent_request_is_closed(tmp_path, node, monkeypatch):
    monkeypatch.setattr(serving, "IDLE_S", 0.2)
    async with AdminServer(tmp_path, node), asyncio.timeout(5):
        path = str(find_socket(tmp_path))
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"GET /status HTTP/1.1\r\n")
        assert await reader.read() == b""
        writer.close()


async def test_a_page_of_another_site_gets_no_answer(api):
    """A program may hand requests of pages on to the socket."""
    headers = {"Origin": "https://evil.example"}
    status, body = await api.ask("GET", "/status", headers=headers)
    assert (status, body["error"]) == (403, "denied")


async def test_half_a_surrogate_pair_is_a_plain_error(api):
    """JSON can escape half of a character; nothing can store it as UTF-8."""
    body = r'{"spec": "\ud800"}'
    status, answer = await api.ask("PUT", "/logspec", data=body)
    assert status == 400
    assert "surrogate" in answer["hint"]


async def test_client_that_leaves_cancels_its_call(api, package, node):
    await deployed(api, package)
    task = asyncio.ensure_future(
        api.ask("POST", "/chaincodes/basic/query", json={"args": [b64(b"wait")]})
    )
    async with asyncio.timeout(5):
        await node.called.wait()
        task.cancel()
        await node.cancelled.wait()


async def test_errors_have_the_status_of_their_code(api, package):
    status, body = await api.ask("POST", "/chaincodes/none/query", json={})
    assert (status, body["error"]) == (404, "not-found")
    assert body["hint"] == "deploy it"
    await deployed(api, package)
    status, body = await api.ask(
        "POST", "/chaincodes/basic/query", json={"args": [b64(b"crash")]}
    )
    assert (status, body["error"]) == (409, "chaincode-error")


async def test_unknown_routes_answer_in_json(api):
    assert (await api.ask("GET", "/nothing"))[0] == 404
    status, body = await api.ask("DELETE", "/status")
    assert status == 405
    assert body["error"] == "invalid-input"


async def test_defect_answers_in_json(api, node, monkeypatch):
    monkeypatch.setattr(node, "ps", lambda *_: 1 // 0)
    status, body = await api.ask("GET", "/chaincodes")
    assert (status, body["code"]) == (500, "internal")
    assert "ZeroDivisionError" in body["message"]


async def test_stop_start_remove(api, package):
    await deployed(api, package)
    assert (await api.ask("POST", "/chaincodes/basic/stop"))[1] == {"name": "basic"}
    _, body = await api.ask("GET", "/chaincodes")
    assert body["chaincodes"][0]["state"] == "stopped"
    events = await api.stream("POST", "/chaincodes/basic/start")
    assert events[-1]["result"]["name"] == "basic"
    await api.ask("DELETE", "/chaincodes/basic")
    assert (await api.ask("GET", "/chaincodes"))[1] == {"chaincodes": []}
    assert (await api.ask("DELETE", "/chaincodes/basic"))[0] == 404


async def test_logs_are_those_of_the_last_attempt(api, package):
    assert (await api.ask("GET", "/chaincodes/basic/logs"))[0] == 404
    await deployed(api, package)
    lines = await api.stream("GET", "/chaincodes/basic/logs")
    assert [one["line"] for one in lines] == [
        "fetching \x1b[31mred\x1b[0m things",
        "hello from chaincode",
    ]
    assert lines[1]["stream"] == "stdout"
    assert await api.stream("GET", "/chaincodes/basic/logs?previous=1") == []
    status, _ = await api.ask("GET", "/chaincodes/basic/logs?follow=maybe")
    assert status == 400


async def test_followed_logs_come_as_they_are_written(api, package, node):
    await deployed(api, package)
    async with api.session.get("http://node/chaincodes/basic/logs?follow=1") as answer:
        async with asyncio.timeout(10):
            await answer.content.readline()
            await answer.content.readline()
            path = node.log_files("basic")[-1]
            with path.open("a") as file:
                file.write("2026-11-24T10:00:00Z stderr later\n")
            assert json.loads(await answer.content.readline())["line"] == "later"


async def test_blocks_are_numbered(api):
    assert await api.ask("GET", "/blocks") == (200, {"height": 1})
    status, body = await api.ask("GET", "/blocks/0")
    assert (status, body["number"]) == (200, 0)
    assert (await api.ask("GET", "/blocks/9"))[0] == 404
    for text in ("-1", "x", "9" * 40, "\N{ARABIC-INDIC DIGIT ONE}"):
        assert (await api.ask("GET", f"/blocks/{text}"))[0] == 400


async def test_shutdown_asks_the_node(api, node):
    assert await api.ask("POST", "/shutdown") == (200, {"stopping": True})
    assert node.stopping.is_set()


async def test_socket_is_gone_when_the_server_is(tmp_path, node):
    (tmp_path / "incoming").mkdir()
    (tmp_path / "incoming" / "half").write_text("")
    async with AdminServer(tmp_path, node):
        assert find_socket(tmp_path).is_socket()
        assert not (tmp_path / "incoming").exists()
    assert not find_socket(tmp_path).exists()


async def test_server_leaves_soon_although_a_follower_listens(
    tmp_path, node, package, options
):
    import aiohttp

    async with AdminServer(tmp_path, node, options):
        connector = aiohttp.UnixConnector(str(find_socket(tmp_path)))
        session = aiohttp.ClientSession(connector=connector)
        async with session.post("http://node/deploy?name=basic", data=package) as done:
            await done.read()
        answer = await session.get("http://node/chaincodes/basic/logs?follow=1")
        await answer.content.readline()
        began = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - began < 5
    answer.close()
    await session.close()


async def test_slow_reader_costs_bounded_memory_and_misses_no_phase():
    queue = EventQueue(limit=10)
    for number in range(1000):
        queue.put(Event("output", {"line": str(number), "stream": "build"}))
    queue.put(Event("phase", {"phase": "compile"}))
    queue.end({"event": "result", "result": {}})
    text = b"".join([batch async for batch in queue.batches()]).decode()
    events = [json.loads(line) for line in text.splitlines()]
    assert [e["event"] for e in events] == [*["output"] * 10, "phase", "note", "result"]
    assert events[-2]["text"] == "990 lines of output not shown here"


def test_every_code_has_a_status():
    from chaindock.errors import Code

    assert set(serving._STATUS) == set(Code)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a queue is short")
async def test_many_clients_may_come_at_once(api, tmp_path):
    path = str(find_socket(tmp_path))
    with contextlib.ExitStack() as stack:
        for _ in range(300):  # the loop takes none of them meanwhile
            client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            stack.enter_context(client)
            client.setblocking(False)
            client.connect(path)
    status, _ = await api.ask("GET", "/status")
    assert status == 200


async def test_a_program_started_by_hand_is_defined_without_a_package(api, node):
    """POST /chaincodes answers with the deployment; what it cannot read is refused."""
    asked = {"name": "byhand", "version": None, "init_required": False, "dev": True}
    status, body = await api.ask("POST", "/chaincodes", json=asked)
    assert (status, body["package_id"]) == (200, "byhand:1.0")
    for wrong in ({"name": "byhand"}, {"dev": True}, {**asked, "version": "a b"}, 5):
        status, body = await api.ask("POST", "/chaincodes", json=wrong)
        assert (status, body["error"]) == (400, "invalid-input")


async def test_what_the_node_refused_is_told_beside_the_answer(api, package):
    """A contract that swallows our error gives an answer that names the refusal."""
    await deployed(api, package)
    args = {"args": [b64(b"refuse"), b64(b"x")]}
    _, answer = await api.ask("POST", "/chaincodes/basic/query", json=args)
    assert answer["refusals"] == ["rich queries are not yet supported"]
    assert answer["status"] == 200


async def test_terms_come_before_the_package(api, package, node):
    said = json.dumps({"signature_policy": "OR('Org1MSP.peer')"}).encode()
    path = f"/deploy?name=basic&terms={len(said)}"
    events = await api.stream("POST", path, data=said + package)
    assert events[-1]["result"]["policy"] == "OR('Org1MSP.peer')"
    for number, sent in (("x", b""), ("9", b"{}"), ("1048577", b""), ("2", b"[]")):
        status, body = await api.ask("POST", f"/deploy?terms={number}", data=sent)
        assert (status, body["error"]) == (400, "invalid-input")
