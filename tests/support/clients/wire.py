"""A client that sends any bytes: messages of all services, made from an identity."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from fabric_protos.common import common_pb2
from fabric_protos.discovery import protocol_pb2 as discovery
from fabric_protos.gateway import gateway_pb2 as pb
from fabric_protos.orderer import ab_pb2
from fabric_protos.peer import events_pb2, proposal_response_pb2
from google.protobuf import any_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from chaindock.identity.msp import SigningIdentity
from support.clients.network import CHANNEL
from support.ledgers.proposals import propose

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

DEADLINE_S = 30.0
LAST = 2**64 - 1
"""The number of no block: a listener that ends there never ends."""
UNARY = {
    "Evaluate": "/gateway.Gateway/Evaluate",
    "Endorse": "/gateway.Gateway/Endorse",
    "Submit": "/gateway.Gateway/Submit",
    "CommitStatus": "/gateway.Gateway/CommitStatus",
    "ProcessProposal": "/protos.Endorser/ProcessProposal",
    "Discover": "/discovery.Discovery/Discover",
}
STREAMS = {
    "Deliver": "/protos.Deliver/Deliver",
    "DeliverFiltered": "/protos.Deliver/DeliverFiltered",
    "DeliverWithPrivateData": "/protos.Deliver/DeliverWithPrivateData",
    "orderer Deliver": "/orderer.AtomicBroadcast/Deliver",
    "Broadcast": "/orderer.AtomicBroadcast/Broadcast",
}
EVENTS = "/gateway.Gateway/ChaincodeEvents"


def signer(identity: Mapping[str, str]) -> SigningIdentity:
    """Return who signs, from `{mspid, cert, key}` with paths."""
    key: Any = load_pem_private_key(Path(identity["key"]).read_bytes(), None)
    pem = Path(identity["cert"]).read_bytes()
    return SigningIdentity(identity["mspid"], pem, key)


class Wire:
    """A connection to one peer."""

    def __init__(self, channel: Any) -> None:
        self.channel = channel

    async def call(
        self, path: str, request: bytes, timeout_s: float = DEADLINE_S
    ) -> bytes:
        """Call a unary method. Raises: grpc.aio.AioRpcError."""
        answer: bytes = await self.channel.unary_unary(path)(request, timeout=timeout_s)
        return answer

    async def exchange(
        self, path: str, *requests: bytes, timeout_s: float = DEADLINE_S
    ) -> list[bytes]:
        """Send requests on a stream and return all answers. Raises: AioRpcError."""
        stream = self.channel.stream_stream(path)(iter(requests), timeout=timeout_s)
        return [answer async for answer in stream]

    def open(self, path: str) -> Any:
        """Return an open stream, to write and read."""
        return self.channel.stream_stream(path)()

    def events(self, request: bytes) -> Any:
        """Return the stream of a chaincode event listener."""
        return self.channel.unary_stream(EVENTS)(request)


@contextlib.asynccontextmanager
async def wire(place: Mapping[str, str]) -> AsyncIterator[Wire]:
    """Connect to `{address, tls_ca, tls_name}`."""
    credentials = grpc.ssl_channel_credentials(Path(place["tls_ca"]).read_bytes())
    options = [
        ("grpc.ssl_target_name_override", place["tls_name"]),
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    async with grpc.aio.secure_channel(
        place["address"], credentials, options
    ) as channel:
        yield Wire(channel)


# --- messages -------------------------------------------------------------------------


def proposal(
    who: SigningIdentity, name: str, *args: str, channel: str = CHANNEL, **secrets: str
) -> tuple[str, Any]:
    """Return the transaction id and the signed proposal of a call."""
    transient = {key: value.encode() for key, value in secrets.items()}
    return propose(who, channel, name, [one.encode() for one in args], transient)


def evaluate(who: SigningIdentity, name: str, *args: str) -> bytes:
    tx_id, signed = proposal(who, name, *args)
    request = pb.EvaluateRequest(
        transaction_id=tx_id, channel_id=CHANNEL, proposed_transaction=signed
    )
    return bytes(request.SerializeToString())


def endorse(who: SigningIdentity, name: str, *args: str) -> bytes:
    return endorse_of(*proposal(who, name, *args))


def endorse_of(tx_id: str, signed: Any, orgs: Sequence[str] = ()) -> bytes:
    request = pb.EndorseRequest(
        transaction_id=tx_id,
        channel_id=CHANNEL,
        proposed_transaction=signed,
        endorsing_organizations=orgs,
    )
    return bytes(request.SerializeToString())


def signed(who: SigningIdentity, endorsed: bytes) -> Any:
    """Return the signed envelope of an EndorseResponse."""
    envelope = pb.EndorseResponse.FromString(endorsed).prepared_transaction
    envelope.signature = who.sign(envelope.payload)
    return envelope


def submit(tx_id: str, envelope: Any) -> bytes:
    request = pb.SubmitRequest(
        transaction_id=tx_id, channel_id=CHANNEL, prepared_transaction=envelope
    )
    return bytes(request.SerializeToString())


def commit_status(who: SigningIdentity, tx_id: str) -> bytes:
    request = pb.CommitStatusRequest(
        transaction_id=tx_id, channel_id=CHANNEL, identity=who.creator
    ).SerializeToString()
    return bytes(
        pb.SignedCommitStatusRequest(
            request=request, signature=who.sign(request)
        ).SerializeToString()
    )


def position(number: int | None) -> Any:
    """Return a position: a block, or that of the next commit."""
    if number is None:
        return ab_pb2.SeekPosition(next_commit=ab_pb2.SeekNextCommit())
    return ab_pb2.SeekPosition(specified=ab_pb2.SeekSpecified(number=number))


def listen(who: SigningIdentity, name: str, start: int | None = None) -> bytes:
    request = pb.ChaincodeEventsRequest(
        channel_id=CHANNEL,
        chaincode_id=name,
        identity=who.creator,
        start_position=position(start),
    ).SerializeToString()
    return bytes(
        pb.SignedChaincodeEventsRequest(
            request=request, signature=who.sign(request)
        ).SerializeToString()
    )


def seek(who: SigningIdentity, start: int | None, stop: int = LAST) -> bytes:
    """Return the envelope that asks for blocks from `start` to `stop`."""
    header = common_pb2.Header(
        channel_header=common_pb2.ChannelHeader(
            type=common_pb2.DELIVER_SEEK_INFO,
            channel_id=CHANNEL,
            timestamp=Timestamp(seconds=int(time.time())),
        ).SerializeToString(),
        signature_header=common_pb2.SignatureHeader(
            creator=who.creator
        ).SerializeToString(),
    )
    info = ab_pb2.SeekInfo(start=position(start), stop=position(stop))
    payload = common_pb2.Payload(
        header=header, data=info.SerializeToString()
    ).SerializeToString()
    envelope = common_pb2.Envelope(payload=payload, signature=who.sign(payload))
    return bytes(envelope.SerializeToString())


def discover(who: SigningIdentity) -> bytes:
    """Return the question for the configuration of the channel."""
    query = discovery.Query(channel=CHANNEL, config_query=discovery.ConfigQuery())
    payload = discovery.Request(
        authentication=discovery.AuthInfo(client_identity=who.creator), queries=[query]
    ).SerializeToString()
    request = discovery.SignedRequest(payload=payload, signature=who.sign(payload))
    return bytes(request.SerializeToString())


# --- how each method answers ------------------------------------------------------------


async def answers(node: Wire, who: SigningIdentity, envelope: Any) -> dict[str, str]:
    """Return how each method answers somebody: `OK`, or code or status, and text.

    `envelope`: endorsed for a member; it is handed in as if it were that of `who`.
    """
    payload = common_pb2.Payload.FromString(envelope.payload)
    payload.header.signature_header = common_pb2.SignatureHeader(
        creator=who.creator, nonce=b"n" * 24
    ).SerializeToString()
    own = common_pb2.Envelope(payload=payload.SerializeToString())
    own.signature = who.sign(own.payload)
    words = ("basic", "put", "k", "x")
    requests = {
        "Evaluate": evaluate(who, *words),
        "Endorse": endorse(who, *words),
        "Submit": submit("t", own),
        "CommitStatus": commit_status(who, "0" * 64),
        "ProcessProposal": proposal(who, *words)[1].SerializeToString(),
        "Discover": discover(who),
    }
    told = {name: await _told(node, name, one) for name, one in requests.items()}
    for name, path in STREAMS.items():
        message = own.SerializeToString() if name == "Broadcast" else seek(who, 0, 0)
        *_, last = await node.exchange(path, message)
        kind = ab_pb2 if name == "Broadcast" else events_pb2
        answer = getattr(
            kind, f"{name}Response" if kind is ab_pb2 else "DeliverResponse"
        )
        found = answer.FromString(last)
        told[name] = f"{found.status} {getattr(found, 'info', '')}".strip()
    try:
        async with asyncio.timeout(0.5):
            await anext(aiter(node.events(listen(who, "nothing"))))
    except grpc.aio.AioRpcError as error:
        told["ChaincodeEvents"] = _shown(error)
    except TimeoutError:  # it listens
        told["ChaincodeEvents"] = "OK"
    return told


async def _told(node: Wire, name: str, request: bytes) -> str:
    try:
        # The status of a transaction that nobody knows is never told.
        answer = await node.call(
            UNARY[name], request, 0.5 if name == "CommitStatus" else 30
        )
    except grpc.aio.AioRpcError as error:
        waits = (
            name == "CommitStatus" and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        )
        return "OK" if waits else _shown(error)
    if name == "Discover":
        (result,) = discovery.Response.FromString(answer).results
        return result.error.content or "OK"
    return "OK"


def _shown(error: grpc.aio.AioRpcError) -> str:
    """Return code, text and the texts of the details of an error."""
    raw = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
    # A google.rpc.Status has its details where this message has its payload.
    payload = proposal_response_pb2.Response.FromString(raw).payload
    said = pb.ErrorDetail.FromString(any_pb2.Any.FromString(payload).value).message
    return f"{error.code().name} {error.details()} {said}".strip()
