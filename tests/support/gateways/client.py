"""A client that sends messages of the gateway as they are, and reads how a call ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import grpc
import grpc.aio
from fabric_protos.gateway import gateway_pb2 as pb
from fabric_protos.peer.proposal_response_pb2 import Response
from google.protobuf.any_pb2 import Any as Packed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from chaindock.identity.msp import SigningIdentity

_LIMITS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),  # each client has a connection of its own
]
_NAME = "grpc.ssl_target_name_override"
SERVICE = "gateway.Gateway"
RESPONSES: dict[str, Any] = {
    "Evaluate": pb.EvaluateResponse,
    "Endorse": pb.EndorseResponse,
    "Submit": pb.SubmitResponse,
    "CommitStatus": pb.CommitStatusResponse,
}


@dataclass(frozen=True)
class Ended:
    """How a call ended without a response; `details` as (address, MSP id, message)."""

    code: str
    text: str
    details: tuple[tuple[str, str, str], ...] = ()

    @classmethod
    def of(cls, error: grpc.aio.AioRpcError) -> Self:
        trailers = dict(error.trailing_metadata() or ())
        raw = trailers.get("grpc-status-details-bin", b"")
        return cls(error.code().name, error.details() or "", tuple(_details(raw)))


def _details(raw: bytes) -> list[tuple[str, str, str]]:
    """Return the details in a google.rpc.Status: its field 3, as often as it comes."""
    found = []
    while raw:
        # All three fields are there in a Response, and the last of each counts.
        tag, size, start = raw[0], 0, 1
        if tag == 8:  # the code
            while raw[start] & 0x80:
                start += 1
            raw = raw[start + 1 :]
            continue
        shift = 0
        while True:
            size |= (raw[start] & 0x7F) << shift
            shift, start = shift + 7, start + 1
            if not raw[start - 1] & 0x80:
                break
        field, raw = raw[: start + size], raw[start + size :]
        if tag == 26:
            packed = Packed.FromString(Response.FromString(field).payload)
            assert packed.type_url == "type.googleapis.com/gateway.ErrorDetail"
            one = pb.ErrorDetail.FromString(packed.value)
            found.append((one.address, one.msp_id, one.message))
    return found


class Client:
    """A connection to a server; an async context manager.

    Args:
        ca: PEM of the TLS CA, None = without TLS.
        name: TLS name of the server, when it is another than that of its address.
    """

    def __init__(
        self,
        address: str,
        ca: bytes | Path | None,
        name: str = "",
        pair: tuple[bytes, bytes] = (b"", b""),
    ) -> None:
        options: list[tuple[str, Any]] = list(_LIMITS)
        if name:
            options.append((_NAME, name))
        if ca is None:
            self._channel = grpc.aio.insecure_channel(address, options=options)
            return
        pem = ca if isinstance(ca, bytes) else ca.read_bytes()
        key, certificate = (one or None for one in pair)
        credentials = grpc.ssl_channel_credentials(pem, key, certificate)
        self._channel = grpc.aio.secure_channel(address, credentials, options=options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()

    async def raw(
        self,
        method: str,
        request: bytes,
        timeout_s: float | None = 20.0,
        service: str = SERVICE,
    ) -> bytes | Ended:
        """Return the serialised response, or how the call ended."""
        call: Any = self._channel.unary_unary(f"/{service}/{method}")
        try:
            return bytes(await call(request, timeout=timeout_s))
        except grpc.aio.AioRpcError as error:
            return Ended.of(error)

    async def call(
        self, method: str, request: Any, timeout_s: float | None = 20.0
    ) -> Any:
        """Return the response, or how the call ended."""
        found = await self.raw(method, request.SerializeToString(), timeout_s)
        return (
            found if isinstance(found, Ended) else RESPONSES[method].FromString(found)
        )

    async def stream(
        self, method: str, request: bytes, timeout_s: float = 20.0
    ) -> AsyncIterator[bytes | Ended]:
        """Yield the serialised responses; how the call ended comes last."""
        call: Any = self._channel.unary_stream(f"/{SERVICE}/{method}")
        try:
            async for one in call(request, timeout=timeout_s):
                yield one
        except grpc.aio.AioRpcError as error:
            yield Ended.of(error)

    def open(self, service: str, method: str) -> Any:
        """Return a call on which both sides send as many messages as they like."""
        return self._channel.stream_stream(f"/{service}/{method}")()


def status_request(
    client: SigningIdentity,
    channel: str,
    tx_id: str,
    signer: SigningIdentity | None = None,
) -> pb.SignedCommitStatusRequest:
    """Return the question for a transaction's status, signed by the client."""
    request = pb.CommitStatusRequest(
        transaction_id=tx_id, channel_id=channel, identity=client.creator
    ).SerializeToString()
    signature = (signer or client).sign(request)
    return pb.SignedCommitStatusRequest(request=request, signature=signature)


def events_request(
    client: SigningIdentity, channel: str, chaincode: str, **fields: Any
) -> bytes:
    """Return the request for the events of a chaincode, signed by the client."""
    request = pb.ChaincodeEventsRequest(
        channel_id=channel, chaincode_id=chaincode, identity=client.creator, **fields
    ).SerializeToString()
    signed = pb.SignedChaincodeEventsRequest(
        request=request, signature=client.sign(request)
    )
    return bytes(signed.SerializeToString())
