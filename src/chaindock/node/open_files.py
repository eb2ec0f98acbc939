"""The limit of open files, and how many proposals it allows at once."""

from __future__ import annotations

import resource
from contextlib import suppress
from typing import Final

from chaindock.telemetry import get_logger

_log = get_logger("node")
WANTED: Final = 10_240
"""Enough for 2500 proposals; macOS allows no more."""
_RESERVED: Final = 500
"""For listeners, streams with chaincode, output files."""
_PER_PROPOSAL: Final = 3
"""A client's socket, and the database and its log when no other proposal reads them."""


def raise_limit() -> int:
    """Raise the soft limit of open files as far as `WANTED`; return the soft limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED if hard == resource.RLIM_INFINITY else min(WANTED, hard)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return WANTED if soft == resource.RLIM_INFINITY else soft
    with suppress(ValueError, OSError):  # a system may allow less than it says
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def proposals_at_once(concurrency: int) -> int:
    """Raise the limit of open files; return how many proposals to allow at once.

    Args:
        concurrency: as configured; 0 = as many as the open files allow.
    """
    files = raise_limit()
    possible = max(1, (files - _RESERVED) // _PER_PROPOSAL)
    if concurrency > possible:
        _log.warning(
            "fewer proposals at once than configured: raise the limit of open files "
            "(ulimit -n)",
            configured=concurrency,
            allowed=possible,
            open_files=files,
        )
    return min(concurrency or possible, possible)
