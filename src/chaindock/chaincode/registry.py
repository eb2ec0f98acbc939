"""Decide which chaincode may register, and keep those that have registered.

A ccid has at most one handler; only what is being launched, or a user's program in
development mode, is admitted. With TLS a certificate is good for one registration of one
ccid in one attempt.
Source: docs/fabric/shim-protocol.md, docs/adr/0005-certificates-per-attempt.md
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from chaindock.chaincode.handler import Expected, Handler
from chaindock.container.attempt import Phase
from chaindock.errors import RegistrationRefused
from chaindock.ids import Ccid
from chaindock.rpc.server import Arrivals
from chaindock.telemetry import RateLimitedLog, get_logger

_log = get_logger("chaincode.registry")
_DIALLING: Final = frozenset({Phase.START, Phase.CONNECT, Phase.REGISTER, Phase.READY})
_NAME_MAX: Final = 300
"""Characters that are told and kept of a refused name. A package id has up to 248."""


class HandlerRegistry:
    """All expected registrations and live handlers of a node.

    `admit_unlaunched`: take registrations that nobody asked for (development mode).
    `arrivals` are connections to the listener that have brought no stream; `refusals`
    limits log lines about refused streams, by certificate.
    """

    def __init__(self, *, admit_unlaunched: bool = False) -> None:
        self.arrivals = Arrivals()
        self.refusals = RateLimitedLog(_log)
        self._admit_unlaunched = admit_unlaunched
        self._expected: dict[Ccid, Expected] = {}
        self._handlers: dict[Ccid, Handler] = {}
        self._certificates: dict[str, Ccid] = {}
        """Certificates of the expected and of the registered attempts."""
        self._last_over = 0.0
        """When the last launch ended, monotonic."""

    def expect(self, expected: Expected) -> None:
        """Admit one registration of this ccid from now on."""
        self._expected[expected.ccid] = expected
        if expected.certificate is not None:
            self._certificates[expected.certificate] = expected.ccid

    def forget(self, expected: Expected) -> None:
        """Stop expecting it. Idempotent."""
        if self._expected.get(expected.ccid) is expected:
            del self._expected[expected.ccid]
            self._last_over = time.monotonic()
        handler = self._handlers.get(expected.ccid)
        if handler is None or handler.certificate != expected.certificate:
            self._certificates.pop(expected.certificate or "", None)

    def connected_in_vain(self, expected: Expected) -> Sequence[str]:
        """Return why TLS handshakes have failed; () while others are launched."""
        others = (one for one in self._expected.values() if one is not expected)
        if any(one.attempt.phase in _DIALLING for one in others):
            return ()
        since = time.monotonic() - expected.attempt.seconds_since(Phase.START)
        return self.arrivals.in_vain(max(since, self._last_over))

    def ready(self, handler: Handler) -> None:
        """Tell whoever expects this chaincode that calls can be sent to `handler`."""
        expected = self._expected.get(handler.ccid or Ccid(""))
        if expected is not None:
            expected.ready.settle(handler)

    def find_ready(self, ccid: Ccid) -> Handler | None:
        """Return the handler that takes invocations now."""
        handler = self._handlers.get(ccid)
        return handler if handler is not None and handler.calls.open else None

    def find(self, ccid: Ccid) -> Handler | None:
        """Return the handler that is registered, in whatever state."""
        return self._handlers.get(ccid)

    def connected(self, handler: Handler) -> None:
        """Begin the phase `register` of the launch with the stream's certificate, if any."""
        ccid = self._certificates.get(handler.certificate or "")
        expected = None if ccid is None else self._expected.get(ccid)
        if expected is not None and expected.certificate == handler.certificate:
            expected.attempt.enter(Phase.REGISTER)

    def admit(self, name: str, handler: Handler) -> Expected | None:
        """Register `handler` under the name of its REGISTER.

        Returns: what expected it; None for an unlaunched one in development mode.
        Raises: RegistrationRefused; then nothing has changed for anybody else. The
            launch that dialled is told; others still wait for the right one.
        """
        ccid, dialled = Ccid(name), handler.dialled
        expected = self._expected.get(ccid)
        reason = self._refusal(ccid, handler, expected)
        if handler.ended.settled:
            reason = "the stream has ended"
        if reason is None:
            self._handlers[ccid] = handler
            return expected
        shown = name[:_NAME_MAX]
        self.refusals.say(
            handler.log_key,
            _log.warning,
            "registration refused",
            ccid=shown,
            reason=reason,
        )
        meant = shown if dialled is None else dialled.ccid
        error = RegistrationRefused(reason, ccid=meant, name=shown)
        if dialled is not None:
            dialled.ready.fail(error)
        raise error

    def _refusal(
        self, ccid: Ccid, handler: Handler, expected: Expected | None
    ) -> str | None:
        """Return why `handler` cannot be `ccid`; None = it can."""
        shown, dialled = ccid[:_NAME_MAX], handler.dialled
        if not ccid:
            return "error in handling register chaincode, chaincodeID name is empty"
        foreign = None
        if dialled is None:
            foreign = self._foreign(ccid, handler.certificate, expected)
        elif ccid != dialled.ccid:
            foreign = (
                f"chaincode at the dialled address registers as {shown!r}, expected "
                f"{dialled.ccid!r}"
            )
        if foreign is not None:
            return foreign
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

    def _foreign(
        self, ccid: Ccid, certificate: str | None, expected: Expected | None
    ) -> str | None:
        """Return why a chaincode with `certificate` cannot be `ccid`; None = it can."""
        shown = ccid[:_NAME_MAX]
        if certificate is None:
            if expected is not None and expected.certificate is not None:
                return f"TLS is active but chaincode {shown} didn't send certificate"
            return None
        hashed = f"Chaincode {shown} with given certificate hash {certificate}"
        owner = self._certificates.get(certificate)
        if owner is None:
            launched = expected is not None and expected.certificate is not None
            if self._admit_unlaunched and not launched:
                return None  # a program that a user started; the node has issued it
            return f"{hashed} not found in registry"
        if owner != ccid:
            return f"{hashed} belongs to a different chaincode"
        # Or it is of the run before, which is still on its way down.
        current = expected is None or expected.certificate == certificate
        return None if current else f"{hashed} belongs to an earlier attempt"

    def knows(self, certificate: str) -> bool:
        """Whether an attempt with this certificate is expected or registered."""
        return certificate in self._certificates

    def remove(self, handler: Handler) -> None:
        """Deregister `handler` and its certificate, if it is the registered one."""
        if handler.ccid is not None and self._handlers.get(handler.ccid) is handler:
            del self._handlers[handler.ccid]
            self._certificates.pop(handler.certificate or "", None)
