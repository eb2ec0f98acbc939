"""Run calls on chaincode, launching it if needed.

Time spent on a launch does not count as execution.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final

from fabric_protos.peer.chaincode_shim_pb2 import ChaincodeMessage

from chaindock.chaincode.failures import explain
from chaindock.chaincode.handler import Handler
from chaindock.chaincode.invocation import Invocation
from chaindock.chaincode.options import CallOptions
from chaindock.chaincode.registry import HandlerRegistry
from chaindock.errors import LaunchFailed, StreamTerminated
from chaindock.ids import Ccid, at_peer

_EXPLAIN_WAIT_S: Final = 5.0
"""Seconds that a call which died with its chaincode waits to learn how that ended."""


class ChaincodeSupport:
    """Where calls enter.

    `ready` returns when a chaincode takes calls, at the latest after so many seconds,
    or raises why it does not (lifecycle.Custodian.ready). `timeout_of` returns the
    execute timeout of a chaincode by its name, in seconds; None = the configured one.
    `process_of` returns the MSP id of the organisation whose processes serve the peer
    of an organisation; "" = the first one of the node.
    """

    def __init__(
        self,
        registry: HandlerRegistry,
        ready: Callable[[Ccid, float], Awaitable[None]],
        options: CallOptions | None = None,
        *,
        timeout_of: Callable[[str], float | None] = lambda _name: None,
        process_of: Callable[[str], str] = lambda _mspid: "",
    ) -> None:
        self._registry, self._ready = registry, ready
        self.process_of = process_of
        self._options = options or CallOptions()
        self._timeout_of = timeout_of

    async def execute(
        self, ccid: Ccid, invocation: Invocation, mspid: str = ""
    ) -> ChaincodeMessage:
        """Run `invocation` on `ccid` and return the COMPLETED or ERROR that answers it.

        It runs where the chaincode serves the peer of the organisation `mspid`.
        A call that was never sent, because the chaincode ended first, goes to the next
        run.

        Raises: LaunchFailed and its kinds: the chaincode does not come up, or is not to
            run any more. What `Calls.execute` raises; StreamTerminated says how the
            chaincode ended.
        Cancelled: the chaincode runs on; its further requests get an ERROR.
        """
        served = self.process_of(mspid)
        ccid = at_peer(ccid, served)
        timeout_s = invocation.timeout_s
        if timeout_s is None:
            own_s = self._timeout_of(invocation.namespace)
            timeout_s = self._options.execute_timeout_s if own_s is None else own_s
        lost_before = False
        while True:
            handler = self._registry.find_ready(ccid) or await self._launched(ccid)
            try:
                return await handler.calls.execute(invocation, timeout_s)
            except StreamTerminated as lost:
                if not lost_before and lost.facts.get("sent") is False:
                    lost_before = True
                    continue
                name = at_peer(Ccid(invocation.namespace), served)
                lost.hint = f"read its output: chaindock logs {name}"
                if handler.expected is not None and invocation.caller is None:
                    exit_ = handler.expected.exit
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_EXPLAIN_WAIT_S):
                            await exit_.wait()
                    attempt = handler.expected.attempt
                    explain(lost, name, attempt, exit_.value)
                raise

    async def _launched(self, ccid: Ccid) -> Handler:
        await self._ready(ccid, self._options.launch_wait_s)
        handler = self._registry.find_ready(ccid)
        if handler is None:
            raise LaunchFailed(
                f"could not launch chaincode {ccid}: claimed to start chaincode "
                f"container for {ccid} but could not find handler",
                hint=f"it ended at once; read its output: chaindock logs {ccid}",
                ccid=ccid,
            )
        return handler
