"""Signed proposals: how they are made, parsed and checked, with Fabric's texts.

Header bytes stay exactly as the client sent them. Nothing unchecked is executed.
Source: docs/fabric/ledger.md#proposal
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

from fabric_protos.common import common_pb2
from fabric_protos.peer import chaincode_pb2, proposal_pb2
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from chaindock.errors import Denied, ProposalInvalid
from chaindock.identity.msp import Role
from chaindock.ids import ChannelId, TxId

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from chaindock.identity.msp import Identity, Msp, SigningIdentity

NONCE_BYTES: Final = 24
WRITERS: Final = "/Channel/Application/Writers"
_PREFIX: Final = "error validating proposal: "
_TYPES: Final = frozenset({common_pb2.ENDORSER_TRANSACTION, common_pb2.CONFIG})


@dataclass(frozen=True, slots=True)
class Proposal:
    """A signed proposal, taken apart.

    Args:
        channel_header: parsed.
        channel_header_bytes, signature_header_bytes: as they came.
        payload: ChaincodeProposalPayload without the transient map; this is what is
            hashed and what the transaction carries.
        name: of the chaincode to run.
        refusals: what the node refused to the chaincode while it ran.
    """

    signed: proposal_pb2.SignedProposal
    channel_header: common_pb2.ChannelHeader
    channel_header_bytes: bytes
    signature_header_bytes: bytes
    creator: bytes
    nonce: bytes
    name: str
    input: chaincode_pb2.ChaincodeInput
    payload: bytes
    refusals: list[str] = field(default_factory=list)

    @property
    def tx_id(self) -> TxId:
        """The transaction id that the client claims."""
        return TxId(self.channel_header.tx_id)

    @property
    def channel(self) -> ChannelId:
        """The channel; "" for calls to the node itself."""
        return ChannelId(self.channel_header.channel_id)

    @property
    def hash(self) -> bytes:
        """The proposal hash that endorsements commit to."""
        return proposal_hash(
            self.channel_header_bytes, self.signature_header_bytes, self.payload
        )


def transaction_id(nonce: bytes, creator: bytes) -> TxId:
    """Return the id that belongs to a nonce and a creator."""
    return TxId(sha256(nonce + creator).hexdigest())


def proposal_hash(
    channel_header: bytes, signature_header: bytes, payload: bytes
) -> bytes:
    """Return the hash of a proposal; `payload` has no transient map."""
    return sha256(channel_header + signature_header + payload).digest()


def new_proposal(
    channel: str,
    name: str,
    args: Sequence[bytes],
    signer: SigningIdentity,
    *,
    transient: Mapping[str, bytes] | None = None,
    is_init: bool = False,
) -> proposal_pb2.SignedProposal:
    """Return a new proposal, signed as a client does.

    Args:
        channel: "" for a call to the node itself.
        name: of the chaincode.
        args: function name and arguments.
        signer: the client.
        transient: seen by the chaincode, never on the ledger.
        is_init: call Init.
    """
    nonce = os.urandom(NONCE_BYTES)
    seconds, nanos = divmod(time.time_ns(), 1_000_000_000)
    chaincode = chaincode_pb2.ChaincodeID(name=name)
    header = common_pb2.ChannelHeader(
        type=common_pb2.ENDORSER_TRANSACTION,
        timestamp=Timestamp(seconds=seconds, nanos=nanos),
        channel_id=channel,
        tx_id=transaction_id(nonce, signer.creator),
        extension=proposal_pb2.ChaincodeHeaderExtension(
            chaincode_id=chaincode
        ).SerializeToString(),
    )
    spec = chaincode_pb2.ChaincodeInvocationSpec(
        chaincode_spec=chaincode_pb2.ChaincodeSpec(
            chaincode_id=chaincode,
            input=chaincode_pb2.ChaincodeInput(args=args, is_init=is_init),
        )
    )
    data = proposal_pb2.Proposal(
        header=common_pb2.Header(
            channel_header=header.SerializeToString(),
            signature_header=common_pb2.SignatureHeader(
                creator=signer.creator, nonce=nonce
            ).SerializeToString(),
        ).SerializeToString(),
        payload=proposal_pb2.ChaincodeProposalPayload(
            input=spec.SerializeToString(), TransientMap=transient
        ).SerializeToString(),
    ).SerializeToString()
    return proposal_pb2.SignedProposal(proposal_bytes=data, signature=signer.sign(data))


def parse_proposal(signed: proposal_pb2.SignedProposal) -> Proposal:
    """Take a signed proposal apart. Raises: ProposalInvalid."""
    data = _parse(proposal_pb2.Proposal, signed.proposal_bytes, "Proposal")
    header = _parse(common_pb2.Header, data.header, "Header")
    channel_header = _parse(
        common_pb2.ChannelHeader, header.channel_header, "ChannelHeader"
    )
    signature_header = _parse(
        common_pb2.SignatureHeader, header.signature_header, "SignatureHeader"
    )
    extension = _parse(
        proposal_pb2.ChaincodeHeaderExtension,
        channel_header.extension,
        "ChaincodeHeaderExtension",
    )
    if not extension.HasField("chaincode_id"):
        raise ProposalInvalid("ChaincodeHeaderExtension.ChaincodeId is nil")
    if not extension.chaincode_id.name:
        raise ProposalInvalid("ChaincodeHeaderExtension.ChaincodeId.Name is empty")
    payload = _parse(
        proposal_pb2.ChaincodeProposalPayload, data.payload, "ChaincodeProposalPayload"
    )
    return Proposal(
        signed=signed,
        channel_header=channel_header,
        channel_header_bytes=header.channel_header,
        signature_header_bytes=header.signature_header,
        creator=signature_header.creator,
        nonce=signature_header.nonce,
        name=extension.chaincode_id.name,
        input=_input_of(payload.input),
        payload=proposal_pb2.ChaincodeProposalPayload(
            input=payload.input
        ).SerializeToString(),
    )


def _input_of(raw: bytes) -> chaincode_pb2.ChaincodeInput:
    call = _parse(chaincode_pb2.ChaincodeInvocationSpec, raw, "ChaincodeInvocationSpec")
    if not call.HasField("chaincode_spec"):
        raise ProposalInvalid(
            "chaincode invocation spec did not contain chaincode spec"
        )
    if not call.chaincode_spec.HasField("input"):
        raise ProposalInvalid("chaincode input did not contain any input")
    found: chaincode_pb2.ChaincodeInput = call.chaincode_spec.input
    # Only the peer sets decorations.
    found.ClearField("decorations")
    return found


def _parse(kind: Any, data: bytes, what: str) -> Any:
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise ProposalInvalid(f"error unmarshalling {what}: {error}") from error


def check_proposal(proposal: Proposal, msp: Msp) -> Identity:
    """Check headers, transaction id and signature, after `check_expiry`.

    Returns:
        the signer.

    Raises:
        ProposalInvalid, Denied.
    """
    _check_headers(proposal)
    signed = proposal.signed
    if not signed.proposal_bytes:
        raise ProposalInvalid(f"{_PREFIX}empty proposal bytes")
    if not signed.signature:
        raise ProposalInvalid(f"{_PREFIX}empty signature bytes")
    access = f"{_PREFIX}access denied: channel [{proposal.channel}] creator org"
    try:
        identity = msp.identify(proposal.creator)
    except Denied as error:
        if error.mspid is None:
            text = f"{access} unknown, creator is malformed"
        else:
            text = f"{access} [{error.mspid}]"
        raise Denied(text, hint=error.message) from error
    try:
        identity.verify(signed.proposal_bytes, signed.signature)
    except Denied as error:
        raise Denied(f"{access} [{identity.mspid}]", hint=error.message) from error
    return identity


def _check_headers(proposal: Proposal) -> None:
    header = proposal.channel_header
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


def check_expiry(proposal: Proposal, msp: Msp) -> None:
    """Refuse a creator whose certificate has expired.

    Raises: Denied. Creators that cannot be read are left to `check_proposal`.
    """
    try:
        expired = msp.identify(proposal.creator).expired
    except Denied:
        return
    if expired:
        raise Denied("proposal client identity expired")


def require_writer(identity: Identity) -> None:
    """Check the channel policy Writers. Raises: Denied."""
    if identity.role not in {Role.CLIENT, Role.ADMIN}:
        raise Denied(
            f"failed evaluating policy on signed data during check policy [{WRITERS}]: "
            "[implicit policy evaluation failed - 0 sub-policies were satisfied, but "
            "this policy requires 1 of the 'Writers' sub-policies to be satisfied]",
            hint="only clients and admins may propose transactions",
        )
