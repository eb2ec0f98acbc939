"""Exit statuses of the command line.

Owns:    what each status means, and which error gives which.
Not:     printing errors (report.py).
Entry:   exit_status, MEANINGS
Holds:   a status never changes its meaning.
Source:  docs/reference/exit-codes.md says the same
"""

from __future__ import annotations

from enum import IntEnum

from chaindock.errors import (
    ChaindockError,
    Code,
    EngineError,
    ExecuteFailed,
    LaunchFailed,
    LedgerError,
    NodeError,
    ToolMissing,
)


class Exit(IntEnum):
    """Exit statuses."""

    OK = 0
    REFUSED = 1
    USAGE = 2
    NODE = 3
    LAUNCH = 4
    INPUT = 5
    ENGINE = 6
    INTERNAL = 70
    INTERRUPTED = 130
    PIPE = 141


MEANINGS = {
    Exit.OK: "done",
    Exit.REFUSED: "the chaincode answered an error or not at all, or the transaction "
    "is not valid",
    Exit.USAGE: "the command line is wrong",
    Exit.NODE: "no node runs in this home, or it cannot be started or reached",
    Exit.LAUNCH: "a build or launch ended with an error",
    Exit.INPUT: "something given is refused: a file, name, setting, identity",
    Exit.ENGINE: "a container engine or a tool that is needed is missing or fails",
    Exit.INTERNAL: "a defect, or damage on disk",
    Exit.INTERRUPTED: "interrupted (Ctrl-C)",
    Exit.PIPE: "whoever read the output has gone",
}

_BY_CLASS: tuple[tuple[type[ChaindockError], Exit], ...] = (
    (LaunchFailed, Exit.LAUNCH),
    (ExecuteFailed, Exit.REFUSED),
    (EngineError, Exit.ENGINE),
    (ToolMissing, Exit.ENGINE),
    (NodeError, Exit.NODE),
)


def exit_status(error: ChaindockError) -> Exit:
    """Return the status for `error`."""
    for kind, status in _BY_CLASS:
        if isinstance(error, kind):
            return status
    if error.code in {Code.INTERNAL, Code.DATA_LOSS}:
        return Exit.INTERNAL
    return Exit.REFUSED if isinstance(error, LedgerError) else Exit.INPUT


def epilog() -> str:
    """Return the table as the help shows it."""
    lines = [f"  {int(status):>3}  {text}" for status, text in MEANINGS.items()]
    return "\b\nExit status:\n" + "\n".join(lines)
