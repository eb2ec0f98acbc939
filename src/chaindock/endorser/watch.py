"""Count and log one proposal: once when it arrives, once when it ends, however it ends."""

from __future__ import annotations

import time
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Self

from chaindock.errors import Denied, TransactionExists
from chaindock.telemetry import get_logger, is_on, metrics

if TYPE_CHECKING:
    from types import TracebackType

    from fabric_protos.peer import proposal_response_pb2

    from chaindock.endorser.proposals import Proposal

_ERROR: Final = 400
_LOGGER: Final = "endorser"
_log = get_logger(_LOGGER)


class End(StrEnum):
    """How a proposal ended.

    `INVALID`: it is not a proposal. `DENIED`: its signer may not do this. `DUPLICATE`: its
    transaction id was used. `NOT_SIMULATED`: the chaincode gave no answer. `REFUSED`: the
    chaincode answered with an error. `CANCELLED`: the caller left.
    """

    ENDORSED = "endorsed"
    INVALID = "invalid"
    DENIED = "denied"
    DUPLICATE = "duplicate"
    NOT_SIMULATED = "not-simulated"
    REFUSED = "refused"
    CANCELLED = "cancelled"


_FAILURES: Final = {
    End.DENIED: metrics.PROPOSAL_ACL_FAILURES,
    End.DUPLICATE: metrics.DUPLICATE_TRANSACTION_FAILURES,
    End.NOT_SIMULATED: metrics.PROPOSAL_SIMULATION_FAILURES,
}


class Watch:
    """One proposal while it is worked on; a context manager.

    Attributes:
        admitted: set when all checks have passed.
        end: how it ended, unless an error leaves the block.
    """

    __slots__ = ("_began", "_proposal", "admitted", "end")

    def __init__(self, proposal: Proposal) -> None:
        self._proposal = proposal
        self._began = time.perf_counter()
        self.admitted = False
        self.end = End.CANCELLED
        metrics.PROPOSALS_RECEIVED.inc()

    def answered(self, response: proposal_response_pb2.Response) -> None:
        """Take note of what the chaincode said."""
        self.end = End.REFUSED if response.status >= _ERROR else End.ENDORSED

    def failed(self, error: BaseException) -> None:
        """Take note of why there is no answer."""
        self.end = self._end_of(error)
        if is_on(_LOGGER, "debug"):
            proposal = self._proposal
            _log.debug(
                "no answer to a proposal",
                tx=proposal.tx_id,
                chaincode=proposal.name,
                end=str(self.end),
                error=str(error),
            )

    def _end_of(self, error: BaseException) -> End:
        if not isinstance(error, Exception):
            return End.CANCELLED
        if self.admitted:
            return End.NOT_SIMULATED
        if isinstance(error, Denied):
            return End.DENIED
        return End.DUPLICATE if isinstance(error, TransactionExists) else End.INVALID

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self.failed(error)
        elif self.end is End.ENDORSED and is_on(_LOGGER, "debug"):
            _log.debug(
                "proposal endorsed",
                tx=self._proposal.tx_id,
                chaincode=self._proposal.name,
            )
        self._count(time.perf_counter() - self._began)

    def _count(self, spent_s: float) -> None:
        if self.end is End.INVALID:
            metrics.PROPOSAL_VALIDATION_FAILURES.inc()
            return
        channel, name = self._proposal.channel, self._proposal.name
        ok = self.end is End.ENDORSED
        metrics.proposal_ended(channel, name, spent_s, ok=ok)
        if ok:
            metrics.SUCCESSFUL_PROPOSALS.inc()
            return
        labels = metrics.bounded(channel), metrics.bounded(name)
        if self.end is End.REFUSED:
            metrics.ENDORSEMENT_FAILURES.labels(*labels, "true").inc()
        elif self.end in _FAILURES:
            _FAILURES[self.end].labels(*labels).inc()


def unreadable() -> None:
    """Count bytes that are not a proposal."""
    metrics.PROPOSALS_RECEIVED.inc()
    metrics.PROPOSAL_VALIDATION_FAILURES.inc()
