"""The answers of a peer to a proposal: endorsed, without endorsement, or an error.

Source: docs/fabric/ledger.md#proposal, docs/fabric/peer.md#answers-to-proposals
"""

from __future__ import annotations

from fabric_protos.peer import proposal_response_pb2 as messages

from chaindock.chaincode.invocation import Outcome
from chaindock.endorser.checks import Proposal
from chaindock.errors import (
    ChaindockError,
    Denied,
    InvalidInput,
    LaunchFailed,
    NotFound,
    ProposalInvalid,
    TooManyRequests,
)
from chaindock.identity.msp import SigningIdentity
from chaindock.ledger.encoding import field, part


def respond(
    proposal: Proposal, outcome: Outcome, version: str, results: bytes
) -> messages.ProposalResponse:
    """Return a response that is not endorsed; `results` is the read-write set."""
    response, event = outcome.response, outcome.event
    action = field(1, results)
    if event is not None:
        action += field(2, event.SerializeToString())
    chaincode = field(2, proposal.name.encode()) + field(3, version.encode())
    action += part(3, response.SerializeToString()) + part(4, chaincode)
    payload = field(1, proposal.hash) + field(2, action)
    return messages.ProposalResponse(response=response, payload=payload)


def endorsed(
    answer: messages.ProposalResponse, signer: SigningIdentity
) -> messages.ProposalResponse:
    """Return the answer with the endorsement of `signer`, and no other."""
    own = messages.ProposalResponse()
    own.CopyFrom(answer)
    own.version = 1
    creator = own.endorsement.endorser = signer.creator
    own.endorsement.signature = signer.sign(answer.payload + creator)
    return own


def is_refusal(error: ChaindockError) -> bool:
    """Whether an error of `Endorser.process` is a gRPC error, not answered by `failure`."""
    refusals = ProposalInvalid, Denied, TooManyRequests
    return isinstance(error, refusals) or "committed" in error.facts


def failure(proposal: Proposal, error: ChaindockError) -> messages.ProposalResponse:
    """Return a peer's response when a proposal was admitted and has no outcome."""
    said = error.message
    if not isinstance(error, NotFound):
        unsaid = isinstance(error, LaunchFailed | InvalidInput)
        if unsaid and error.facts.get("ccid", error.facts.get("chaincode")):
            said = f"failed to execute transaction {proposal.tx_id}: {said}"
        said = f"error in simulation: {said}"
    response = messages.Response(status=500, message=said)
    return messages.ProposalResponse(response=response)
