"""Who may register, and who is registered.

Owns:    LaunchState and its moves; expected registrations; ccid to live handler.
Not:     launching (launcher.py, run.py), the stream (handler.py).
Entry:   HandlerRegistry
Holds:   at most one handler per ccid; a handler is removed by identity, so a refused
         one takes nobody with it; only what is being launched is admitted.
Source:  shim-protocol.md §3.2; launch.md §5.1, §5.5
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from chaindock.aio import Latch
from chaindock.errors import RegistrationRefused
from chaindock.ids import Ccid
from chaindock.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Mapping

    from chaindock.chaincode.handler import Handler
    from chaindock.container.attempt import Attempt

_log = get_logger("chaincode.registry")
_NAME_MAX: Final = 300
"""Characters that are told and kept of a refused name. A package id has up to 248."""


class LaunchState(StrEnum):
    """Where a chaincode is on its way."""

    ABSENT = "absent"
    LAUNCHING = "launching"
    READY = "ready"
    STOPPING = "stopping"
    FAILED = "failed"


MOVES: Final[Mapping[LaunchState, frozenset[LaunchState]]] = {
    LaunchState.ABSENT: frozenset({LaunchState.LAUNCHING}),
    LaunchState.LAUNCHING: frozenset({LaunchState.READY, LaunchState.STOPPING}),
    LaunchState.READY: frozenset({LaunchState.STOPPING}),
    LaunchState.STOPPING: frozenset({LaunchState.ABSENT, LaunchState.FAILED}),
    LaunchState.FAILED: frozenset({LaunchState.LAUNCHING}),
}
"""A launch that fails is taken down (stopping) before it counts as failed."""


@dataclass(eq=False)
class Expected:
    """A registration that a launch waits for.

    Args:
        dialled: the node dials; None while it is not known who does.
        concurrency: transactions at a time on the stream; None = unlimited.
        ready: settled with the handler after READY was written, or failed.
    """

    ccid: Ccid
    attempt: Attempt
    dialled: bool | None = None
    concurrency: int | None = None
    ready: Latch[Handler] = field(default_factory=Latch)


class HandlerRegistry:
    """All expected registrations and live handlers of a node."""

    def __init__(self, *, admit_unlaunched: bool = False) -> None:
        self._admit_unlaunched = admit_unlaunched
        self._expected: dict[Ccid, Expected] = {}
        self._handlers: dict[Ccid, Handler] = {}

    def expect(self, expected: Expected) -> None:
        """Admit one registration of this ccid from now on."""
        self._expected[expected.ccid] = expected

    def forget(self, expected: Expected) -> None:
        """Stop expecting it. Idempotent."""
        if self._expected.get(expected.ccid) is expected:
            del self._expected[expected.ccid]

    def find_ready(self, ccid: Ccid) -> Handler | None:
        """Return the handler that takes invocations now."""
        handler = self._handlers.get(ccid)
        return handler if handler is not None and handler.takes_calls else None

    def find(self, ccid: Ccid) -> Handler | None:
        """Return the handler that is registered, in whatever state."""
        return self._handlers.get(ccid)

    def admit(self, name: str, handler: Handler) -> Expected | None:
        """Register `handler` under the name of its REGISTER.

        Returns: what expected it; None for an unlaunched one in development mode.
        Raises: RegistrationRefused; then nothing has changed for anybody else. The
            launch that dialled is told; others still wait for the right one.
        """
        ccid = Ccid(name)
        expected = self._expected.get(ccid)
        reason = self._refusal(ccid, handler, expected)
        if reason is not None:
            shown = name[:_NAME_MAX]
            meant = handler.dialled.ccid if handler.dialled is not None else shown
            error = RegistrationRefused(reason, ccid=meant, name=shown)
            _log.warning("registration refused", ccid=shown, reason=reason)
            if handler.dialled is not None:
                handler.dialled.ready.fail(error)
            raise error
        self._handlers[ccid] = handler
        return expected

    def _refusal(
        self, ccid: Ccid, handler: Handler, expected: Expected | None
    ) -> str | None:
        if not ccid:
            return "error in handling register chaincode, chaincodeID name is empty"
        shown = ccid[:_NAME_MAX]
        dialled = handler.dialled
        if dialled is not None and dialled.ccid != ccid:
            return (
                f"chaincode at the dialled address registers as {shown!r}, expected "
                f"{dialled.ccid!r}"
            )
        if ccid in self._handlers:
            return f"duplicate chaincodeID: {ccid}"
        if expected is None and not self._admit_unlaunched:
            return (
                f"peer will not accept external chaincode connection {shown} "
                "(except in dev mode)"
            )
        if expected is not None and expected.dialled and dialled is not expected:
            return f"chaincode {ccid} is dialled by the node and must not dial it"
        return None

    def remove(self, handler: Handler) -> None:
        """Deregister `handler`, if it is the one that is registered."""
        if handler.ccid is not None and self._handlers.get(handler.ccid) is handler:
            del self._handlers[handler.ccid]
