"""Check a proposal, simulate it, and endorse what came out.

Only a response below 400 is endorsed, every simulation is released, and a proposal is
counted once when it arrives and once when it ends, however it ends.
Source: docs/fabric/ledger.md#proposal
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Self

from fabric_protos.peer import chaincode_pb2

from chaindock.aio import KeyedLocks, off_loop
from chaindock.chaincode.invocation import ERROR_STATUS, Call
from chaindock.chaincode.support import ChaincodeSupport
from chaindock.endorser import acl
from chaindock.endorser.checks import Proposal, check_expiry, check_proposal
from chaindock.endorser.configuration import Configuration
from chaindock.endorser.cutting import OrdererOptions, in_force
from chaindock.endorser.rounds import Answered, Round
from chaindock.endorser.simulation import UNSIMULATED, Simulation, SystemChaincode
from chaindock.errors import (
    Denied,
    EndorsersMissing,
    LaunchFailed,
    NotEndorsed,
    NotFound,
    TooManyRequests,
    TransactionExists,
)
from chaindock.identity.msp import Identity, SigningIdentity
from chaindock.identity.organization import full_mspid
from chaindock.ledger.ledger import Ledger
from chaindock.ledger.simulator import Simulator
from chaindock.lifecycle.deployments import Deployments
from chaindock.telemetry import get_logger, is_on, metrics

_LOGGER: Final = "endorser"
_log = get_logger(_LOGGER)


@dataclass
class Load:
    """How many proposals are worked on; the endorsers of a node share it."""

    proposals: int = 0


@dataclass(kw_only=True, eq=False)
class Endorser:
    """The endorsing side of the node, for one channel."""

    configuration: Configuration
    """Of the channel."""
    peers: Mapping[str, SigningIdentity]
    """The node's identities that endorse, by MSP id, the preferred one first."""
    ledger: Ledger
    definitions: Deployments
    executor: ChaincodeSupport
    system: Mapping[str, SystemChaincode]
    """System chaincodes by name."""
    concurrency: int = 0
    """Most proposals at once, of all that share `load`; 0 = no limit."""
    options: OrdererOptions = field(default_factory=OrdererOptions)
    """Of the orderer."""
    others: Callable[[str], Endorser | None] = lambda _name: None
    """Returns the endorser of another channel of the node, if there is one."""
    remember: Callable[[str, Mapping[str, Sequence[float]]], None] = lambda *_: None
    """Gets id and `spent` of each proposal that was answered to be ordered."""
    load: Load = field(default_factory=Load)
    turns: KeyedLocks[tuple[str, str]] = field(default_factory=KeyedLocks)
    """Of peers that share a process, by transaction and process."""

    @property
    def largest_bytes(self) -> int:
        """Bytes of the largest transaction that is ordered."""
        return in_force(self.options, self.configuration.config).absolute_max_bytes

    async def process(
        self,
        proposal: Proposal,
        timeout_s: float | None = None,
        *,
        endorse: bool,
        endorsers: Sequence[str] = (),
        at: str | None = None,
        strict: bool = False,
    ) -> Answered:
        """Check a proposal, run it and, if asked, sign what it read and wrote.

        If an upgrade stopped the version of a chaincode that was awaited, or some peers
        ran the new one already, or members came or went, all peers are asked again, once.

        Args:
            proposal: as `parse_proposal` gives it.
            timeout_s: for the chaincode's answer; None = the configured one.
            endorse: False drops the reads and writes of the simulation.
            endorsers: MSP ids of the organisations whose peers sign; none = those that
                the policies of what was written need.
            at: MSP id of the peer that is asked first, and alone unless others must sign;
                None = that of the signer's organisation, or the preferred one.
            strict: as for `choose`, unless `endorsers` are given; the answers have no interest.

        Returns:
            what the chaincode said, and the answers to the client, over one payload: none
            when not asked for, for a response of 400 to 499, and for a call without
            channel. For a response of 500 or more it is one without endorsement.

        Raises:
            ProposalInvalid, Denied, TransactionExists, TooManyRequests: refused before
            the simulation. NotFound: no such channel, chaincode or endorser. InvalidInput: Init
            was required or not, or too large to be ordered. LaunchFailed, ExecuteFailed,
            LedgerError: no answer. EndorsersMissing: as `choose` and `peer_of`.
            NotEndorsed: the peers of several organisations did not say the same.
        """
        with Watch(proposal) as watch:
            if self.concurrency and self.load.proposals >= self.concurrency:
                raise TooManyRequests(
                    "too many requests for /protos.Endorser, exceeding concurrency limit "
                    f"({self.concurrency})",
                    hint="try again, or raise peer.limits.concurrency.endorserService "
                    "and the node's limit of open files (ulimit -n)",
                    limit=self.concurrency,
                )
            self.load.proposals += 1
            try:
                identity = await self._admit(proposal)
                asked = proposal, identity, timeout_s, endorsers, at, endorse, strict
                one, now = Round(self, *asked), self.configuration
                members, answered = now.peers, None
                watch.admitted = True
                try:
                    answered = await one.run()
                except (EndorsersMissing, LaunchFailed, NotEndorsed):
                    if members == now.peers and not _superseded(proposal):
                        raise
                if answered is None or (endorse and members != now.peers):
                    # What the former round holds is given back first.
                    answered, one = None, Round(self, *asked)
                    answered = await one.run()
            finally:
                self.load.proposals -= 1
            if endorse:
                self.remember(proposal.tx_id, proposal.spent)
            watch.endorsed = answered[0].response.status < ERROR_STATUS
            return answered

    def peer_of(self, proposal: Proposal, mspid: str) -> str:
        """Return whose peer a member of `mspid` asks: the own one if that runs.

        Raises: EndorsersMissing: another one would see transient data.
        """
        if mspid in self.peers or proposal.name in self.system:
            return mspid
        if proposal.transient:
            raise EndorsersMissing(
                f"no peer of {mspid} runs here, and those of other organisations would "
                "see the transient data",
                hint=f"start it: chaindock org start {mspid}; or name who may see the "
                "data: `query --at MSPID`, `invoke --endorsers MSPID,...`",
                protected=(),
            )
        return next(iter(self.peers))

    def peers_of(self, organizations: Sequence[str]) -> list[str]:
        """Return the MSP ids of organisations. Raises: NotFound: one has no peer here."""
        found = [full_mspid(one, self.peers) for one in organizations]
        for mspid in found:
            if mspid not in self.peers:
                raise NotFound(
                    f"organisation {mspid!r} has no peer on this node, which has those of "
                    f"{', '.join(self.peers)}",
                    hint=f"see them: chaindock org ls; start it: chaindock org start {mspid}",
                    mspid=mspid,
                )
        return found

    async def _admit(self, proposal: Proposal) -> Identity:
        """Check what can be checked before a simulation; return the signer."""
        check_expiry(proposal, self.configuration.msps)
        channel = proposal.channel
        if channel and channel != self.ledger.channel:
            raise NotFound(f"channel '{channel}' not found", channel=channel)
        check = partial(check_proposal, proposal, self.configuration.msps)
        identity = await off_loop(proposal.nbytes, check)
        if not channel:
            return identity
        known = not proposal.drawn and self.ledger.find_transaction(proposal.tx_id)
        if known:
            raise TransactionExists(
                f"duplicate transaction found [{proposal.tx_id}]. Creator "
                f"[{proposal.creator.hex()}]",
                tx_id=proposal.tx_id,
                committed=True,
            )
        if proposal.name not in self.system:
            acl.require(self.configuration, "peer/Propose", identity)
        return identity

    def simulation(
        self, proposal: Proposal, identity: Identity, simulator: Simulator, mspid: str
    ) -> Simulation:
        """Return a new simulation on this channel, which may not be the proposal's."""
        return Simulation(
            proposal=proposal,
            channel=self.ledger.channel if proposal.channel else proposal.channel,
            identity=identity,
            simulator=simulator,
            definitions=self.definitions,
            executor=self.executor,
            system=self.system,
            mspid=mspid,
            configuration=self.configuration,
            elsewhere=self._call_other,
        )

    async def _call_other(
        self,
        simulation: Simulation,
        caller: Call,
        name: str,
        channel: str,
        given: chaincode_pb2.ChaincodeInput,
    ) -> bytes:
        """Call chaincode on another channel; what it reads and writes there is dropped.

        Raises: as `Simulation.called`. NotFound: the peer has joined no such channel.
            Denied.
        """
        other, system = self.others(channel), name in {*simulation.system, *UNSIMULATED}
        if other is None or simulation.mspid not in other.peers:
            if system:
                raise NotFound(f"failed to find ledger for channel: {channel}")
            raise NotFound(f"Failed to get policy manager for channel [{channel}]")
        proposal = simulation.proposal
        identity = None
        with suppress(Denied):  # of an organisation that is no member there
            identity = other.configuration.msps.identify(proposal.creator)
        if not system:
            acl.require(other.configuration, "peer/ChaincodeToChaincode", identity)
        identity = identity or simulation.identity
        with other.ledger.new_simulator(proposal.tx_id) as simulator:
            simulator.budget = caller.budget  # before it reads the definition
            inner = other.simulation(proposal, identity, simulator, simulation.mspid)
            return await inner.called(caller, name, "", given)


