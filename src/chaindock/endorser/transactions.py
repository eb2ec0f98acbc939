"""Transactions: put together from endorsements, and judged before they are committed.

Owns:    assembling an envelope; validation codes that need no state.
Not:     duplicates and conflicts (ledger), order (orderer.py).
Entry:   prepare_payload, sign_payload, TransactionChecks.check
Holds:   an envelope that is NOT_VALIDATED here was signed by its creator, carries the
         proposal that was endorsed, and has an endorsement of a peer.
Source:  ledger-gateway.md §2.4, §4.1, §4.2, §5.2
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fabric_protos.common import common_pb2
from fabric_protos.ledger.rwset import rwset_pb2
from fabric_protos.ledger.rwset.kvrwset import kv_rwset_pb2
from fabric_protos.peer import (
    chaincode_event_pb2,
    proposal_pb2,
    proposal_response_pb2,
    transaction_pb2,
)
from fabric_protos.peer import transaction_pb2 as codes

from chaindock.endorser.proposals import proposal_hash, transaction_id
from chaindock.errors import Denied, InvalidInput
from chaindock.identity.msp import Role
from chaindock.ledger.decoding import Broken, open_envelope, parse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chaindock.endorser.proposals import Proposal
    from chaindock.identity.msp import Identity, Msp
    from chaindock.identity.signing import SigningIdentity
    from chaindock.ids import ChannelId

_OK = range(200, 400)


def prepare_payload(
    proposal: Proposal, responses: Sequence[proposal_response_pb2.ProposalResponse]
) -> bytes:
    """Return what the client signs: the Payload of the transaction, serialised.

    Raises:
        InvalidInput: no endorsements, an unsuccessful response, or responses that
            differ.
    """
    if not responses:
        raise InvalidInput("at least one proposal response is required")
    for response in responses:
        if response.response.status not in _OK:
            raise InvalidInput(
                "proposal response was not successful, error code "
                f"{response.response.status}, msg {response.response.message}"
            )
        if response.payload != responses[0].payload:
            raise InvalidInput("ProposalResponsePayloads do not match")
    endorsements = {
        response.endorsement.endorser: response.endorsement
        for response in reversed(responses)
        if response.HasField("endorsement")
    }
    if not endorsements:
        raise InvalidInput("no endorsements")
    action = transaction_pb2.ChaincodeActionPayload(
        chaincode_proposal_payload=proposal.payload,
        action=transaction_pb2.ChaincodeEndorsedAction(
            proposal_response_payload=responses[0].payload,
            endorsements=list(endorsements.values()),
        ),
    )
    transaction = transaction_pb2.Transaction(
        actions=[
            transaction_pb2.TransactionAction(
                header=proposal.signature_header_bytes,
                payload=action.SerializeToString(),
            )
        ]
    )
    payload = common_pb2.Payload(
        header=common_pb2.Header(
            channel_header=proposal.channel_header_bytes,
            signature_header=proposal.signature_header_bytes,
        ),
        data=transaction.SerializeToString(),
    )
    return bytes(payload.SerializeToString())


def sign_payload(proposal: Proposal, payload: bytes, signer: SigningIdentity) -> bytes:
    """Return the envelope. Raises: InvalidInput when `signer` made no such proposal."""
    if signer.creator != proposal.creator:
        raise InvalidInput(
            "signer must be the same as the one referenced in the header"
        )
    envelope = common_pb2.Envelope(payload=payload, signature=signer.sign(payload))
    return bytes(envelope.SerializeToString())


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found out about an envelope.

    Args:
        code: NOT_VALIDATED = nothing is wrong so far, else the TxValidationCode.
        tx_id: as the header says; "" when it cannot be read.
        chaincodes: the invoked one and all that are written to.
        creator: who signed; None when that was not found out.
    """

    code: int
    tx_id: str = ""
    chaincodes: frozenset[str] = frozenset()
    creator: Identity | None = None


