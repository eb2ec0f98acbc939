"""Transactions: put together from endorsements, and checked before they are ordered.

A transaction that is NOT_VALIDATED after `TransactionChecks.check` was signed by its
creator, carries the proposal that was endorsed, and has an endorsement of a peer.
Source: docs/fabric/ledger.md#order-of-checks
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fabric_protos.common import common_pb2
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
from chaindock.ledger.transaction import (
    Broken,
    ParsedTransaction,
    parse,
    read_action,
    read_headers,
    read_response,
    read_result,
    read_spaces,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chaindock.endorser.proposals import Proposal
    from chaindock.identity.msp import Identity, Msp, SigningIdentity
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


class TransactionChecks:
    """Checks of one channel's envelopes that need no state."""

    def __init__(self, channel: ChannelId, msp: Msp) -> None:
        self._channel = channel
        self._msp = msp

    def check(self, envelope: bytes) -> tuple[ParsedTransaction, Identity | None]:
        """Take a serialised Envelope apart and check it; never raises for any bytes.

        Returns:
            the transaction with its code, and its creator, None if that is not known.
        """
        tx, creator = ParsedTransaction(envelope), None
        try:
            outer, payload, header = read_headers(tx, self._channel)
            signed, creator = self._check_creator(tx, outer, payload)
            self._check_action(tx, payload, header, signed)
        except Broken as broken:
            tx.code = broken.code
        return tx, creator

    def _check_creator(
        self, tx: ParsedTransaction, envelope: Any, payload: Any
    ) -> tuple[Any, Identity]:
        """Check the signature; return the parsed SignatureHeader and the signer."""
        if tx.is_config:
            raise Broken(codes.UNSUPPORTED_TX_PAYLOAD)
        bad = codes.BAD_COMMON_HEADER
        signed = parse(common_pb2.SignatureHeader, payload.header.signature_header, bad)
        if not signed.nonce or not signed.creator:
            raise Broken(bad)
        try:
            identity = self._msp.identify(signed.creator)
            identity.verify(envelope.payload, envelope.signature)
        except Denied:
            raise Broken(codes.BAD_CREATOR_SIGNATURE) from None
        if tx.tx_id != transaction_id(signed.nonce, signed.creator):
            raise Broken(codes.BAD_PROPOSAL_TXID)
        return signed, identity

    def _check_action(
        self, tx: ParsedTransaction, payload: Any, header: Any, signed: Any
    ) -> None:
        invalid = codes.INVALID_ENDORSER_TRANSACTION
        outer, action = read_action(tx, payload)
        if outer.header != payload.header.signature_header and signed != parse(
            common_pb2.SignatureHeader, outer.header, invalid
        ):
            raise Broken(invalid)
        response = read_response(action)
        if response.proposal_hash != proposal_hash(
            payload.header.channel_header,
            payload.header.signature_header,
            action.chaincode_proposal_payload,
        ):
            raise Broken(invalid)
        result = read_result(tx, response)
        _check_names(tx, header, result)
        read_spaces(tx, result)
        self._check_endorsements(action.action)

    def _check_endorsements(self, endorsed: Any) -> None:
        """Require an endorsement by a peer of the only organisation.

        That satisfies the channel's default: MAJORITY of one organisation's OR(peer).
        """
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


def _check_names(tx: ParsedTransaction, header: Any, result: Any) -> None:
    """Check that header, action and event speak of the same chaincode."""
    extension = parse(
        proposal_pb2.ChaincodeHeaderExtension,
        header.extension,
        codes.BAD_HEADER_EXTENSION,
    )
    other = codes.INVALID_OTHER_REASON
    if not extension.HasField("chaincode_id") or not result.HasField("chaincode_id"):
        raise Broken(other)
    if not tx.name or extension.chaincode_id.name != tx.name or not tx.version:
        raise Broken(codes.INVALID_CHAINCODE)
    if result.events:
        event = parse(chaincode_event_pb2.ChaincodeEvent, result.events, other)
        if event.chaincode_id != tx.name:
            raise Broken(other)
