"""What can be set about launching, stopping and restarting chaincode."""

from __future__ import annotations

from dataclasses import dataclass

from chaindock.options import option
from chaindock.values import Seconds, SecondsOrNone, Whole


@dataclass(frozen=True)
class CustodianOptions:
    """How chaincodes are launched, stopped and started again.

    Args:
        stop_limit_s: a stop that takes this many seconds longer than draining and the
            grace period is given up.
        stable_s: a run of this many seconds resets the count of failures.
    """

    parallel: Whole = option(
        0,
        "chaindock.launch.parallel",
        "Launches that start at once; after 80 ms as many more start, up to "
        "eight times as many; 0 = one per processor.",
    )
    drain_s: SecondsOrNone = option(
        30.0,
        "chaindock.launch.drain",
        "Time that running calls have to finish before a chaincode is stopped.",
    )
    stop_grace_s: SecondsOrNone = option(
        10.0,
        "chaindock.launch.stopGrace",
        "Time between SIGTERM and SIGKILL when a chaincode is stopped.",
    )
    stop_limit_s: float = 60.0
    retry_first_s: Seconds = option(
        1.0,
        "chaindock.launch.retryFirst",
        "Pause before the first retry of a failed launch; it doubles each time.",
    )
    retry_cap_s: Seconds = option(
        60.0,
        "chaindock.launch.retryCap",
        "Longest pause between retries. After the node gave up, one call in each "
        "such period may still launch the chaincode.",
    )
    retries: Whole = option(
        5,
        "chaindock.launch.retries",
        "Retries of a failed launch, after which the node gives up.",
    )
    stable_s: float = 60.0
