"""Only the chaincode that was launched can register, and it makes sure of the node."""

from __future__ import annotations

import asyncio
import ssl
import time
from typing import TYPE_CHECKING

import grpc
import pytest
from fabric_protos.peer import chaincode_pb2
from fabric_protos.peer import chaincode_shim_pb2 as shim
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from chaindock.chaincode.options import ListenOptions
from chaindock.chaincode.server import MAX_UNREGISTERED_EACH
from chaindock.identity.ca import TlsAuthority, certificate_hash
from chaindock.rpc.status import Status
from chaindock.telemetry import bound
from support.doubles.memory_state import invocation
from support.eventually import eventually
from support.shims.credentials import client
from support.shims.stream_node import CCID, OTHER, StreamNode
from support.shims.tls_node import Guarded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from support.shims.peer import ShimPeer

Kind = shim.ChaincodeMessage
DENIED = grpc.StatusCode.PERMISSION_DENIED


@pytest.fixture
async def node(no_task_is_left: None) -> AsyncIterator[Guarded]:
    async with Guarded() as node:
        yield node


async def refused(peer: ShimPeer, name: str) -> tuple[grpc.StatusCode, str]:
    await peer.send(Kind.REGISTER, chaincode_pb2.ChaincodeID(name=name))
    return await peer.refusal()


async def shut_out(peer: ShimPeer) -> None:
    """Check that the connection does not come about."""
    code, _ = await peer.refusal()
    assert code is grpc.StatusCode.UNAVAILABLE


# --- who gets no stream ---------------------------------------------------------------


@pytest.mark.statement(15)
async def test_who_shows_no_certificate_gets_no_stream(node: Guarded):
    expected, pair = node.launch()
    await shut_out(await node.dials(None))
    await node.still_starts(expected, pair)


async def test_a_self_signed_certificate_gets_no_stream(node: Guarded):
    expected, pair = node.launch()
    await shut_out(await node.dials(TlsAuthority().issue_client()))
    await node.still_starts(expected, pair)


async def test_a_certificate_of_an_earlier_node_gets_no_stream(node: Guarded):
    async with Guarded() as earlier:
        _, old = await earlier.runs()
    expected, pair = node.launch()
    await shut_out(await node.dials(old))
    await node.still_starts(expected, pair)


async def test_the_servers_certificate_is_none_of_a_client(node: Guarded):
    expected, pair = node.launch()
    assert node.authority is not None
    await shut_out(await node.dials(node.authority.issue_server("127.0.0.1")))
    await node.still_starts(expected, pair)


async def test_plain_text_gets_no_stream(node: Guarded):
    expected, pair = node.launch()
    await shut_out(await node.dial())
    await node.still_starts(expected, pair)


async def test_no_old_protocol_is_spoken(node: Guarded, tmp_path: Path):
    _, pair = node.launch()
    address = await node.listener.address_on("127.0.0.1")
    file = tmp_path / "client.pem"
    file.write_text(pair.key_pem + pair.cert_pem)

    async def version(most: ssl.TLSVersion) -> str | None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=node.root)
        context.load_cert_chain(file)
        context.set_alpn_protocols(["h2"])
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
        context.minimum_version = min(most, ssl.TLSVersion.TLSv1_2)
        context.maximum_version = most
        host, _, port = address.partition(":")
        _, writer = await asyncio.open_connection(host, int(port), ssl=context)
        found: str | None = writer.get_extra_info("ssl_object").version()
        writer.transport.abort()
        return found

    assert await version(ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
    assert await version(ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
    with (
        pytest.warns(DeprecationWarning, match="TLSv1_1 is deprecated"),
        pytest.raises((ssl.SSLError, ConnectionError)),
    ):
        await version(ssl.TLSVersion.TLSv1_1)


async def test_a_node_of_another_authority_is_not_talked_to(node: Guarded):
    """The other direction: chaincode knows the node too."""
    _, pair = node.launch()
    peer = await node.dials(pair, root=TlsAuthority().root_pem)
    code, text = await peer.refusal()
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "CERTIFICATE_VERIFY_FAILED" in text


async def names_shown(address: str, node: Guarded, tmp_path: Path) -> set[str]:
    """Return the names that the certificate at `address` holds for."""
    _, pair = node.launch()
    file = tmp_path / "client.pem"
    file.write_text(pair.key_pem + pair.cert_pem)
    context = ssl.create_default_context(cadata=node.root)
    context.load_cert_chain(file)
    context.check_hostname = False
    context.set_alpn_protocols(["h2"])
    host, _, port = address.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port), ssl=context)
    shown = writer.get_extra_info("ssl_object").getpeercert()["subjectAltName"]
    writer.transport.abort()
    return {name for _, name in shown}


