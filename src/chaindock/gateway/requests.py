"""What clients ask the gateway: requests taken apart, with Fabric's texts for wrong ones.

Source: docs/fabric/gateway.md#errors
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from hashlib import sha256
from typing import Any, Final

from fabric_protos.common import common_pb2
from fabric_protos.gateway import gateway_pb2 as pb
from fabric_protos.peer import chaincode_pb2, proposal_pb2
from google.protobuf.message import DecodeError

from chaindock.aio import off_loop
from chaindock.chaincode.wire import message_of
from chaindock.endorser import acl
from chaindock.endorser.channel import Channel
from chaindock.endorser.checks import UNREADABLE, Proposal, parse, parse_proposal
from chaindock.errors import Denied, InvalidInput, ProposalInvalid
from chaindock.gateway.calls import Call as Context
from chaindock.gateway.statuses import Refusal
from chaindock.rpc.status import Status

_UNPACK: Final = "failed to unpack transaction proposal: "


def invalid(text: str) -> Refusal:
    """Return the end of a call whose request is wrong."""
    return Refusal(Status.INVALID_ARGUMENT, text)


def unmarshalled(kind: Any, request: bytes) -> Any:
    """Return a request of a message type. Raises: Refusal, as gRPC of Go has it."""
    try:
        return message_of(kind, request)
    except InvalidInput as error:
        text = f"grpc: error unmarshalling request: {error.message}"
        raise Refusal(Status.INTERNAL, text) from None


def is_bound(claimed: bytes, context: Context) -> bool:
    """Whether a request names the TLS certificate that its client has shown, by SHA-256."""
    shown = context.certificate
    return shown is not None and sha256(shown).digest() == claimed


# --- proposals ----------------------------------------------------------------------


def evaluated(raw: bytes) -> tuple[Any, Proposal | ProposalInvalid]:
    """Return an EvaluateRequest, and its proposal or what is wrong. Raises: Refusal."""
    request = unmarshalled(pb.EvaluateRequest, raw)
    if not request.HasField("proposed_transaction"):
        raise invalid(f"{_UNPACK}a signed proposal is required")
    try:
        proposal = parse_proposal(request.proposed_transaction)
    except ProposalInvalid as error:
        _unpack(request.proposed_transaction.proposal_bytes)
        return request, error
    if not (proposal.channel and proposal.called):
        _unpack(request.proposed_transaction.proposal_bytes)
    return request, proposal


def _unpack(data: bytes) -> None:
    """Raise what a gateway misses in a proposal before it looks for a peer, if anything."""
    try:
        header, spec = _headers(data)
    except ProposalInvalid as error:
        raise invalid(f"{_UNPACK}{error.message}") from error
    if not header.channel_id:
        raise invalid(f"{_UNPACK}no channel id provided")
    missing = None
    if not spec.HasField("chaincode_spec"):
        missing = "spec"
    elif not spec.chaincode_spec.HasField("chaincode_id"):
        missing = "id"
    elif not spec.chaincode_spec.chaincode_id.name:
        missing = "name"
    if missing:
        text = f"no chaincode {missing} is provided, channel id [{header.channel_id}]"
        raise invalid(f"{_UNPACK}{text}")


def _headers(data: bytes) -> tuple[Any, Any]:
    """Return channel header and invocation of a proposal. Raises: ProposalInvalid."""
    outer = parse(proposal_pb2.Proposal, data)
    header = parse(common_pb2.Header, outer.header)
    channel_header = parse(common_pb2.ChannelHeader, header.channel_header)
    payload = parse(proposal_pb2.ChaincodeProposalPayload, outer.payload)
    return channel_header, parse(chaincode_pb2.ChaincodeInvocationSpec, payload.input)


def proposed(raw: bytes) -> tuple[Any, Proposal | ProposalInvalid]:
    """Return an EndorseRequest; as `evaluated`."""
    request = unmarshalled(pb.EndorseRequest, raw)
    if not request.proposed_transaction.proposal_bytes:
        raise invalid("the proposed transaction must contain a signed proposal")
    try:
        return request, parse_proposal(request.proposed_transaction)
    except ProposalInvalid as error:
        try:
            _headers(request.proposed_transaction.proposal_bytes)
        except ProposalInvalid as unreadable:
            raise invalid(unreadable.message) from unreadable
        return request, error


# --- transactions and their commit --------------------------------------------------


def submitted(raw: bytes) -> tuple[str, bytes]:
    """Return the channel and the signed envelope of a SubmitRequest. Raises: Refusal."""
    request = unmarshalled(pb.SubmitRequest, raw)
    if not request.HasField("prepared_transaction"):
        raise invalid("a prepared transaction is required")
    if not request.prepared_transaction.signature:
        raise invalid("prepared transaction must be signed")
    return request.channel_id, request.prepared_transaction.SerializeToString()


def commit_status(raw: bytes) -> tuple[Any, Any]:
    """Return a CommitStatusRequest and what it was signed in. Raises: Refusal."""
    signed = unmarshalled(pb.SignedCommitStatusRequest, raw)
    request = _inner(pb.CommitStatusRequest, signed, "commit status")
    if not request.identity:
        raise invalid("no identity provided")
    if not request.channel_id:
        raise invalid("no channel ID provided")
    if not request.transaction_id:
        raise invalid("transaction ID should not be empty")
    return request, signed


def events(raw: bytes) -> tuple[Any, Any]:
    """Return a ChaincodeEventsRequest and what it was signed in. Raises: Refusal."""
    signed = unmarshalled(pb.SignedChaincodeEventsRequest, raw)
    return _inner(pb.ChaincodeEventsRequest, signed, "chaincode events"), signed


def _inner(kind: Any, signed: Any, what: str) -> Any:
    if not signed.request:
        raise invalid(f"a {what} request is required")
    try:
        return kind.FromString(signed.request)
    except DecodeError:
        name = what.removeprefix("commit ")
        raise invalid(f"invalid {name} request: {UNREADABLE}") from None


async def opened(
    channels: Mapping[str, Channel], resource: str, request: Any, signed: Any
) -> Channel:
    """Return the channel of a signed request whose signer may use `resource` there.

    `request` is what was in `signed`. Raises: Refusal.
    """
    channel = channels.get(request.channel_id)
    if channel is None:
        text = f"Failed to get policy manager for channel [{request.channel_id}]"
        raise Refusal(Status.PERMISSION_DENIED, text)
    configuration = channel.members.configuration
    identity = None
    try:
        identity = configuration.msps.identify(request.identity)
        check = partial(identity.verify, signed.request, signed.signature)
        await off_loop(len(signed.request), check)
    except Denied:
        identity = None
    try:
        acl.require(configuration, resource, identity)
    except Denied as error:
        raise Refusal(Status.PERMISSION_DENIED, error.message) from error
    return channel
