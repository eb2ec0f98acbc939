"""Logs: what a line holds, where it goes, which lines there are."""

from chaindock.telemetry.logs import (
    activate,
    active,
    bound,
    configure,
    counts,
    get_logger,
    is_on,
)

__all__ = ["activate", "active", "bound", "configure", "counts", "get_logger", "is_on"]
