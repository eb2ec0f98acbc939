"""Check a proposal, simulate it, and endorse what came out.

Only a response below 400 is endorsed, and every simulation is released.
Source: docs/fabric/ledger.md#proposal
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from fabric_protos.ledger.rwset import rwset_pb2
from fabric_protos.peer import (
    chaincode_pb2,
    proposal_pb2,
    proposal_response_pb2,
)

from chaindock.chaincode.invocation import Invocation, Outcome
from chaindock.endorser.proposals import (
    check_expiry,
    check_proposal,
    parse_proposal,
    require_writer,
)
from chaindock.endorser.watch import Watch, unreadable
from chaindock.errors import (
    ChaindockError,
    ExecuteFailed,
    InvalidInput,
    LaunchFailed,
    LedgerError,
    NotFound,
    ProposalInvalid,
    TooManyRequests,
    TransactionExists,
)
from chaindock.lifecycle.definitions import NAMESPACE
from chaindock.options import option
from chaindock.values import Whole

if TYPE_CHECKING:
    from collections.abc import Mapping

    from chaindock.chaincode.support import ChaincodeSupport
    from chaindock.endorser.proposals import Proposal
    from chaindock.identity.msp import Identity, Msp, SigningIdentity
    from chaindock.ledger.ledger import Ledger
    from chaindock.ledger.simulator import Simulator
    from chaindock.lifecycle.contract import LifecycleContract
    from chaindock.lifecycle.definitions import Definition, Definitions

_ERROR: Final = 400
_FAILED: Final = 500
_MANY_KEYS: Final = 2000
"""Results of more keys are put together in a thread: 100,000 take most of a second."""
_INITIALIZED: Final = "\x00\U0010ffffinitialized"


@dataclass(frozen=True)
class EndorserOptions:
    """How many proposals are worked on at once; above, a proposal is refused."""

    concurrency: Whole = option(
        2500,
        "peer.limits.concurrency.endorserService",
        "Largest number of proposals at once; 0 = as many as the limit of open files "
        "allows.",
    )


@dataclass(slots=True)
class _Simulated:
    """The outcome of a simulation."""

    outcome: Outcome
    results: bytes
    version: str


class Endorser:
    """The endorsing side of the node, for one channel.

    Args:
        msp: of the channel's organisation.
        signer: identity of the peer.
        system: system chaincodes by name.
        concurrency: most proposals at once; 0 = no limit.
    """

    def __init__(
        self,
        *,
        msp: Msp,
        signer: SigningIdentity,
        ledger: Ledger,
        definitions: Definitions,
        executor: ChaincodeSupport,
        system: Mapping[str, LifecycleContract],
        concurrency: int = 0,
    ) -> None:
        self._msp = msp
        self._signer = signer
        self._ledger = ledger
        self._definitions = definitions
        self._executor = executor
        self._system = system
        self._concurrency = concurrency
        self._running = 0

    async def process_proposal(
        self, signed: proposal_pb2.SignedProposal
    ) -> proposal_response_pb2.ProposalResponse:
        """Do what `protos.Endorser/ProcessProposal` does.

        Failures after the checks are responses of status 500 without payload.

        Raises:
            ProposalInvalid, Denied, TransactionExists, TooManyRequests: where the RPC
            gives a gRPC error; the message is its text.
        """
        try:
            proposal = parse_proposal(signed)
        except ProposalInvalid:
            unreadable()
            raise
        with Watch(proposal) as watch:
            try:
                identity = self._admit(proposal)
            except NotFound as error:
                watch.failed(error)
                return _refused(error.message)
            try:
                done = await self._run(proposal, identity, None, watch, keep=True)
                return self._respond(proposal, done)
            except ChaindockError as error:
                watch.failed(error)
                return _refused(failure_text(error, proposal))

    async def endorse(
        self, proposal: Proposal, timeout_s: float | None = None
    ) -> proposal_response_pb2.ProposalResponse:
        """Do the same for a caller inside the node, who can take our errors.

        Args:
            proposal: as `parse_proposal` gives it.
            timeout_s: for the chaincode's answer; None = the configured one.

        Raises:
            as `process_proposal`; and NotFound, LaunchFailed, ExecuteFailed, LedgerError
            where that gives a response without payload.
        """
        with Watch(proposal) as watch:
            identity = self._admit(proposal)
            done = await self._run(proposal, identity, timeout_s, watch, keep=True)
            return self._respond(proposal, done)

    async def evaluate(
        self, proposal: Proposal, timeout_s: float | None = None
    ) -> Outcome:
        """Return the outcome of a proposal that will not be ordered.

        Everything is checked as for `endorse`, but nothing is signed: the reads and
        writes of the simulation are dropped.

        Raises: as `endorse`.
        """
        with Watch(proposal) as watch:
            identity = self._admit(proposal)
            done = await self._run(proposal, identity, timeout_s, watch, keep=False)
            return done.outcome

    def _admit(self, proposal: Proposal) -> Identity:
        """Check everything there is to check before a simulation; return the signer.

        Raises: NotFound when there is no such channel, and as `process_proposal`.
        """
        if self._concurrency and self._running >= self._concurrency:
            raise TooManyRequests(
                "too many requests for /protos.Endorser, exceeding concurrency limit "
                f"({self._concurrency})",
                hint="try again, or raise peer.limits.concurrency.endorserService and "
                "the node's limit of open files (ulimit -n)",
                limit=self._concurrency,
            )
        check_expiry(proposal, self._msp)
        channel = proposal.channel
        if channel and channel != self._ledger.channel:
            raise NotFound(f"channel '{channel}' not found", channel=channel)
        identity = check_proposal(proposal, self._msp)
        if not channel:
            return identity
        if self._ledger.find_transaction(proposal.tx_id) is not None:
            raise TransactionExists(
                f"duplicate transaction found [{proposal.tx_id}]. Creator "
                f"[{proposal.creator.hex()}]",
                tx_id=proposal.tx_id,
            )
        if proposal.name not in self._system:
            require_writer(identity)
        return identity

    async def _run(
        self,
        proposal: Proposal,
        identity: Identity,
        timeout_s: float | None,
        watch: Watch,
        *,
        keep: bool,
    ) -> _Simulated:
        """Simulate; if an upgrade stopped the version that was awaited, ask the new one.

        Args:
            proposal: admitted.
            identity: of its creator.
            timeout_s: as for `endorse`.
            watch: told the outcome.
            keep: whether the read-write set is wanted.
        """
        watch.admitted = True
        self._running += 1
        try:
            done = await self._simulate(proposal, identity, timeout_s, keep=keep)
        except LaunchFailed as error:
            if not self._superseded(proposal, error):
                raise
            done = await self._simulate(proposal, identity, timeout_s, keep=keep)
        finally:
            self._running -= 1
        watch.answered(done.outcome.response)
        return done

    def _superseded(self, proposal: Proposal, failed: LaunchFailed) -> bool:
        """Whether another package runs by now than the one that did not come up."""
        try:
            with self._ledger.new_simulator(proposal.tx_id) as simulator:
                now = self._definition(proposal, simulator).ccid
        except ChaindockError:
            return False
        return failed.facts.get("ccid") not in {None, now}

    async def _simulate(
        self,
        proposal: Proposal,
        identity: Identity,
        timeout_s: float | None,
        *,
        keep: bool,
    ) -> _Simulated:
        system = self._system.get(proposal.name)
        with self._ledger.new_simulator(proposal.tx_id) as simulator:
            if system is not None:
                answer = system.execute(simulator, proposal.input.args, identity)
                outcome, version = Outcome(answer, None), "syscc"
            else:
                definition = self._definition(proposal, simulator)
                _check_init(simulator, definition, is_init=proposal.input.is_init)
                answered = await self._executor.execute(
                    definition.ccid,
                    Invocation(
                        channel_id=proposal.channel,
                        tx_id=proposal.tx_id,
                        namespace=proposal.name,
                        input=proposal.input,
                        signed_proposal=proposal.signed,
                        simulator=simulator,
                        is_init=proposal.input.is_init,
                        timeout_s=timeout_s,
                        refusals=proposal.refusals,
                    ),
                )
                outcome, version = _checked(answered, proposal), definition.version
            results = b""
            if keep and simulator.keys > _MANY_KEYS:
                results = await asyncio.to_thread(simulator.results)
            elif keep:
                results = simulator.results()
            return _Simulated(outcome, results, version)

    def _definition(self, proposal: Proposal, simulator: Simulator) -> Definition:
        name, channel = proposal.name, proposal.channel
        advice = (
            f"make sure the chaincode {name} has been successfully defined on channel "
            f"{channel} and try again"
        )
        if not channel:
            raise NotFound(f"{advice}: chaincode {name} not found", chaincode=name)
        try:
            return self._definitions.get(simulator, name)
        except NotFound as error:
            raise NotFound(
                f"{advice}: {error.message}", hint=error.hint, **error.facts
            ) from error

    def _respond(
        self, proposal: Proposal, done: _Simulated
    ) -> proposal_response_pb2.ProposalResponse:
        response, event = done.outcome.response, done.outcome.event
        if not proposal.channel or _ERROR <= response.status < _FAILED:
            return proposal_response_pb2.ProposalResponse(response=response)
        action = proposal_pb2.ChaincodeAction(
            results=done.results,
            events=b"" if event is None else event.SerializeToString(),
            response=response,
            chaincode_id=chaincode_pb2.ChaincodeID(
                name=proposal.name, version=done.version
            ),
        )
        payload = proposal_response_pb2.ProposalResponsePayload(
            proposal_hash=proposal.hash, extension=action.SerializeToString()
        ).SerializeToString()
        interest = _interest(proposal.name, done.results)
        if response.status >= _FAILED:
            return proposal_response_pb2.ProposalResponse(
                response=response, payload=payload, interest=interest
            )
        creator = self._signer.creator
        return proposal_response_pb2.ProposalResponse(
            version=1,
            response=response,
            payload=payload,
            endorsement=proposal_response_pb2.Endorsement(
                endorser=creator, signature=self._signer.sign(payload + creator)
            ),
            interest=interest,
        )


def _checked(outcome: Outcome, proposal: Proposal) -> Outcome:
    """Return the outcome with the names of its event set; a failure has no event."""
    event = outcome.event
    if event is None:
        return outcome
    if outcome.response.status >= _ERROR:
        return Outcome(outcome.response, None)
    # A chaincode sets only the name and the payload of its event.
    event.chaincode_id, event.tx_id = proposal.name, proposal.tx_id
    return outcome


def _check_init(simulator: Simulator, definition: Definition, *, is_init: bool) -> None:
    """Apply the rules of chaincode that requires Init; record the init."""
    name, version = definition.name, definition.version
    cause = None
    if not definition.init_required:
        if is_init:
            cause = "does not require initialization but called as init"
    else:
        stored = simulator.get_state(name, _INITIALIZED)
        if is_init and stored == version.encode():
            cause = "is already initialized but called as init"
        elif is_init:
            simulator.put_state(name, _INITIALIZED, version.encode())
        elif stored != version.encode():
            cause = "has not been initialized for this version, must call as init first"
    if cause is not None:
        raise InvalidInput(
            f"invalid invocation: chaincode '{name}' {cause}", chaincode=name
        )


def _refused(message: str) -> proposal_response_pb2.ProposalResponse:
    return proposal_response_pb2.ProposalResponse(
        response=proposal_response_pb2.Response(status=_FAILED, message=message)
    )


def failure_text(error: ChaindockError, proposal: Proposal) -> str:
    """Return the message of a response for a failure in the node."""
    if isinstance(error, NotFound):
        return error.message
    if isinstance(error, (ExecuteFailed, TransactionExists, LedgerError)):
        return f"error in simulation: {error.message}"
    return (
        f"error in simulation: failed to execute transaction {proposal.tx_id}: "
        f"{error.message}"
    )


def _interest(name: str, results: bytes) -> proposal_response_pb2.ChaincodeInterest:
    """Name every chaincode that took part; clients plan endorsements by that."""
    rwset = rwset_pb2.TxReadWriteSet.FromString(results)
    names = {ns.namespace for ns in rwset.ns_rwset} - {NAMESPACE} | {name}
    return proposal_response_pb2.ChaincodeInterest(
        chaincodes=[
            proposal_response_pb2.ChaincodeCall(name=one) for one in sorted(names)
        ]
    )
