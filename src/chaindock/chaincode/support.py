"""Run invocations on chaincode, launching it if needed.

Owns:    ChaincodeSupport.
Not:     launching (launcher.py), the stream (handler.py), who may call (endorser).
Entry:   ChaincodeSupport.execute
Holds:   time spent on a launch does not count as execution.
Source:  launch.md §1.3; shim-protocol.md §8, §10
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from chaindock.chaincode.options import CallOptions
from chaindock.errors import LaunchFailed

if TYPE_CHECKING:
    from chaindock.chaincode.invocation import Invocation, Outcome
    from chaindock.chaincode.launcher import RuntimeLauncher
    from chaindock.chaincode.registry import HandlerRegistry
    from chaindock.ids import Ccid


class ChaincodeSupport:
    """Where invocations enter."""

    def __init__(
        self,
        registry: HandlerRegistry,
        launcher: RuntimeLauncher,
        options: CallOptions | None = None,
    ) -> None:
        self._registry = registry
        self._launcher = launcher
        self._options = options or CallOptions()

    async def execute(self, ccid: Ccid, invocation: Invocation) -> Outcome:
        """Run `invocation` on `ccid` and return what it answered.

        Raises:
            LaunchFailed and its kinds: it is not running and does not come up.
            TransactionExists: the transaction runs already on this chaincode.
            ExecuteTimeout: no final message in time; the chaincode is left alone.
            StreamTerminated: it went away meanwhile.
            ChaincodeError: it answered ERROR, or what cannot be decoded.
        Cancelled: the chaincode is left alone; what it still asks gets an ERROR.
        """
        handler = self._registry.find_ready(ccid)
        if handler is None:
            await self._launcher.launch(ccid, wait_s=self._options.launch_wait_s)
            handler = self._registry.find_ready(ccid)
            if handler is None:
                raise LaunchFailed(
                    f"could not launch chaincode {ccid}: claimed to start chaincode "
                    f"container for {ccid} but could not find handler",
                    hint=f"it ended at once; read its output: chaindock logs {ccid}",
                    ccid=ccid,
                )
        timeout_s = invocation.timeout_s
        if timeout_s is None:
            timeout_s = self._options.execute_timeout_s
        return await handler.execute(invocation, timeout_s)
