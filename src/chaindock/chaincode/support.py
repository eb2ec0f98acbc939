"""Run invocations on chaincode, launching it if needed.

Owns:    ChaincodeSupport.
Not:     launching (launcher.py), the stream (handler.py), who may call (endorser).
Entry:   ChaincodeSupport.execute
Holds:   time spent on a launch does not count as execution.
Source:  launch.md §1.3; shim-protocol.md §8, §10
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from chaindock.chaincode.options import CallOptions
from chaindock.errors import LaunchFailed, LaunchTimeout, StreamTerminated

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from chaindock.chaincode.handler import Handler
    from chaindock.chaincode.invocation import Invocation, Outcome
    from chaindock.chaincode.launcher import RuntimeLauncher
    from chaindock.chaincode.registry import HandlerRegistry
    from chaindock.ids import Ccid


class ChaincodeSupport:
    """Where invocations enter.

    Args:
        bring_up: returns when a chaincode is ready, or raises why it is not; None = as
            the launcher does it, at once and each time.
        timeout_of: the execute timeout of a chaincode by its name, in seconds; None =
            the configured one.
    """

    def __init__(
        self,
        registry: HandlerRegistry,
        launcher: RuntimeLauncher,
        options: CallOptions | None = None,
        *,
        bring_up: Callable[[Ccid], Awaitable[None]] | None = None,
        timeout_of: Callable[[str], float | None] = lambda _name: None,
    ) -> None:
        self._registry = registry
        self._launcher = launcher
        self._options = options or CallOptions()
        self._bring_up = bring_up or launcher.launch
        self._timeout_of = timeout_of

    async def execute(self, ccid: Ccid, invocation: Invocation) -> Outcome:
        """Run `invocation` on `ccid` and return what it answered.

        One that the chaincode never got, because it went away first, is given to the
        run after it.

        Raises:
            LaunchFailed and its kinds: it is not running and does not come up.
            TransactionExists: the transaction runs already on this chaincode.
            ExecuteTimeout: no final message in time; the chaincode is left alone.
            StreamTerminated: it went away meanwhile; with how it ended.
            ChaincodeError: it answered ERROR, or what cannot be decoded.
        Cancelled: the chaincode is left alone; what it still asks gets an ERROR.
        """
        timeout_s = invocation.timeout_s
        if timeout_s is None:
            timeout_s = self._timeout_of(invocation.namespace)
        if timeout_s is None:
            timeout_s = self._options.execute_timeout_s
        for last in (False, True):
            handler = self._registry.find_ready(ccid) or await self._ready(ccid)
            run = self._launcher.find_run(ccid)
            try:
                return await handler.calls.execute(invocation, timeout_s)
            except StreamTerminated as lost:
                if not last and lost.facts.get("sent") is False:
                    continue
                if run is not None:
                    await run.explain(lost, invocation.namespace)
                raise
        raise AssertionError("unreachable")

    async def _ready(self, ccid: Ccid) -> Handler:
        await self._launched(ccid)
        handler = self._registry.find_ready(ccid)
        if handler is None:
            raise LaunchFailed(
                f"could not launch chaincode {ccid}: claimed to start chaincode "
                f"container for {ccid} but could not find handler",
                hint=f"it ended at once; read its output: chaindock logs {ccid}",
                ccid=ccid,
            )
        return handler

    async def _launched(self, ccid: Ccid) -> None:
        wait_s = self._options.launch_wait_s
        scope = asyncio.timeout(wait_s)
        try:
            async with scope:
                await self._bring_up(ccid)
        except TimeoutError as error:
            if not scope.expired():
                raise
            status = self._launcher.status(ccid)
            attempt, failed = status.attempt, status.error
            doing = "its launch waits for its turn"
            if attempt is not None and attempt.phase is not None:
                doing = f"its launch goes on in phase {attempt.phase}"
            elif failed is not None:
                doing = f"its last try ended: {failed.message}"
            raise LaunchTimeout(
                f"could not launch chaincode {ccid}: not ready after {wait_s:g} s of "
                f"waiting; {doing}",
                hint=(failed and failed.hint) or "try again later",
                limit_s=wait_s,
                registered=False,
                **(attempt.facts() if attempt else {"ccid": ccid}),
            ) from error