class TransactionChecks:
    """Validation of one channel's envelopes, as far as no state is needed."""

    def __init__(self, channel: ChannelId, msp: Msp) -> None:
        self._channel = channel
        self._msp = msp

    def check(self, envelope: bytes) -> Checked:
        """Judge a serialised Envelope; never raises for any bytes."""
        tx_id, signer = "", None
        try:
            outer, payload, header = self._open(envelope)
            tx_id = header.tx_id
            creator, signer = self._check_creator(outer, payload, header)
            chaincodes = self._check_action(payload, header, creator)
        except Broken as broken:
            return Checked(broken.code, tx_id, creator=signer)
        return Checked(codes.NOT_VALIDATED, tx_id, chaincodes, signer)

    def _open(self, data: bytes) -> tuple[Any, Any, Any]:
        envelope, payload, header = open_envelope(data)
        if header.type in {common_pb2.CONFIG, common_pb2.CONFIG_UPDATE}:
            raise Broken(codes.UNSUPPORTED_TX_PAYLOAD)
        if header.type != common_pb2.ENDORSER_TRANSACTION or header.epoch:
            raise Broken(codes.BAD_COMMON_HEADER)
        if header.channel_id != self._channel:
            raise Broken(codes.TARGET_CHAIN_NOT_FOUND)
        return envelope, payload, header

    def _check_creator(
        self, envelope: Any, payload: Any, header: Any
    ) -> tuple[Any, Identity]:
        """Check who signed; return the parsed SignatureHeader and the signer."""
        bad = codes.BAD_COMMON_HEADER
        creator = parse(
            common_pb2.SignatureHeader, payload.header.signature_header, bad
        )
        if not creator.nonce or not creator.creator:
            raise Broken(bad)
        try:
            identity = self._msp.identify(creator.creator)
            identity.verify(envelope.payload, envelope.signature)
        except Denied:
            raise Broken(codes.BAD_CREATOR_SIGNATURE) from None
        if header.tx_id != transaction_id(creator.nonce, creator.creator):
            raise Broken(codes.BAD_PROPOSAL_TXID)
        return creator, identity

    def _check_action(self, payload: Any, header: Any, creator: Any) -> frozenset[str]:
        invalid = codes.INVALID_ENDORSER_TRANSACTION
        transaction = parse(transaction_pb2.Transaction, payload.data, invalid)
        if len(transaction.actions) != 1:
            raise Broken(invalid)
        outer = transaction.actions[0]
        if outer.header != payload.header.signature_header:
            action_header = parse(common_pb2.SignatureHeader, outer.header, invalid)
            if action_header != creator:
                raise Broken(invalid)
        action = parse(transaction_pb2.ChaincodeActionPayload, outer.payload, invalid)
        if not action.HasField("action"):
            raise Broken(codes.NIL_TXACTION)
        endorsed = action.action
        response = parse(
            proposal_response_pb2.ProposalResponsePayload,
            endorsed.proposal_response_payload,
            codes.BAD_RESPONSE_PAYLOAD,
        )
        expected = proposal_hash(
            payload.header.channel_header,
            payload.header.signature_header,
            action.chaincode_proposal_payload,
        )
        if response.proposal_hash != expected:
            raise Broken(invalid)
        names = _check_names(header, response)
        self._check_endorsements(endorsed)
        return names

    def _check_endorsements(self, endorsed: Any) -> None:
        """Require an endorsement by a peer: MAJORITY of one organisation's OR(peer)."""
        for endorsement in endorsed.endorsements:
            message = endorsed.proposal_response_payload + endorsement.endorser
            try:
                identity: Identity = self._msp.identify(endorsement.endorser)
                if identity.role is Role.PEER:
                    identity.verify(message, endorsement.signature)
                    return
            except Denied:
                continue
        raise Broken(codes.ENDORSEMENT_POLICY_FAILURE)


def _check_names(header: Any, response: Any) -> frozenset[str]:
    """Check that header, action, event and results speak of the same chaincode."""
    extension = parse(
        proposal_pb2.ChaincodeHeaderExtension,
        header.extension,
        codes.BAD_HEADER_EXTENSION,
    )
    bad = codes.BAD_RESPONSE_PAYLOAD
    action = parse(proposal_pb2.ChaincodeAction, response.extension, bad)
    if not extension.HasField("chaincode_id") or not action.HasField("chaincode_id"):
        raise Broken(codes.INVALID_OTHER_REASON)
    name = extension.chaincode_id.name
    if not name or action.chaincode_id.name != name or not action.chaincode_id.version:
        raise Broken(codes.INVALID_CHAINCODE)
    if action.events:
        other = codes.INVALID_OTHER_REASON
        event = parse(chaincode_event_pb2.ChaincodeEvent, action.events, other)
        if event.chaincode_id != name:
            raise Broken(other)
    rwset = parse(rwset_pb2.TxReadWriteSet, action.results, codes.BAD_RWSET)
    written = {ns.namespace for ns in rwset.ns_rwset if _writes(ns)}
    return frozenset(written | {name})


def _writes(ns: Any) -> bool:
    kv = parse(kv_rwset_pb2.KVRWSet, ns.rwset, codes.BAD_RWSET)
    return bool(kv.writes or kv.metadata_writes or ns.collection_hashed_rwset)