async def test_the_certificate_holds_for_what_is_advertised(
    no_task_is_left: None, tmp_path: Path
):
    """A gateway of a container network, or a name that a user has set."""
    listen = ListenOptions(advertise=("peer.example.com", 7052))
    async with Guarded(listen=listen) as node:
        assert await node.listener.address_on("127.0.0.1") == "peer.example.com:7052"
        (bound,) = node.listener.addresses
        assert "peer.example.com" in await names_shown(bound, node, tmp_path)


async def test_a_name_that_becomes_known_later_is_shown_from_then_on(
    no_task_is_left: None, tmp_path: Path
):
    """One address serves launchers that call it by different names."""
    async with Guarded(listen=ListenOptions(bind=("0.0.0.0", 0))) as node:
        first = await node.listener.address_on("127.0.0.1")
        assert "127.0.0.2" not in await names_shown(first, node, tmp_path)
        await node.listener.address_on("127.0.0.2", "node.internal")
        shown = await names_shown(first, node, tmp_path)
        assert {"127.0.0.1", "127.0.0.2", "node.internal"} <= shown


# --- who cannot register --------------------------------------------------------------


@pytest.mark.statement(14)
async def test_a_chaincode_cannot_register_as_another(node: Guarded):
    """While that one is launched, and when it runs."""
    _, own = await node.runs(OTHER)
    expected, pair = node.launch()
    wrong = f"with given certificate hash {certificate_hash(own.cert_pem)}"
    text = f"Chaincode {CCID} {wrong} belongs to a different chaincode"
    assert await refused(await node.dials(own), CCID) == (DENIED, text)
    await node.still_starts(expected, pair)
    assert await refused(await node.dials(own), CCID) == (DENIED, text)


async def test_two_that_are_launched_cannot_change_places(node: Guarded):
    (first, one), (second, two) = node.launch(), node.launch(OTHER)
    for pair, name in ((one, OTHER), (two, CCID)):
        code, text = await refused(await node.dials(pair), name)
        assert code is DENIED
        assert "belongs to a different chaincode" in text
    await node.still_starts(first, one)
    await node.still_starts(second, two)


async def test_the_key_of_an_earlier_attempt_is_worth_nothing(node: Guarded):
    failed, old = node.launch()
    node.registry.forget(failed)
    expected, pair = node.launch()
    hashed = certificate_hash(old.cert_pem)
    text = (
        f"Chaincode {CCID} with given certificate hash {hashed} not found in registry"
    )
    assert await refused(await node.dials(old), CCID) == (DENIED, text)
    await node.still_starts(expected, pair)


async def test_a_key_is_worth_nothing_after_its_stream(node: Guarded):
    peer, old = await node.runs()
    await peer.leave()
    await node.handler.ended.wait()
    assert not node.registry.knows(certificate_hash(old.cert_pem))
    expected, pair = node.launch()
    _, text = await refused(await node.dials(old), CCID)
    assert text.endswith("not found in registry")
    await node.still_starts(expected, pair)


async def test_a_key_that_was_used_in_a_launch_is_not_good_for_it_again(node: Guarded):
    """It registers and leaves before anybody looks: once is once."""
    expected, pair = node.launch()
    peer = await node.dials(pair)
    await peer.send(Kind.REGISTER, chaincode_pb2.ChaincodeID(name=CCID))
    await eventually(lambda: node.registry.find(CCID) is not None)
    await peer.leave()
    await eventually(lambda: node.registry.find(CCID) is None)
    _, text = await refused(await node.dials(pair), CCID)
    assert text.endswith("not found in registry")
    node.registry.forget(expected)


async def test_the_run_before_cannot_take_the_place_of_the_next(node: Guarded):
    """It is still on its way down while the next attempt is expected."""
    _, old = await node.runs()
    expected, pair = node.launch()
    _, text = await refused(await node.dials(old), CCID)
    assert text.endswith("belongs to an earlier attempt")
    node.handler.end(Status.UNAVAILABLE, "stopped")
    await node.still_starts(expected, pair)


async def test_a_slow_start_is_not_refused(
    node: Guarded, monkeypatch: pytest.MonkeyPatch
):
    """An hour of building and booting: no clock decides about a registration."""
    expected, pair = node.launch()
    began = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: began() + 3600)
    wall = time.time
    monkeypatch.setattr(time, "time", lambda: wall() + 3600)
    await node.still_starts(expected, pair)


