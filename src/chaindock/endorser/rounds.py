"""Have a proposal simulated by the peers of as many organisations as must sign.

Each peer runs the chaincode on the same snapshot and signs what came out there; a
transaction needs equal results. Peers run it at the same time, each in a process of its
own, or where one process serves several of them, in turn.
Source: docs/fabric/peer.md#endorsement-by-several-peers
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final

from fabric_protos.peer.proposal_response_pb2 import ProposalResponse

from chaindock.aio import off_loop
from chaindock.chaincode.invocation import ERROR_STATUS, Outcome
from chaindock.endorser.checks import Proposal
from chaindock.endorser.determinism import differences, parts
from chaindock.endorser.plan import Plan, choose
from chaindock.endorser.responses import endorsed, failure, respond
from chaindock.endorser.simulation import UNSIMULATED
from chaindock.errors import (
    ChaindockError,
    EndorsersMissing,
    ExecuteTimeout,
    NotEndorsed,
)
from chaindock.identity.msp import Identity
from chaindock.ids import Ccid, at_peer
from chaindock.ledger.simulator import Simulator

if TYPE_CHECKING:
    from chaindock.endorser.endorser import Endorser

Answered = tuple[Outcome, Sequence[ProposalResponse]]
_FAILED_STATUS: Final = 500
"""From this status on an answer has what was read and written, too, but is not signed."""
_MOST_SHOWN: Final = 3
"""Differences between two results that an error tells."""


@dataclass(eq=False)
class Simulated:
    """What a chaincode said at one peer, and what it read and wrote.

    `answer` is None until `take`, without interest and endorsement; `private` are the
    private data that were written.
    """

    proposal: Proposal
    simulator: Simulator
    outcome: Outcome
    version: str
    answer: ProposalResponse | None = None
    private: bytes = b""

    @property
    def failed(self) -> bool:
        """Whether nobody signs this."""
        return bool(self.outcome.response.status >= ERROR_STATUS)

    async def take(self, largest_bytes: int) -> ProposalResponse:
        """Return the answer. Raises: InvalidInput: too large to be ordered."""
        if self.answer is None:
            size = self.simulator.held + self.outcome.nbytes
            self.answer = await off_loop(size, partial(self._take, largest_bytes))
        return self.answer

    def _take(self, largest_bytes: int) -> ProposalResponse:
        results = self.simulator.results(largest_bytes)
        self.private = self.simulator.private_results()
        return respond(self.proposal, self.outcome, self.version, results)


@dataclass(eq=False)
class Round:
    """One proposal, and what the peers have made of it."""

    endorser: Endorser
    proposal: Proposal
    identity: Identity
    timeout_s: float | None
    named: Sequence[str]
    """MSP ids of those that sign; none = `at`, and those that policies need."""
    asked: str | None
    """MSP id of the peer that is asked first, or alone, unless some are named; None = as
    `Endorser.peer_of`."""
    endorse: bool
    """False: nobody signs."""
    strict: bool
    """As for `Endorser.process`."""

    def __post_init__(self) -> None:
        endorser, mspid = self.endorser, self.identity.mspid
        named = endorser.peers_of(self.named)
        first = next(iter(named), self.asked)
        self.at = first or endorser.peer_of(self.proposal, mspid)
        self.named = list(dict.fromkeys(named)) if self.endorse else []
        # One that is stopped meanwhile ends what it has begun.
        self._peers = dict(endorser.peers)
        self._found: dict[str, Simulated | ChaindockError] = {}
        self._unequal: tuple[ProposalResponse, ProposalResponse] | None = None

    async def run(self) -> Answered:
        """As `Endorser.process`, and says more. Raises: NotEndorsed."""
        proposal = self.proposal
        self._origin = self.endorser.ledger.new_simulator(proposal.tx_id)
        self._simulators = [self._origin]
        try:
            await self._ask(self.named or [self.at])
            if len(self.named) > 1:
                # All say yes, or all the same no.
                found = ((mspid, self._found[mspid]) for mspid in self.named)
                said = {mspid: await self._refusal(one) for mspid, one in found}
                if len(set(said.values())) > 1:
                    no = {mspid: why for mspid, why in said.items() if why}
                    raise await self._not_endorsed(no)
            first = self._found[self.at]
            if isinstance(first, ChaindockError):
                raise first
            refused = ERROR_STATUS <= first.outcome.response.status < _FAILED_STATUS
            if not (self.endorse and proposal.channel) or refused:
                return first.outcome, ()
            interest, signers = None, self.named
            told = signers and not self.strict and proposal.name not in UNSIMULATED
            if told or not (signers or first.failed):
                plan = await self._plan(first)
                signers = signers or plan.endorsers
                interest = plan.interest(first.simulator) if told else None
            if first.failed:
                signers = []
                answer = await first.take(self.endorser.largest_bytes)
            else:
                signers = await self._agreed(first, signers)
                answer = await first.take(self.endorser.largest_bytes)
                if first.private:
                    keep = self.endorser.ledger.keep_private
                    await keep(proposal.tx_id, first.private)
            if interest is not None:
                answer.interest.CopyFrom(interest)
            peers = [self._peers[mspid] for mspid in signers]
            size = first.outcome.nbytes + first.simulator.held
            signed = await off_loop(
                size, lambda: [endorsed(answer, one) for one in peers]
            )
            return replace(first.outcome, nbytes=size), signed or [answer]
        finally:
            for simulator in self._simulators:
                simulator.done()

    # ---- the peers

    async def _ask(self, mspids: Sequence[str]) -> None:
        """Have those peers simulate that have not."""
        missing = [mspid for mspid in mspids if mspid not in self._found]
        if len(missing) == 1:
            self._found[missing[0]] = await self._simulate(missing[0])
            return
        async with asyncio.TaskGroup() as tasks:
            started = {m: tasks.create_task(self._simulate(m)) for m in missing}
        self._found |= {mspid: task.result() for mspid, task in started.items()}

    async def _simulate(self, mspid: str) -> Simulated | ChaindockError:
        proposal, simulator = self.proposal, self._origin
        if mspid != self.at:
            simulator = Simulator(
                simulator.tx_id, simulator.snapshot(), strict=simulator.strict
            )
            self._simulators.append(simulator)
            proposal = replace(proposal, refusals=[], spent={})
        endorser = self.endorser
        run = endorser.simulation(proposal, self.identity, simulator, mspid)
        shared = proposal.name not in endorser.system
        process = endorser.executor.process_of(mspid) if shared else mspid
        try:
            # A process takes a transaction once at a time.
            async with endorser.turns.hold((proposal.tx_id, process)):
                outcome, version = await run.run(self.timeout_s)
        except ChaindockError as error:
            return error
        return Simulated(proposal, simulator, outcome, version)

    # ---- who signs

    async def _plan(self, first: Simulated, without: Collection[str] = ()) -> Plan:
        """Return who signs; as few others than the peer that was asked as possible."""
        known = self._peers
        at = {self.at: known[self.at]} if self.at in known else {}
        peers = {**at, **known}
        return await choose(
            self.endorser.configuration,
            {mspid: one for mspid, one in peers.items() if mspid not in without},
            self.proposal.name,
            first.simulator,
            strict=bool(without) or (self.strict and not self.named),
            transient=self.proposal.transient and not self.named,
        )

    async def _agreed(self, first: Simulated, signers: Sequence[str]) -> Sequence[str]:
        """Return who signs what came out first; others stand in for those that refuse.

        Raises: NotEndorsed: too few are left.
        """
        refusals: dict[str, str] = {}
        while True:
            await self._ask(signers)
            for mspid in signers:
                if why := await self._refusal(self._found[mspid], first):
                    refusals[mspid] = why
            if not refusals.keys() & set(signers):
                return signers
            if self.named or refusals.keys() >= self._peers.keys():
                raise await self._not_endorsed(refusals)
            try:
                signers = (await self._plan(first, refusals)).endorsers
            except EndorsersMissing:
                raise await self._not_endorsed(refusals) from None

    async def _refusal(
        self, one: Simulated | ChaindockError, first: Simulated | None = None
    ) -> str:
        """Return why a peer does not sign what came out first, if given; "" = it does."""
        if isinstance(one, ChaindockError):
            return str(failure(self.proposal, one).response.message)
        if one.failed:
            response = one.outcome.response
            return f"chaincode response {response.status}, {response.message}"
        if first is None or first is one:
            return ""
        largest = self.endorser.largest_bytes
        theirs, own = await first.take(largest), await one.take(largest)
        if theirs.payload == own.payload:
            return ""
        self._unequal = theirs, own
        return "ProposalResponsePayloads do not match"

    async def _not_endorsed(self, refusals: Mapping[str, str]) -> NotEndorsed:
        told = [f"{mspid}: {why}" for mspid, why in refusals.items()]
        process = self.endorser.executor.process_of(next(iter(refusals)))
        place = at_peer(Ccid(self.proposal.name), process)
        hint = f"read what it wrote: chaindock logs {place}"
        if self._unequal is not None:
            size = sum(len(one.payload) for one in self._unequal)
            told += await off_loop(size, partial(_differing, *self._unequal))
            hint = (
                "let the contract write the same at each peer, whatever the clock, random "
                "numbers, the order of maps and the organisation of the peer"
            )
        return NotEndorsed(
            "the peers of some organisations do not endorse what others do: "
            + "; ".join(told),
            hint=hint,
            organizations=dict(refusals),
            late=any(isinstance(self._found[one], ExecuteTimeout) for one in refusals),
        )


def _differing(*answers: ProposalResponse) -> list[str]:
    """Say where answers differ, and the values there."""
    found = [dict(parts(answer.response, answer.payload)) for answer in answers]
    told = []
    for what, ns, collection, key, values in map(astuple, differences(found)):
        name = key.hex() if collection else key.decode(errors="replace")
        where = "/".join(filter(None, (ns, collection, name)))
        shown = " and ".join("none" if v is None else repr(v[:40]) for v in values)
        told.append(f"{what} {where}".rstrip() + f": {shown}")
    return told[:_MOST_SHOWN]
