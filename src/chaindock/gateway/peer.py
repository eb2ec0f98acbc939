"""`protos.Endorser`: proposals to the peer of one organisation.

A refused proposal is a gRPC error, everything else a response, as with a peer. Only the
peer that is asked endorses.
Source: docs/fabric/peer.md#answers-to-proposals
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from fabric_protos.peer import proposal_response_pb2 as messages
from fabric_protos.peer.proposal_pb2 import SignedProposal

from chaindock.aio import off_loop
from chaindock.chaincode.invocation import ERROR_STATUS, Outcome
from chaindock.endorser.channel import Channel, Joined
from chaindock.endorser.checks import Proposal, check_expiry, check_proposal, receive
from chaindock.endorser.endorser import Watch
from chaindock.endorser.responses import failure, is_refusal, respond
from chaindock.endorser.simulation import undefined
from chaindock.errors import ChaindockError, NotFound
from chaindock.gateway.calls import Service
from chaindock.gateway.requests import unmarshalled
from chaindock.gateway.seat import Seat
from chaindock.gateway.statuses import Refusal
from chaindock.identity.msp import Msps
from chaindock.identity.organization import Organizations
from chaindock.rpc.status import Status


def service(
    channels: Mapping[str, Channel],
    organizations: Organizations,
    window_s: float,
    limit: int,
    seat: Seat,
) -> Service:
    """Return the service of one peer, for `ClientListener`.

    `window_s`: seconds that the clock of a client may differ. `limit`: most proposals at
    once; 0 = no limit.
    """
    made = Peer(seat.mspid, channels, organizations, window_s)
    unary = {"ProcessProposal": made.process_proposal}
    return Service("protos.Endorser", unary, limit=limit)


class Peer:
    """Answers proposals as the peer of the organisation `mspid`."""

    def __init__(
        self,
        mspid: str,
        channels: Mapping[str, Channel],
        organizations: Organizations,
        window_s: float,
    ) -> None:
        self._mspid, self._channels = mspid, Joined(channels, mspid)
        self._system = channels
        self._organizations, self._window_s = organizations, window_s

    async def process_proposal(self, request: bytes, _context: Any = None) -> bytes:
        """Answer a serialised SignedProposal with a ProposalResponse. Raises: Refusal."""
        size = len(request)
        signed = await off_loop(size, partial(unmarshalled, SignedProposal, request))
        del request
        try:
            read = partial(receive, signed, self._window_s)
            answer, size = await self._process(await off_loop(size, read))
        except ChaindockError as error:
            raise Refusal(Status.UNKNOWN, error.message) from error
        return await off_loop(size, answer.SerializeToString)

    async def _process(
        self, proposal: Proposal
    ) -> tuple[messages.ProposalResponse, int]:
        """Return the answer and its bytes. Raises: ChaindockError: it is refused."""
        try:
            if not proposal.channel:
                answer = await self._ask_system(proposal)
                return answer, len(answer.response.payload)
            channel = self._channels.get(proposal.channel)
            if channel is None:
                check_expiry(proposal, self._local())
                raise NotFound(f"channel '{proposal.channel}' not found")
            outcome, answers = await channel.endorser.process(
                proposal, endorse=True, endorsers=(self._mspid,)
            )
        except ChaindockError as error:
            if is_refusal(error):
                raise
            return failure(proposal, error), len(error.message)
        if answers:
            return answers[0], outcome.nbytes
        make = partial(messages.ProposalResponse, response=outcome.response)
        return await off_loop(outcome.nbytes, make), outcome.nbytes

    async def _ask_system(self, proposal: Proposal) -> messages.ProposalResponse:
        """Answer a proposal without a channel, which only system chaincodes can."""
        with Watch(proposal) as watch:
            local = self._local()
            check_expiry(proposal, local)
            size = proposal.nbytes
            identity = await off_loop(size, partial(check_proposal, proposal, local))
            watch.admitted = True
            first = next(iter(self._system.values()), None)
            system = {} if first is None else first.endorser.system
            if (name := proposal.name) not in system:
                raise undefined(name)
            args: list[bytes] = await off_loop(size, partial(list, proposal.input.args))
            response = await system[name].execute(None, args, identity, self._mspid)
            watch.endorsed = response.status < ERROR_STATUS
            if response.status < 500:
                return messages.ProposalResponse(response=response)
            make = partial(respond, proposal, Outcome(response, None), "syscc", b"")
            return await off_loop(size, make)

    def _local(self) -> Msps:
        found = self._organizations.find(self._mspid)
        return Msps([found.msp] if found else [])