async def test_a_second_registration_is_refused_and_the_first_lives_on(node: Guarded):
    healthy, pair = await node.runs()
    second = await node.dials(pair)
    assert await refused(second, CCID) == (DENIED, f"duplicate chaincodeID: {CCID}")
    call = node.call(invocation("f"))
    await healthy.complete(await healthy.receive(), b"fine")
    assert (await call).response.payload == b"fine"


async def test_without_a_certificate_nobody_takes_the_place_of_one_that_has_one():
    """A listener in plain, and a launch with TLS: as if both were mixed up."""
    async with StreamNode() as node:
        expected = node.expect(certificate="ab" * 32)
        code, text = await refused(await node.dial(), CCID)
        assert code is DENIED
        assert text == f"TLS is active but chaincode {CCID} didn't send certificate"
        assert not expected.ready.settled


async def test_a_refusal_is_logged_and_no_key_is(node: Guarded):
    _, own = await node.runs(OTHER)
    node.launch()
    with capture_logs() as logs:
        await refused(await node.dials(own), CCID)
    assert [line["event"] for line in logs].count("registration refused") == 1
    assert own.key_pem.splitlines()[1] not in str(logs)
    assert certificate_hash(own.cert_pem) in str(logs)


async def test_a_line_tells_the_attempt_that_it_is_about(node: Guarded):
    with bound(attempt="of another"):
        await node.runs(OTHER)  # the listener begins here
    expected, pair = node.launch()
    with capture_logs(processors=[merge_contextvars]) as logs:
        await (await node.dials(pair)).register(CCID)
        await expected.ready.wait()
    told = next(line for line in logs if line["event"] == "chaincode registered")
    assert (told["ccid"], told["attempt"]) == (CCID, expected.attempt.id)


# --- floods ---------------------------------------------------------------------------


async def test_silent_streams_of_one_chaincode_do_not_keep_another_out(node: Guarded):
    _, greedy = await node.runs(OTHER)
    expected, pair = node.launch()
    silent = [await node.dials(greedy) for _ in range(MAX_UNREGISTERED_EACH)]
    for peer in silent:
        await peer.send(Kind.KEEPALIVE)
    await eventually(lambda: len(node.listener._unregistered) >= len(silent))
    code, text = await (await node.dials(greedy)).refusal()
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert text == "too many streams are open that have not registered"
    await node.still_starts(expected, pair)


async def test_silent_streams_end_and_make_room():
    async with Guarded(silence_s=0.5) as node:
        _, greedy = await node.runs(OTHER)
        for _ in range(3):
            silent = [await node.dials(greedy) for _ in range(MAX_UNREGISTERED_EACH)]
            for peer in silent:
                code, _ = await peer.refusal()
                assert code is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_streams_that_ended_are_not_kept(node: Guarded):
    peer, _ = await node.runs()
    await peer.leave()
    await eventually(lambda: not node.listener._unregistered)


async def test_certificates_do_not_pile_up(node: Guarded):
    for _ in range(50):
        expected, _ = node.launch()
        node.registry.forget(expected)
    for _ in range(5):
        peer, _ = await node.runs()
        await peer.leave()
        await node.handler.ended.wait()
    assert node.registry._certificates == {}


async def test_connections_that_say_nothing_do_not_grow_without_end(
    monkeypatch: pytest.MonkeyPatch, no_task_is_left: None
):
    monkeypatch.setattr("chaindock.rpc.server.MAX_CONNECTIONS", 20)
    async with Guarded() as node:
        expected, pair = node.launch()
        address = await node.listener.address_on("127.0.0.1")
        host, _, port = address.partition(":")
        pairs = [await asyncio.open_connection(host, int(port)) for _ in range(60)]

        async def closed(reader: asyncio.StreamReader) -> None:
            try:
                assert await reader.read() == b""
            except ConnectionResetError:
                return

        ends = [asyncio.ensure_future(closed(reader)) for reader, _ in pairs]
        await eventually(lambda: sum(end.done() for end in ends) >= 35)
        for _, writer in pairs:
            writer.close()
        await asyncio.gather(*ends)
        # The listener counts a connection until it has seen the end of it.
        shown = client(node.root, pair)
        async with asyncio.timeout(10), grpc.aio.secure_channel(address, shown) as own:
            await own.channel_ready()
        await node.still_starts(expected, pair)
