"""What a call of a chaincode is, and what came of it.

The texts of errors are complete: an endorser only puts `error in simulation: ` before.
Source: docs/fabric/shim-protocol.md#calls
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from fabric_protos.peer import chaincode_event_pb2, proposal_response_pb2
from fabric_protos.peer import chaincode_shim_pb2 as shim
from google.protobuf.message import DecodeError

from chaindock.errors import (
    ChaincodeError,
    ExecuteFailed,
    ExecuteTimeout,
    StreamTerminated,
    TransactionExists,
)

if TYPE_CHECKING:
    from fabric_protos.peer import chaincode_pb2, proposal_pb2

    from chaindock.ids import ChannelId, TxId
    from chaindock.ledger.simulator import Simulator

INIT: Final = shim.ChaincodeMessage.INIT
TRANSACTION: Final = shim.ChaincodeMessage.TRANSACTION
COMPLETED: Final = shim.ChaincodeMessage.COMPLETED

MAX_REFUSALS: Final = 10
_REFUSAL_MAX: Final = 300
"""Characters of one: names in it are the chaincode's."""
ERROR_STATUS = 400
"""From this status on the event of a transaction is dropped."""


@dataclass(slots=True)
class Invocation:
    """One call of a chaincode.

    Args:
        channel_id, tx_id: together the key of the transaction on a stream.
        namespace: name of the chaincode (not its ccid).
        input: arguments, decorations, is_init; sent as it is.
        signed_proposal: the client's; the chaincode gets exactly these bytes.
        simulator: takes the reads and writes; its owner calls `done`.
        is_init: send INIT instead of TRANSACTION.
        timeout_s: for this call; None = the configured execute timeout.
        refusals: what the node does not support of what the chaincode asked for; a
            contract may hide these errors from its caller.
    """

    channel_id: ChannelId
    tx_id: TxId
    namespace: str
    input: chaincode_pb2.ChaincodeInput
    signed_proposal: proposal_pb2.SignedProposal
    simulator: Simulator
    is_init: bool = False
    timeout_s: float | None = None
    refusals: list[str] = field(default_factory=list)

    def refuse(self, why: str) -> None:
        """Keep the text of a refusal, the first few of them, each once."""
        why = why[:_REFUSAL_MAX]
        if why not in self.refusals and len(self.refusals) < MAX_REFUSALS:
            self.refusals.append(why)

    @property
    def function(self) -> str:
        """The first argument as text; "" when there is none."""
        return self.input.args[0].decode(errors="replace") if self.input.args else ""

    def message(self) -> shim.ChaincodeMessage:
        """Return the message that starts it."""
        return shim.ChaincodeMessage(
            type=INIT if self.is_init else TRANSACTION,
            payload=self.input.SerializeToString(),
            txid=self.tx_id,
            channel_id=self.channel_id,
            proposal=self.signed_proposal,
        )

    def already_runs(self) -> TransactionExists:
        """Return the error: this key is running on the stream."""
        return TransactionExists(
            self._unsent(f"txid: {self.tx_id}({self.channel_id}) exists"),
            tx_id=self.tx_id,
        )

    def took_too_long(self, limit_s: float, overrun_s: float) -> ExecuteTimeout:
        """Return the error: no final message within `limit_s` seconds.

        After `overrun_s` seconds more the chaincode will be started again.
        """
        return ExecuteTimeout(
            self._unsent(
                "timeout expired while executing transaction: chaincode "
                f"{self.namespace} did not answer in {limit_s:g} s"
            ),
            hint="the chaincode may still run the call; without an answer after "
            f"{limit_s + overrun_s:g} s the node restarts the chaincode. Raise the limit "
            "of a call with --timeout",
            tx_id=self.tx_id,
            limit_s=limit_s,
        )

    def had_no_turn(self, limit_s: float) -> ExecuteTimeout:
        """Return the error: others were not answered within `limit_s` seconds."""
        return ExecuteTimeout(
            self._unsent(
                f"chaincode {self.namespace} is still at earlier calls after {limit_s:g} s"
            ),
            hint="it was not told of this call: send it again; what runs: "
            "chaindock ps --calls",
            tx_id=self.tx_id,
            limit_s=limit_s,
            sent=False,
            retryable=True,
        )

    def lost_stream(self, reason: str, *, sent: bool = True) -> StreamTerminated:
        """Return the error: the stream ended (`reason`) before the final message.

        `sent` is False when the chaincode was never told of it.
        """
        return StreamTerminated(
            self._unsent("chaincode stream terminated"),
            hint=f"read its output: chaindock logs {self.namespace}",
            tx_id=self.tx_id,
            reason=reason,
            sent=sent,
        )

    def too_large(self, size: int, limit: int) -> ExecuteFailed:
        """Return the error: its message would break the stream (sizes in bytes)."""
        cause = f"message of {size} bytes is larger than the limit of {limit}"
        return ExecuteFailed(self._unsent(cause), tx_id=self.tx_id)

    def _unsent(self, cause: str) -> str:
        return f"failed to execute transaction {self.tx_id}: error sending: {cause}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the chaincode answered.

    Args:
        response: with any status.
        event: name and payload as set by the chaincode, the rest filled in by the node;
            None for a status of 400 and more.
    """

    response: proposal_response_pb2.Response
    event: chaincode_event_pb2.ChaincodeEvent | None


def outcome_of(final: shim.ChaincodeMessage, invocation: Invocation) -> Outcome:
    """Return what the COMPLETED or ERROR message says.

    Raises: ChaincodeError for ERROR and for what cannot be decoded.
    """
    tx_id = invocation.tx_id
    if final.type != COMPLETED:
        text = final.payload.decode(errors="replace")
        raise ChaincodeError(f"transaction returned with failure: {text}", tx_id=tx_id)
    try:
        response = proposal_response_pb2.Response.FromString(final.payload)
    except DecodeError as error:
        raise ChaincodeError(
            f"failed to unmarshal response for transaction {tx_id}: {error}",
            tx_id=tx_id,
        ) from error
    event = None
    if final.HasField("chaincode_event") and response.status < ERROR_STATUS:
        event = chaincode_event_pb2.ChaincodeEvent(
            chaincode_id=invocation.namespace,
            tx_id=tx_id,
            event_name=final.chaincode_event.event_name,
            payload=final.chaincode_event.payload,
        )
    return Outcome(response, event)
