"""Counts of what happens in the node, as plain numbers.

Owns:    the observers of the layers below; buckets; what is kept of which chaincode.
Not:     names and text of metrics (metrics.py), which read these.
Entry:   Tallies
Holds:   counting is a few additions, on the loop; memory is bounded whatever chaincodes
         come and go; a launch counts once, however many waited for it.
Source:  launch.md §8.2, §9 W7, W67
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from typing import TYPE_CHECKING, Final, TypeVar

from typing_extensions import override

from chaindock.chaincode.observer import Observer as ChaincodeObserver
from chaindock.chaincode.observer import StreamObserver
from chaindock.container.attempt import Phase
from chaindock.container.observer import Observer as BuildObserver
from chaindock.endorser.observer import End
from chaindock.endorser.observer import Observer as ProposalObserver
from chaindock.errors import LaunchTimeout
from chaindock.ids import name_from_label

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from chaindock.container.attempt import Attempt
    from chaindock.container.contracts import Exit
    from chaindock.errors import LaunchFailed
    from chaindock.ids import Ccid
    from chaindock.ledger.committer import CommittedBlock

_Key = TypeVar("_Key")
SHORT_S: Final = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
"""Buckets of calls and requests: Fabric's, and some below and above."""
LONG_S: Final = (
    *(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
    *(30.0, 60.0, 120.0, 300.0, 600.0, 1200.0),
)
"""Buckets of launches: Fabric's end at 10 s, and most cold launches are beyond."""
MOST_CHAINCODES: Final = 200
"""With more than that the ones that were launched longest ago are dropped."""
MOST_NAMES: Final = 200
OTHER: Final = "(other)"
"""Stands for every further name that a proposal asks for."""
_MADE: Final = frozenset({Phase.PULL, Phase.DEPENDENCIES, Phase.COMPILE, Phase.IMAGE})
"""Without one of these a build was there already."""


class Histogram:
    """Durations in seconds by bucket.

    Attributes:
        bounds: upper ends, which belong to the bucket.
        counts: of each bucket, and of what is above the last.
    """

    __slots__ = ("bounds", "counts", "total_s")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total_s = 0.0

    def observe(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total_s += seconds


class Requests(StreamObserver):
    """Requests of one chaincode; keys begin with (message type, channel)."""

    def __init__(self) -> None:
        self.arrived: dict[tuple[int, str], int] = {}
        self.answered: dict[tuple[int, str, bool], Histogram] = {}
        self.timeouts = 0

    @override
    def received(self, kind: int, channel: str) -> None:
        key = (kind, channel)
        self.arrived[key] = self.arrived.get(key, 0) + 1

    @override
    def completed(self, kind: int, channel: str, seconds: float, ok: bool) -> None:
        key = (kind, channel, ok)
        histogram = self.answered.get(key)
        if histogram is None:
            histogram = self.answered[key] = Histogram(SHORT_S)
        histogram.observe(seconds)

    @override
    def timed_out(self) -> None:
        self.timeouts += 1


class OneChaincode:
    """What is known of one package id.

    Attributes:
        trouble: why it is not up, since it last was or should be; None = nothing.
        launches, builds: durations by success; builds are those of containers.
    """

    def __init__(self) -> None:
        self.requests = Requests()
        self.launches: dict[bool, Histogram] = {}
        self.builds: dict[bool, Histogram] = {}
        self.failures = self.timeouts = 0
        self.trouble: str | None = None


class OneName:
    """What is known of one chaincode, whichever package it has."""

    def __init__(self) -> None:
        self.restarts = 0
        self.exits: Counter[str] = Counter()


class Chaincodes(ChaincodeObserver, BuildObserver):
    """Launches, ends, builds and requests.

    Attributes:
        names_of: gives the names under which a package id is deployed.
    """

    def __init__(self) -> None:
        self.names_of: Callable[[Ccid], Sequence[str]] = lambda _: ()
        self.by_ccid: dict[Ccid, OneChaincode] = {}
        self.by_name: dict[str, OneName] = {}
        self.phases: dict[tuple[str, bool], Histogram] = {}
        self.builds: dict[tuple[str, bool], Histogram] = {}

    def trouble(self, ccid: Ccid) -> str | None:
        """Return why `ccid` is not up although it was tried; None = no reason."""
        one = self.by_ccid.get(ccid)
        return None if one is None else one.trouble

    @override
    def stream(self, ccid: Ccid) -> StreamObserver:
        return self._one(ccid).requests

    @override
    def launching(self, attempt: Attempt) -> None:
        one = self._one(attempt.ccid)
        self.by_ccid[attempt.ccid] = self.by_ccid.pop(attempt.ccid)  # the newest now
        if one.trouble is not None:
            for name in self._names(attempt.ccid):
                name.restarts += 1

    @override
    def launched(self, attempt: Attempt, failure: LaunchFailed | None) -> None:
        one, total_s = self._one(attempt.ccid), 0.0
        facts = attempt.facts() if failure is None else failure.facts
        last = None if failure is None else facts.get("phase")
        for spent in facts.get("phases", ()):
            phase, seconds = spent["phase"], spent["seconds"]
            total_s += seconds
            _at(self.phases, (phase, phase != last), LONG_S).observe(seconds)
        if failure is not None:
            one.failures += 1
            one.timeouts += isinstance(failure, LaunchTimeout)
        one.trouble = None if failure is None else failure.message
        _at(one.launches, failure is None, LONG_S).observe(total_s)

    @override
    def ended(self, attempt: Attempt, end: Exit, *, asked: bool) -> None:
        one = self._one(attempt.ccid)
        one.trouble = None if asked else f"it {end.text}"
        for name in self._names(attempt.ccid):
            name.exits[str(end.cause)] += 1

    @override
    def forgotten(self, ccid: Ccid) -> None:
        one = self.by_ccid.get(ccid)
        # A deployment that failed is forgotten at once: its failure is to be seen still.
        if one is not None and (True in one.launches or not one.failures):
            del self.by_ccid[ccid]

    @override
    def built(
        self, builder: str, attempt: Attempt, seconds: float, *, ok: bool
    ) -> None:
        phases = {attempt.phase, *(one.phase for one in attempt.phases)}
        if not phases & _MADE:
            return
        _at(self.builds, (builder, ok), LONG_S).observe(seconds)
        if builder == "docker":
            _at(self._one(attempt.ccid).builds, ok, LONG_S).observe(seconds)

    def _one(self, ccid: Ccid) -> OneChaincode:
        one = self.by_ccid.get(ccid)
        if one is None:
            while len(self.by_ccid) >= MOST_CHAINCODES:
                del self.by_ccid[next(iter(self.by_ccid))]
            one = self.by_ccid[ccid] = OneChaincode()
        return one

    def _names(self, ccid: Ccid) -> list[OneName]:
        names = self.names_of(ccid) or [name_from_label(ccid.rpartition(":")[0])]
        while len(self.by_name) >= MOST_NAMES:
            del self.by_name[next(iter(self.by_name))]
        return [self.by_name.setdefault(name, OneName()) for name in names]


class Proposals(ProposalObserver):
    """Proposals; keys are (channel, chaincode)."""

    def __init__(self) -> None:
        self.arrived = self.endorsed = self.invalid = 0
        self.ends: Counter[tuple[End, str, str]] = Counter()
        self.durations: dict[tuple[str, str, bool], Histogram] = {}
        self._known: set[tuple[str, str]] = set()

    @override
    def received(self) -> None:
        self.arrived += 1

    @override
    def done(self, end: End, channel: str, chaincode: str, seconds: float) -> None:
        if end is End.INVALID:
            self.invalid += 1
            return
        if (channel, chaincode) not in self._known:
            if len(self._known) >= MOST_NAMES:
                channel, chaincode = "", OTHER
            self._known.add((channel, chaincode))
        ok = end is End.ENDORSED
        if ok:
            self.endorsed += 1
        else:
            self.ends[end, channel, chaincode] += 1
        key = (channel, chaincode, ok)
        histogram = self.durations.get(key)
        if histogram is None:
            histogram = self.durations[key] = Histogram(SHORT_S)
        histogram.observe(seconds)


class Blocks:
    """Committed blocks; keys are (type, chaincode:version, code)."""

    def __init__(self) -> None:
        self.processing = Histogram(SHORT_S)
        self.transactions: Counter[tuple[str, str, int]] = Counter()
        self._known: set[str] = set()

    def committed(self, block: CommittedBlock) -> None:
        """Count a block."""
        self.processing.observe(block.seconds)
        for one in block.transactions:
            chaincode = one.chaincode
            if chaincode not in self._known:
                if len(self._known) >= MOST_NAMES:
                    chaincode = OTHER
                self._known.add(chaincode)
            self.transactions[one.kind, chaincode, one.code] += 1


class Tallies:
    """All counts of a node."""

    def __init__(self) -> None:
        self.chaincodes = Chaincodes()
        self.proposals = Proposals()
        self.blocks = Blocks()


def _at(table: dict[_Key, Histogram], key: _Key, bounds: Sequence[float]) -> Histogram:
    histogram = table.get(key)
    if histogram is None:
        histogram = table[key] = Histogram(bounds)
    return histogram
