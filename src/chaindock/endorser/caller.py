"""Call chaincode from inside the node, by the steps of a client outside.

A call is a signed proposal, its endorsement, and a signed envelope for the orderer. A
response of 400 or more is never ordered.
Source: docs/fabric/ledger.md#transaction
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from fabric_protos.peer import (
    chaincode_event_pb2,
    proposal_pb2,
    proposal_response_pb2,
    transaction_pb2,
)

from chaindock.endorser.proposals import new_proposal, parse_proposal
from chaindock.endorser.transactions import prepare_payload, sign_payload
from chaindock.errors import LedgerError
from chaindock.ids import TxId
from chaindock.lifecycle.definitions import NAMESPACE, read_sequence

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fabric_protos.peer.lifecycle import lifecycle_pb2

    from chaindock.endorser.endorser import Endorser
    from chaindock.endorser.orderer import Commit, Orderer
    from chaindock.endorser.proposals import Proposal
    from chaindock.identity.msp import SigningIdentity
    from chaindock.ids import ChannelId
    from chaindock.ledger.ledger import Ledger

_ERROR: Final = 400


@dataclass(frozen=True, slots=True)
class Answer:
    """The outcome of a call.

    Args:
        status, message, payload: of the chaincode; below 400 is success.
        tx_id: transaction id.
        block: number of the block; None when nothing was ordered.
        code: TxValidationCode; None when nothing was ordered.
        event: ChaincodeEvent (`event_name`, `payload`) or None.
        refusals: what the node refused during the call.
    """

    status: int
    message: str
    payload: bytes
    tx_id: TxId
    block: int | None = None
    code: int | None = None
    event: Any = None
    refusals: Sequence[str] = ()

    @property
    def code_name(self) -> str | None:
        """Name of `code`, e.g. `MVCC_READ_CONFLICT`."""
        return None if self.code is None else code_name(self.code)


def code_name(code: int) -> str:
    """Return the name of a TxValidationCode; the number as text if it has none."""
    known = code in transaction_pb2.TxValidationCode.values()
    return str(transaction_pb2.TxValidationCode.Name(code) if known else code)


class Caller:
    """Calls chaincode on the node's channel."""

    def __init__(
        self, channel: ChannelId, endorser: Endorser, orderer: Orderer
    ) -> None:
        self._channel = channel
        self._endorser = endorser
        self._orderer = orderer

    async def query(
        self,
        name: str,
        args: Sequence[bytes],
        *,
        signer: SigningIdentity,
        transient: Mapping[str, bytes] | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        """Run a function and return its answer; nothing is ordered.

        Args:
            name: of the chaincode.
            args: function name and arguments.
            signer: the client.
            transient: seen by the chaincode only.
            timeout_s: for the answer once the chaincode runs; None = configured.

        Raises:
            NotFound, Denied, LaunchFailed, ExecuteFailed, TooManyRequests: the chaincode
            gave no answer. A status of 400 or more is an Answer.
        """
        signed = new_proposal(self._channel, name, args, signer, transient=transient)
        proposal = parse_proposal(signed)
        outcome = await self._endorser.evaluate(proposal, timeout_s)
        return _answer(outcome.response, proposal, outcome.event)

    async def invoke(
        self,
        name: str,
        args: Sequence[bytes],
        *,
        signer: SigningIdentity,
        transient: Mapping[str, bytes] | None = None,
        timeout_s: float | None = None,
        is_init: bool = False,
    ) -> Answer:
        """Run a function and commit its writes.

        Args:
            name: of the chaincode.
            args: function name and arguments.
            signer: the client.
            transient: seen by the chaincode only.
            timeout_s: as for `query`; committing has no limit.
            is_init: call Init.

        Returns:
            the answer. Check `code`: 0 = the writes took effect. An answer of 400 or more
            was not ordered.

        Raises:
            as `query`; LedgerError when it could not be committed.
        Cancelled: a transaction that was ordered already is committed all the same.
        """
        signed = new_proposal(
            self._channel, name, args, signer, transient=transient, is_init=is_init
        )
        proposal = parse_proposal(signed)
        response = await self._endorser.endorse(proposal, timeout_s)
        said, event = response.response, _event_of(response)
        if said.status >= _ERROR:
            return _answer(said, proposal, event)
        payload = prepare_payload(proposal, [response])
        done = await self._orderer.submit(sign_payload(proposal, payload, signer))
        return _answer(said, proposal, event, done)


def _answer(
    said: proposal_response_pb2.Response,
    proposal: Proposal,
    event: Any,
    commit: Commit | None = None,
) -> Answer:
    return Answer(
        status=said.status,
        message=said.message,
        payload=said.payload,
        tx_id=proposal.tx_id,
        block=commit.block if commit else None,
        code=commit.code if commit else None,
        event=event,
        refusals=proposal.refusals,
    )


def _event_of(response: proposal_response_pb2.ProposalResponse) -> Any:
    payload = proposal_response_pb2.ProposalResponsePayload.FromString(response.payload)
    events = proposal_pb2.ChaincodeAction.FromString(payload.extension).events
    return chaincode_event_pb2.ChaincodeEvent.FromString(events) if events else None


class DefinitionWriter:
    """Commits definitions as the admin; what lifecycle.Deployer needs."""

    def __init__(self, caller: Caller, ledger: Ledger, admin: SigningIdentity) -> None:
        self._caller = caller
        self._ledger = ledger
        self._admin = admin

    async def commit(self, args: lifecycle_pb2.CommitChaincodeDefinitionArgs) -> None:
        """Commit a definition. Raises: LedgerError when it did not take effect."""
        answer = await self._caller.invoke(
            NAMESPACE,
            [b"CommitChaincodeDefinition", args.SerializeToString()],
            signer=self._admin,
        )
        if answer.status >= _ERROR or answer.code:
            why = answer.message if answer.code is None else answer.code_name
            raise LedgerError(
                f"the definition of {args.name!r}, sequence {args.sequence}, was not "
                f"committed: {why}",
                hint="try again",
                chaincode=args.name,
                code=answer.code,
            )

    def sequence(self, name: str) -> int:
        """Return the committed sequence of `name`; 0 when it is not defined."""
        simulator = self._ledger.new_simulator(TxId(""))
        try:
            return read_sequence(simulator, name)
        finally:
            simulator.done()
