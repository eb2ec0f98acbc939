"""With which gRPC status a call of a client ends: code, text, and details of peers.

Source: docs/fabric/gateway.md#errors
"""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

from fabric_protos.common import common_pb2
from fabric_protos.gateway.gateway_pb2 import ErrorDetail
from fabric_protos.peer.proposal_response_pb2 import Response
from google.protobuf.any_pb2 import Any as Packed

from chaindock.endorser.checks import Proposal
from chaindock.endorser.responses import failure, is_refusal
from chaindock.errors import (
    ChaindockError,
    Denied,
    InvalidInput,
    LedgerError,
    TooManyRequests,
    Unsupported,
)
from chaindock.gateway.seat import Seat
from chaindock.rpc.status import CallEnded, Status

_DETAIL: Final = "type.googleapis.com/gateway.ErrorDetail"
_TRAILER: Final = "grpc-status-details-bin"
_MOST: Final = 1500
"""Bytes of a text as it is sent. It is sent up to three times, and many clients take 8 KiB
of trailers; they would tell of the trailers instead."""


class Refusal(CallEnded):
    """Ends a call with a status; `details`: what peers said, by address and MSP id."""

    def __init__(self, code: Status, text: str, *details: ErrorDetail) -> None:
        self.details = details
        for one in details:
            one.message = fitting(one.message, _MOST // len(details))
        super().__init__(code, fitting(text))
        self.trailers = self._trailers()

    def _trailers(self) -> tuple[tuple[str, bytes], ...]:
        """Return the metadata that carry the details; () without any."""
        if not self.details:
            return ()
        # A google.rpc.Status: its first two fields are those of this message, and its
        # details are the third field, once for each.
        parts = [Response(status=self.code, message=self.text)]
        for one in self.details:
            packed = Packed(type_url=_DETAIL, value=one.SerializeToString())
            parts.append(Response(payload=packed.SerializeToString()))
        return ((_TRAILER, b"".join(part.SerializeToString() for part in parts)),)


def fitting(text: str, most: int = _MOST) -> str:
    """Return `text`, or its beginning if it would take more bytes than `most`."""
    if len(text) * 12 <= most or len(quote(text[: most + 1])) <= most:
        return text
    room, end = most - len(quote("…")), 0
    for character in text:
        room -= len(quote(character))
        if room < 0:
            break
        end += 1
    return f"{text[:end]}…"


def detail(seat: Seat, message: str) -> ErrorDetail:
    """Return what the peer of a server said."""
    return ErrorDetail(address=seat.address, msp_id=seat.mspid, message=message)


# --- errors of the endorser ---------------------------------------------------------


def endorser_status(
    error: ChaindockError, proposal: Proposal | None = None
) -> tuple[Status, str]:
    """Return the code and the text of an error of `Endorser.process`.

    `proposal`: None if it could not be read.
    """
    if isinstance(error, TooManyRequests) or "filtered" in error.facts:
        return Status.UNAVAILABLE, error.message
    if proposal is None or is_refusal(error):
        return Status.FAILED_PRECONDITION, error.message
    return Status.ABORTED, failure(proposal, error).response.message


def response_status(status: int, message: str) -> tuple[Status, str] | None:
    """Return the code and the text of a response of chaincode; None = it is a success."""
    if 200 <= status < 400:
        return None
    return Status.UNKNOWN, f"chaincode response {status}, {message}"


# --- errors of the orderer ----------------------------------------------------------


def broadcast_status(error: ChaindockError) -> tuple[int, str]:
    """Return the `common.Status` and the text of an error of `Orderer.order`."""
    status = common_pb2.INTERNAL_SERVER_ERROR
    if isinstance(error, Denied) and "policy" in error.facts:
        status = common_pb2.FORBIDDEN
    elif isinstance(error, (Denied, InvalidInput)):  # also of an expired certificate
        status = common_pb2.BAD_REQUEST
    elif isinstance(error, Unsupported):
        status = common_pb2.NOT_IMPLEMENTED
    elif isinstance(error, LedgerError):
        status = common_pb2.SERVICE_UNAVAILABLE
    return status, error.message