def _superseded(proposal: Proposal) -> bool:
    """Whether a name runs another package by now than when a simulation called it."""
    found = ((runs.find(name), ccid) for runs, name, ccid in proposal.ran)
    return any(now is not None and now.ccid != ccid for now, ccid in found)


class Watch:
    """Counts and logs one proposal while it is worked on; a context manager.

    `admitted` is set when all checks have passed, `endorsed` unless the chaincode
    answered with an error.
    """

    def __init__(self, proposal: Proposal) -> None:
        self._proposal = proposal
        self._began = time.perf_counter()
        self.admitted = self.endorsed = False
        metrics.PROPOSALS_RECEIVED.inc()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        channel, name, ok = self._proposal.channel, self._proposal.name, self.endorsed
        if is_on(_LOGGER, "debug") and (ok or error is not None):
            _log.debug(
                "proposal endorsed" if ok else "no answer to a proposal",
                tx=self._proposal.tx_id,
                chaincode=name,
                **({} if ok else {"error": str(error)}),
            )
        is_error, admitted = isinstance(error, Exception), self.admitted
        known = isinstance(error, (Denied, TransactionExists))
        if is_error and not (admitted or known):
            metrics.PROPOSAL_VALIDATION_FAILURES.inc()
            return
        spent_s = time.perf_counter() - self._began
        metrics.proposals(channel, name, ok).observe(spent_s)
        if ok:
            metrics.SUCCESSFUL_PROPOSALS.inc()
            return
        labels = metrics.bounded(channel), metrics.bounded(name)
        if error is None:
            metrics.ENDORSEMENT_FAILURES.labels(*labels, "true").inc()
        elif is_error and admitted:
            metrics.PROPOSAL_SIMULATION_FAILURES.labels(*labels).inc()
        elif isinstance(error, Denied):
            metrics.PROPOSAL_ACL_FAILURES.labels(*labels).inc()
        elif is_error:
            metrics.DUPLICATE_TRANSACTION_FAILURES.labels(*labels).inc()
