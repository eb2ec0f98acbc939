"""What is checked of the proposals of clients, with Fabric's texts.

Header bytes stay exactly as the client sent them, and nothing unchecked is executed.
Source: docs/fabric/ledger.md#proposal
"""

from __future__ import annotations

import datetime as dt
import os
import time
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final

from fabric_protos.common import common_pb2
from fabric_protos.peer import chaincode_pb2, proposal_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from chaindock.chaincode.wire import message_of
from chaindock.errors import Denied, InvalidInput, ProposalInvalid
from chaindock.identity.msp import Identity, Msps
from chaindock.ids import Ccid, ChannelId, TxId
from chaindock.lifecycle.deployments import Deployments
from chaindock.values import show_duration

UNREADABLE: Final = "proto: cannot parse invalid wire-format data"
"""What a peer says of bytes that are no message."""
_PREFIX: Final = "error validating proposal: "
_NONCE_BYTES: Final = 24
_TYPES: Final = frozenset({common_pb2.ENDORSER_TRANSACTION, common_pb2.CONFIG})


@dataclass(slots=True, eq=False)
class Proposal:
    """A signed proposal, taken apart.

    Args:
        channel: "" for calls to the node itself.
        tx_id: as the client claims it.
        payload: ChaincodeProposalPayload without the transient map; this is what is
            hashed and what the transaction carries.
        name: of the chaincode to run; `called` is the same, as the invocation names it.
        nbytes: of `signed`.
        transient: whether it carries values that the ledger does not get.
        drawn: whether this node has just made and signed it: no transaction has its id.
        refusals: what the node refused to the chaincode while it ran.
        spent: what the chaincode asked for, as `Invocation.spent`.
        ran: what its simulations run: a chaincode by channel and name, and its package.
    """

    signed: proposal_pb2.SignedProposal
    header: common_pb2.ChannelHeader
    channel: ChannelId
    tx_id: TxId
    channel_header_bytes: bytes
    signature_header_bytes: bytes
    creator: bytes
    nonce: bytes
    name: str
    called: str
    input: chaincode_pb2.ChaincodeInput
    payload: bytes
    nbytes: int
    transient: bool = False
    drawn: bool = False
    refusals: list[str] = field(default_factory=list)
    spent: dict[str, list[float]] = field(default_factory=dict)
    ran: set[tuple[Deployments, str, Ccid]] = field(default_factory=set)

    @property
    def hash(self) -> bytes:
        """The proposal hash that endorsements commit to."""
        return proposal_hash(
            self.channel_header_bytes, self.signature_header_bytes, self.payload
        )


def transaction_id(nonce: bytes, creator: bytes) -> TxId:
    """Return the id that belongs to a nonce and a creator."""
    return TxId(sha256(nonce + creator).hexdigest())


def new_header(
    kind: int, channel: str, creator: bytes, now_ns: int | None = None
) -> tuple[bytes, common_pb2.ChannelHeader]:
    """Return a nonce, and the channel header of a transaction that begins now."""
    nonce = os.urandom(_NONCE_BYTES)
    begin_ns = time.time_ns() if now_ns is None else now_ns
    seconds, nanos = divmod(begin_ns, 1_000_000_000)
    return nonce, common_pb2.ChannelHeader(
        type=kind,
        timestamp=Timestamp(seconds=seconds, nanos=nanos),
        channel_id=channel,
        tx_id=transaction_id(nonce, creator),
    )


def proposal_hash(
    channel_header: bytes, signature_header: bytes, payload: bytes
) -> bytes:
    """Return the hash of a proposal; `payload` has no transient map."""
    return sha256(channel_header + signature_header + payload).digest()


def parse_proposal(
    signed: proposal_pb2.SignedProposal, *, drawn: bool = False
) -> Proposal:
    """Take a signed proposal apart; `drawn`: as in `Proposal`. Raises: ProposalInvalid."""
    data = parse(proposal_pb2.Proposal, signed.proposal_bytes)
    header = parse(common_pb2.Header, data.header)
    channel_header = parse(common_pb2.ChannelHeader, header.channel_header)
    signature_header = parse(common_pb2.SignatureHeader, header.signature_header)
    extension = parse(proposal_pb2.ChaincodeHeaderExtension, channel_header.extension)
    if not extension.HasField("chaincode_id"):
        raise ProposalInvalid("ChaincodeHeaderExtension.ChaincodeId is nil")
    if not extension.chaincode_id.name:
        raise ProposalInvalid("ChaincodeHeaderExtension.ChaincodeId.Name is empty")
    payload = parse(proposal_pb2.ChaincodeProposalPayload, data.payload)
    spec = _spec_of(payload.input)
    return Proposal(
        signed=signed,
        header=channel_header,
        channel=ChannelId(channel_header.channel_id),
        tx_id=TxId(channel_header.tx_id),
        channel_header_bytes=header.channel_header,
        signature_header_bytes=header.signature_header,
        creator=signature_header.creator,
        nonce=signature_header.nonce,
        name=extension.chaincode_id.name,
        called=spec.chaincode_id.name,
        input=spec.input,
        nbytes=signed.ByteSize(),
        transient=bool(payload.TransientMap),
        drawn=drawn,
        payload=proposal_pb2.ChaincodeProposalPayload(
            input=payload.input
        ).SerializeToString(),
    )


