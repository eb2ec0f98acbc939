"""`protos.Endorser`: proposals to the peer of one organisation.

A refused proposal is a gRPC error, everything else a response, as with a peer. Only the
peer that is asked endorses.
Source: docs/fabric/peer.md#answers-to-proposals
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from fabric_protos.peer import proposal_response_pb2 as messages
from fabric_protos.peer.proposal_pb2 import SignedProposal

from chaindock.aio import Latch, off_loop
from chaindock.chaincode.invocation import ERROR_STATUS, Outcome
from chaindock.endorser.channel import Joined
from chaindock.endorser.checks import check_expiry, check_proposal, receive
from chaindock.endorser.endorser import End, Watch
from chaindock.endorser.responses import endorsed, failure, is_refusal, respond
from chaindock.endorser.simulation import undefined
from chaindock.errors import ChaindockError, NotFound
from chaindock.gateway.listener import Service
from chaindock.gateway.requests import unmarshalled
from chaindock.gateway.statuses import Refusal, Status
from chaindock.identity.msp import Msps

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from chaindock.endorser.channel import Channel
    from chaindock.endorser.checks import Proposal
    from chaindock.gateway.listener import Seat
    from chaindock.identity.organization import Organizations

    _Answered = tuple[Outcome, Sequence[messages.ProposalResponse]]
    _Work = Callable[[], Awaitable[_Answered]]


def service(
    channels: Mapping[str, Channel],
    organizations: Organizations,
    window_s: float,
    limit: int,
    running: Running,
    seat: Seat,
) -> Service:
    """Return the service of one peer, for `ClientListener`.

    `window_s`: seconds that the clock of a client may differ. `limit`: most proposals at
    once; 0 = no limit. `running`: of all peers of the node.
    """
    made = Peer(seat.mspid, channels, organizations, window_s, running)
    unary = {"ProcessProposal": made.process_proposal}
    return Service("protos.Endorser", unary, limit=limit)


class _Left(Exception):
    """The client left whose proposal the others waited for."""


class Running:
    """What the peers of a node work on, so that they do not run one proposal twice.

    A client sends one proposal to the peers of several organisations at the same time.
    Their chaincode is one here: it runs once, and each peer signs what came out.
    """

    def __init__(self) -> None:
        self._running: dict[object, Latch[_Answered]] = {}

    async def once(self, proposal: Proposal, work: _Work) -> _Answered:
        """Return the outcome of `work` for these bytes, which may be under way already."""
        data, signature = proposal.signed.proposal_bytes, proposal.signed.signature
        digest = await off_loop(len(data), lambda: sha256(data).digest())
        key = digest, signature
        while (known := self._running.get(key)) is not None:
            with suppress(_Left):
                return await known.wait()
        latch = self._running[key] = Latch()
        try:
            answered = await work()
        except ChaindockError as error:
            latch.fail(error)
            raise
        except BaseException:
            latch.fail(_Left())
            raise
        finally:
            del self._running[key]
        latch.settle(answered)
        return answered


class Peer:
    """Answers proposals as the peer of the organisation `mspid`."""

    def __init__(
        self,
        mspid: str,
        channels: Mapping[str, Channel],
        organizations: Organizations,
        window_s: float,
        running: Running,
    ) -> None:
        self._mspid, self._channels = mspid, Joined(channels, mspid)
        self._system = channels
        self._organizations, self._window_s = organizations, window_s
        self._running = running

    async def process_proposal(self, request: bytes, _context: Any = None) -> bytes:
        """Answer a serialised SignedProposal with a ProposalResponse. Raises: Refusal."""
        parse = partial(unmarshalled, SignedProposal, request)
        signed = await off_loop(len(request), parse)
        try:
            read = partial(receive, signed, self._window_s)
            answer = await self._process(await off_loop(len(request), read))
        except ChaindockError as error:
            raise Refusal(Status.UNKNOWN, error.message) from error
        size = len(answer.payload) + len(answer.response.payload)
        return await off_loop(size, answer.SerializeToString)

    async def _process(self, proposal: Proposal) -> messages.ProposalResponse:
        """Return the answer. Raises: ChaindockError: the proposal is refused."""
        try:
            if not proposal.channel:
                return await self._ask_system(proposal)
            channel = self._channels.get(proposal.channel)
            if channel is None:
                check_expiry(proposal, self._local())
                raise NotFound(f"channel '{proposal.channel}' not found")
            outcome, answers = await self._endorse(proposal, channel)
        except ChaindockError as error:
            if is_refusal(error):
                raise
            return failure(proposal, error)
        for answer in answers:
            signer = channel.members.peers[self._mspid]
            if answer.endorsement.endorser in {b"", signer.creator}:
                return answer
            sign = partial(endorsed, answer, signer)
            return await off_loop(len(answer.payload), sign)
        return messages.ProposalResponse(response=outcome.response)

    async def _endorse(self, proposal: Proposal, channel: Channel) -> _Answered:
        """Run a proposal, unless another peer of the node does. Raises: ChaindockError."""
        work = partial(
            channel.endorser.process, proposal, endorse=True, endorsers=(self._mspid,)
        )
        if proposal.name in channel.endorser.system:
            return await work()  # the answer depends on whose peer it is
        return await self._running.once(proposal, work)

    async def _ask_system(self, proposal: Proposal) -> messages.ProposalResponse:
        """Answer a proposal without a channel, which only system chaincodes can."""
        with Watch(proposal) as watch:
            local = self._local()
            check_expiry(proposal, local)
            identity = check_proposal(proposal, local)
            watch.admitted = True
            first = next(iter(self._system.values()), None)
            system = {} if first is None else first.endorser.system
            if (name := proposal.name) not in system:
                raise undefined(name)
            args = proposal.input.args
            response = await system[name].execute(None, args, identity, self._mspid)
            failed = response.status >= ERROR_STATUS
            watch.end = End.REFUSED if failed else End.ENDORSED
            if response.status < 500:
                return messages.ProposalResponse(response=response)
            outcome = Outcome(response, None)
            return respond(proposal, outcome, "syscc", b"", (), None)[0]

    def _local(self) -> Msps:
        found = self._organizations.find(self._mspid)
        return Msps([found.msp] if found else [])
