"""Logs and metrics. Metrics are not imported here: the CLI does without."""

from chaindock.telemetry.logs import (
    activate,
    active,
    bind,
    bound,
    configure,
    counts,
    get_logger,
    is_on,
    unbind,
)
from chaindock.telemetry.rate_limited import RateLimitedLog

__all__ = [
    "RateLimitedLog",
    "activate",
    "active",
    "bind",
    "bound",
    "configure",
    "counts",
    "get_logger",
    "is_on",
    "unbind",
]
