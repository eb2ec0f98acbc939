"""Clients that send what no client should: each is refused, and nothing changes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import psutil
import pytest
from fabric_protos.common import common_pb2, ledger_pb2
from fabric_protos.gateway import gateway_pb2 as pb
from fabric_protos.orderer import ab_pb2
from fabric_protos.peer import proposal_pb2, proposal_response_pb2
from google.protobuf import any_pb2

from support.clients import wire
from support.clients.network import CHANNEL, Network, deploy, network
from support.clients.strangers import foreign, issued_by, mutations
from support.nodes.node import is_there

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from chaindock.identity.msp import SigningIdentity
    from support.clients.wire import Wire

pytestmark = [
    pytest.mark.slow,
    pytest.mark.nodejs,
    pytest.mark.network,
    pytest.mark.timeout(600),
]
ROUNDS = int(os.environ.get("CHAINDOCK_FUZZ", "300"))  # noqa: TID251  # more by hand
Code = grpc.StatusCode
MB = 10**6


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    with network(tmp_path_factory.mktemp("hostile")) as net:
        deploy(net, "basic", "OR('Org1MSP.member')")
        yield net


@pytest.fixture
def who(net: Network) -> SigningIdentity:
    return wire.signer(net.identity("Org1"))


@pytest.fixture
async def node(net: Network, who: SigningIdentity) -> AsyncIterator[Wire]:
    """A connection; afterwards a good client is served as before."""
    async with wire.wire(net.place("Org1")) as node:
        await committed(node, who, "put", "k", "before")
        yield node
        assert await evaluated(node, who, "get", "k") == "before"
    assert is_there(net.node.status["pid"])


async def evaluated(node: Wire, who: SigningIdentity, *args: str) -> str:
    request = wire.evaluate(who, "basic", *args)
    answer = await node.call(wire.UNARY["Evaluate"], request)
    payload: bytes = pb.EvaluateResponse.FromString(answer).result.payload
    return payload.decode()


async def height(node: Wire, who: SigningIdentity) -> int:
    request = wire.evaluate(who, "qscc", "GetChainInfo", CHANNEL)
    answer = await node.call(wire.UNARY["Evaluate"], request)
    info = pb.EvaluateResponse.FromString(answer).result.payload
    found: int = ledger_pb2.BlockchainInfo.FromString(info).height
    return found


async def endorsed(node: Wire, who: SigningIdentity, *args: str) -> tuple[str, Any]:
    """Return the id and the signed envelope of a transaction."""
    tx_id, proposal = wire.proposal(who, "basic", *args)
    request = wire.endorse_of(tx_id, proposal)
    answer = await node.call(wire.UNARY["Endorse"], request)
    return tx_id, wire.signed(who, answer)


async def code_of(node: Wire, who: SigningIdentity, tx_id: str) -> int:
    request = wire.commit_status(who, tx_id)
    answer = await node.call(wire.UNARY["CommitStatus"], request)
    found: int = pb.CommitStatusResponse.FromString(answer).result
    return found


async def committed(node: Wire, who: SigningIdentity, *args: str) -> str:
    tx_id, envelope = await endorsed(node, who, *args)
    await node.call(wire.UNARY["Submit"], wire.submit(tx_id, envelope))
    assert await code_of(node, who, tx_id) == 0
    return tx_id


async def refused(call: Any) -> grpc.aio.AioRpcError:
    """Return the error of a call that must have one."""
    with pytest.raises(grpc.aio.AioRpcError) as told:
        await call
    return told.value


def status_of(kind: Any, answers: list[bytes]) -> int:
    """Return the status of the last response of a stream."""
    found: int = kind.FromString(answers[-1]).status
    return found


# --- messages gone wrong ----------------------------------------------------------------


async def requests(node: Wire, who: SigningIdentity) -> dict[str, bytes]:
    """Return a good request for each method; what could be committed was, before."""
    tx_id, envelope = await endorsed(node, who, "put", "k", "before")
    submit = wire.submit(tx_id, envelope)
    await node.call(wire.UNARY["Submit"], submit)
    assert await code_of(node, who, tx_id) == 0
    seek = wire.seek(who, 0, 0)
    _, proposal = wire.proposal(who, "basic", "put", "k", "other")
    return {
        "Evaluate": wire.evaluate(who, "basic", "put", "k", "other"),
        "Endorse": wire.endorse(who, "basic", "put", "k", "other"),
        "Submit": submit,
        "CommitStatus": wire.commit_status(who, tx_id),
        "ProcessProposal": proposal.SerializeToString(),
        "Discover": wire.discover(who),
        "Broadcast": envelope.SerializeToString(),
        **{name: seek for name in wire.STREAMS if name != "Broadcast"},
    }


METHODS = [*wire.UNARY, *wire.STREAMS, "ChaincodeEvents"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("signer", ["nobody", "a member"])
async def test_broken_messages_are_refused(
    node: Wire, who: SigningIdentity, method: str, signer: str
):
    good = (await requests(node, who)).get(method) or wire.listen(who, "basic", 0)

    async def told(message: bytes) -> tuple[Any, str]:
        try:
            if method in wire.UNARY:
                await node.call(wire.UNARY[method], message, 5)
            elif method == "ChaincodeEvents":
                await anext(aiter(node.events(message)))
            else:
                await node.exchange(wire.STREAMS[method], message, timeout_s=5)
        except grpc.aio.AioRpcError as error:
            return error.code(), error.details() or ""
        return Code.OK, ""

    seed = len(method)
    broken = mutations(good, ROUNDS, seed)
    if signer == "a member":
        broken = resigned(who, method, good, seed)
    listens = method in {"ChaincodeEvents", "CommitStatus"} or "Deliver" in method
    waits = 0.5 if listens else 10
    for message in broken:
        with contextlib.suppress(TimeoutError):
            # A listener that was not broken enough waits for what comes.
            async with asyncio.timeout(waits):
                code, text = await told(message)
                assert "defect" not in text, (code, message.hex())


def resigned(
    who: SigningIdentity, method: str, good: bytes, seed: int
) -> Iterator[bytes]:
    """Yield requests that a member signed, broken inside of what is signed."""
    if method in {"Evaluate", "Endorse", "ProcessProposal"}:
        kind = {"Evaluate": pb.EvaluateRequest, "Endorse": pb.EndorseRequest}.get(
            method
        )
        proposal = proposal_pb2.SignedProposal
        whole = kind.FromString(good) if kind else None
        inner = whole.proposed_transaction if whole else proposal.FromString(good)
        for message in mutations(inner.proposal_bytes, ROUNDS, seed):
            signed = proposal(proposal_bytes=message, signature=who.sign(message))
            if whole:
                whole.proposed_transaction.CopyFrom(signed)
            yield (whole or signed).SerializeToString()
    elif method in {"CommitStatus", "ChaincodeEvents", "Discover"}:
        wrapped = pb.SignedCommitStatusRequest.FromString(good)
        for message in mutations(wrapped.request, ROUNDS, seed):
            wrapped.request, wrapped.signature = message, who.sign(message)
            yield wrapped.SerializeToString()
    else:
        submit = pb.SubmitRequest.FromString(good) if method == "Submit" else None
        found = common_pb2.Envelope.FromString(good) if submit is None else None
        envelope = found or submit.prepared_transaction  # type: ignore[union-attr]
        for message in mutations(envelope.payload, ROUNDS, seed):
            envelope.payload, envelope.signature = message, who.sign(message)
            yield (submit or envelope).SerializeToString()


async def test_bytes_that_are_no_http2_are_ignored(net: Network, node: Wire):
    host, _, port = net.place("Org1")["address"].rpartition(":")
    for junk in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01" + b"\xff" * 5000):
        with socket.create_connection((host, int(port)), 5) as raw:
            raw.sendall(junk)


async def test_methods_that_do_not_exist_are_told(node: Wire):
    for path in ("/gateway.Gateway/Nothing", "/no.Service/Evaluate", "/x"):
        told = await refused(node.call(path, b""))
        assert told.code() is Code.UNIMPLEMENTED


async def test_a_message_above_the_limit_is_refused(net: Network, node: Wire):
    process = psutil.Process(net.node.status["pid"])
    before = process.memory_info().rss
    for path in (wire.UNARY["Evaluate"], wire.UNARY["ProcessProposal"]):
        told = await refused(node.call(path, bytes(101 * 2**20)))
        assert told.code() is Code.RESOURCE_EXHAUSTED
    told = await refused(node.call(wire.UNARY["Discover"], bytes(2**20)))
    assert "at most 128 KiB" in (told.details() or "")
    for name, size in (("Deliver", 2**20), ("Broadcast", 11 * 2**20)):
        large = common_pb2.Envelope(payload=bytes(size)).SerializeToString()
        answers = await node.exchange(wire.STREAMS[name], large)
        # A status is the first field of either response.
        assert status_of(ab_pb2.BroadcastResponse, answers) == 400
    assert process.memory_info().rss - before < 250 * MB


# --- identities ---------------------------------------------------------------------------

REFUSED = {
    "Evaluate": "FAILED_PRECONDITION ",
    "Endorse": "ABORTED failed to endorse transaction",
    "Submit": "ABORTED received unsuccessful response from orderer: status=FORBIDDEN",
    "CommitStatus": "PERMISSION_DENIED ",
    "ProcessProposal": "UNKNOWN error validating proposal: access denied",
    "Discover": "access denied",
    "Deliver": "403",
    "DeliverFiltered": "403",
    "DeliverWithPrivateData": "403",
    "orderer Deliver": "403",
    "Broadcast": "403 ",
    "ChaincodeEvents": "PERMISSION_DENIED ",
}
"""How each method answers who is no member of the channel."""
EXPIRED = REFUSED | {
    "Evaluate": "UNAVAILABLE ",
    "Submit": "ABORTED received unsuccessful response from orderer: status=BAD_REQUEST",
    "CommitStatus": "OK",  # policies do not look at the time, as in Fabric
    "ProcessProposal": "UNKNOWN proposal client identity expired",
    "Broadcast": "400 broadcast client identity expired",
    "ChaincodeEvents": "OK",
}


def strangers(net: Network) -> dict[str, SigningIdentity]:
    ca = net.folder("Org1") / "ca"
    return {
        "foreign": foreign("Org9MSP"),
        "a foreign CA": foreign("Org1MSP"),
        "expired": issued_by(ca, "Org1MSP", expired=True),
        "of no role": issued_by(ca, "Org1MSP", unit="visitor"),
    }


@pytest.mark.parametrize(
    "stranger", ["foreign", "a foreign CA", "expired", "of no role"]
)
@pytest.mark.statement(59, 83, 84, of="client")
async def test_strangers_are_refused_everywhere(
    net: Network, node: Wire, who: SigningIdentity, stranger: str
):
    before = await height(node, who)
    _, envelope = await endorsed(node, who, "put", "k", "x")
    told = await wire.answers(node, strangers(net)[stranger], envelope)
    expired = stranger == "expired"
    for name, answer in told.items():
        assert answer.startswith((EXPIRED if expired else REFUSED)[name]), (
            name,
            answer,
        )
    if expired:  # refused before the peer looks at it: no peer answers
        assert told["Evaluate"].endswith(" proposal client identity expired")
    else:
        assert "access denied" in told["Evaluate"]
    assert await height(node, who) == before


# --- what was good once -------------------------------------------------------------------


@pytest.mark.statement(37, of="client")
async def test_replays_change_nothing(node: Wire, who: SigningIdentity):
    tx_id, proposal = wire.proposal(who, "basic", "add", "sum")
    endorse = wire.endorse_of(tx_id, proposal)
    envelope = wire.signed(who, await node.call(wire.UNARY["Endorse"], endorse))
    submit = wire.submit(tx_id, envelope)
    for _ in range(3):
        await node.call(wire.UNARY["Submit"], submit)
    assert await code_of(node, who, tx_id) == 0
    told = await refused(node.call(wire.UNARY["Endorse"], endorse))
    assert f"duplicate transaction found [{tx_id}]" in _detail(told)
    process = node.call(wire.UNARY["ProcessProposal"], proposal.SerializeToString())
    assert f"[{tx_id}]" in ((await refused(process)).details() or "")
    message = envelope.SerializeToString()
    answers = await node.exchange(wire.STREAMS["Broadcast"], message, message)
    assert status_of(ab_pb2.BroadcastResponse, answers) == 200
    await committed(node, who, "put", "other", "x")
    assert await evaluated(node, who, "get", "sum") == "1"


def _detail(error: grpc.aio.AioRpcError) -> str:
    """Return the message of the last detail of a status."""
    trailers = dict(error.trailing_metadata() or ())
    # A google.rpc.Status has its details where this message has its payload.
    status = proposal_response_pb2.Response.FromString(
        trailers["grpc-status-details-bin"]
    )
    message: str = pb.ErrorDetail.FromString(
        any_pb2.Any.FromString(status.payload).value
    ).message
    return message


async def test_a_result_that_nobody_endorsed_is_not_committed(
    node: Wire, who: SigningIdentity
):
    tx_id, envelope = await endorsed(node, who, "put", "k", "before")
    changed = envelope.payload.replace(b"before", b"behind")
    assert changed != envelope.payload
    envelope.payload = changed
    envelope.signature = who.sign(changed)
    await node.call(wire.UNARY["Submit"], wire.submit(tx_id, envelope))
    assert await code_of(node, who, tx_id) != 0


# --- clients that do not read -------------------------------------------------------------


async def test_clients_that_do_not_read_cost_little(
    net: Network, node: Wire, who: SigningIdentity
):
    value = "v" * 900_000
    for number in range(15):
        await committed(node, who, "put", f"large {number}", value)
    process = psutil.Process(net.node.status["pid"])
    before = process.memory_info().rss
    async with contextlib.AsyncExitStack() as stack:
        streams = []
        for _ in range(40):
            lazy = await stack.enter_async_context(wire.wire(net.place("Org1")))
            stream = lazy.open(wire.STREAMS["Deliver"])
            await stream.write(wire.seek(who, 0))
            streams.append(stream)
        held = -1
        while (now := process.memory_info().rss) != held:
            held = now
            await asyncio.sleep(0.5)
        async with asyncio.timeout(10):
            for _ in range(5):
                await committed(node, who, "put", "k", "before")
        # Their connections hold a window of data each, and the node one block for all.
        assert process.memory_info().rss - before < 40 * 3 * MB
        for stream in streams:
            stream.cancel()