def receive(signed: proposal_pb2.SignedProposal, window_s: float) -> Proposal:
    """As `parse_proposal`, for a client outside, whose clock must be right."""
    outer = _part("proposal", proposal_pb2.Proposal, signed.proposal_bytes)
    header = _part("header", common_pb2.Header, outer.header)
    _part("signature header", common_pb2.SignatureHeader, header.signature_header)
    said = _part("channel header", common_pb2.ChannelHeader, header.channel_header)
    check_clock(said, window_s)
    return parse_proposal(signed)


def check_clock(said: common_pb2.ChannelHeader, window_s: float) -> None:
    """Raise ProposalInvalid if its time is further from this clock's than `window_s`."""
    now_s = time.time()
    if abs(said.timestamp.seconds + said.timestamp.nanos / 1e9 - now_s) > window_s:
        window = show_duration(window_s)
        window += {"h": "0m0s", "m": "0s"}.get(window[-1], "")  # as Go writes it
        raise ProposalInvalid(
            f"request unauthorized due to incorrect timestamp "
            f"{_shown(said.timestamp.seconds)}, peer time {_shown(int(now_s))}, "
            f"peer.authentication.timewindow {window}",
            hint="set the client's clock right",
            filtered=True,
        )


def _part(what: str, kind: Any, data: bytes) -> Any:
    try:
        return parse(kind, data)
    except ProposalInvalid as error:
        raise ProposalInvalid(f"failed parsing {what}: {error.message}") from error


def _shown(seconds: int) -> str:
    """Return seconds since 1970 as RFC 3339; those far from now as a number."""
    try:
        return f"{dt.datetime.fromtimestamp(seconds, dt.UTC):%Y-%m-%dT%H:%M:%SZ}"
    except (OverflowError, ValueError, OSError):
        return str(seconds)


def _spec_of(raw: bytes) -> chaincode_pb2.ChaincodeSpec:
    call = parse(chaincode_pb2.ChaincodeInvocationSpec, raw)
    if not call.HasField("chaincode_spec"):
        raise ProposalInvalid(
            "chaincode invocation spec did not contain chaincode spec"
        )
    if not call.chaincode_spec.HasField("input"):
        raise ProposalInvalid("chaincode input did not contain any input")
    found: chaincode_pb2.ChaincodeSpec = call.chaincode_spec
    # Only the peer sets decorations.
    found.input.ClearField("decorations")
    return found


def parse(kind: Any, data: bytes) -> Any:
    """Return a message of a type. Raises: ProposalInvalid."""
    try:
        return message_of(kind, data)
    except InvalidInput as error:
        what = kind.DESCRIPTOR.name
        raise ProposalInvalid(f"error unmarshalling {what}: {error.message}") from error


def check_proposal(proposal: Proposal, msps: Msps) -> Identity:
    """Check headers, id, signature; return the signer. Raises: ProposalInvalid, Denied."""
    signed = proposal.signed
    if not proposal.drawn:
        _check_headers(proposal)
        if not signed.proposal_bytes:
            raise ProposalInvalid(f"{_PREFIX}empty proposal bytes")
        if not signed.signature:
            raise ProposalInvalid(f"{_PREFIX}empty signature bytes")
    access = f"{_PREFIX}access denied: channel [{proposal.channel}] creator org"
    mspid: object = None
    try:
        identity = msps.identify(proposal.creator)
        mspid = identity.mspid
        if not proposal.drawn:
            identity.verify(signed.proposal_bytes, signed.signature)
    except Denied as error:
        mspid = error.facts.get("mspid", mspid)
        who = "unknown, creator is malformed" if mspid is None else f"[{mspid}]"
        raise Denied(f"{access} {who}", hint=error.message) from error
    return identity


def _check_headers(proposal: Proposal) -> None:
    header = proposal.header
    if header.type not in _TYPES:
        known = header.type in common_pb2.HeaderType.values()
        name = common_pb2.HeaderType.Name(header.type) if known else str(header.type)
        raise ProposalInvalid(f"{_PREFIX}invalid header type {name}")
    if header.epoch:
        raise ProposalInvalid(f"{_PREFIX}epoch is non-zero")
    if not proposal.nonce:
        raise ProposalInvalid(f"{_PREFIX}nonce is empty")
    if not proposal.creator:
        raise ProposalInvalid(f"{_PREFIX}creator is empty")
    expected = transaction_id(proposal.nonce, proposal.creator)
    if header.tx_id != expected:
        raise ProposalInvalid(
            f"{_PREFIX}incorrectly computed txid '{header.tx_id}' -- expected "
            f"'{expected}'"
        )


def check_expiry(proposal: Proposal, msps: Msps) -> None:
    """Refuse a creator whose certificate has expired.

    Raises: Denied. Creators that cannot be read are left to `check_proposal`.
    """
    try:
        expired = msps.identify(proposal.creator).expired
    except Denied:
        return
    if expired:
        raise Denied("proposal client identity expired", filtered=True)
