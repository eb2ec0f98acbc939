"""Follow one proposal from its arrival to its end.

Owns:    how it ended, how long it took; telling the observer and the log.
Not:     what is done with it (endorser.py), counting (operations/tallies.py).
Entry:   Watch
Holds:   the observer is told `received` and `done` once each, whatever happens.
Source:  launch.md §8.2, §8.3
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Self

from chaindock.endorser.observer import End
from chaindock.errors import Denied, TransactionExists
from chaindock.telemetry import get_logger, is_on

if TYPE_CHECKING:
    from types import TracebackType

    from fabric_protos.peer import proposal_response_pb2

    from chaindock.endorser.observer import Observer
    from chaindock.endorser.proposals import Proposal

_ERROR: Final = 400
_LOGGER: Final = "endorser"
_log = get_logger(_LOGGER)


class Watch:
    """One proposal while it is worked on; a context manager.

    Attributes:
        admitted: set when all checks have passed.
        end: how it ended, unless an error leaves the block.
    """

    __slots__ = ("_began", "_observer", "_proposal", "admitted", "end")

    def __init__(self, observer: Observer, proposal: Proposal) -> None:
        self._observer, self._proposal = observer, proposal
        self._began = time.perf_counter()
        self.admitted = False
        self.end = End.CANCELLED
        observer.received()

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
        spent_s = time.perf_counter() - self._began
        proposal = self._proposal
        self._observer.done(self.end, proposal.channel, proposal.name, spent_s)


def unreadable(observer: Observer) -> None:
    """Tell the observer of bytes that are no proposal."""
    observer.received()
    observer.done(End.INVALID, "", "", 0.0)
