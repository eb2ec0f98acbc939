"""Call chaincode from inside the node, by the steps of a client outside.

A call is a signed proposal, its endorsement, and a signed envelope for the orderer. Only
a response with a status of 200 to 399 is ordered.
Source: docs/fabric/ledger.md#transaction
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field
from functools import partial, partialmethod
from typing import Any, Final

from fabric_protos.common import common_pb2
from fabric_protos.peer import chaincode_pb2, proposal_pb2, proposal_response_pb2
from fabric_protos.peer.lifecycle.lifecycle_pb2 import (
    ApproveChaincodeDefinitionForMyOrgArgs,
)

from chaindock.aio import off_loop
from chaindock.chaincode.invocation import ERROR_STATUS
from chaindock.chaincode.wire import LARGE
from chaindock.endorser.checks import Proposal, new_header, parse_proposal
from chaindock.endorser.determinism import Difference, differences, parts
from chaindock.endorser.endorser import Endorser
from chaindock.endorser.orderer import Orderer
from chaindock.endorser.waiting import reverted
from chaindock.errors import ChaindockError, ExecuteFailed, TransactionInvalid
from chaindock.identity.msp import SigningIdentity
from chaindock.ids import Ccid, ChannelId, TxId
from chaindock.ledger.budget import Held
from chaindock.ledger.encoding import field as encoded
from chaindock.ledger.encoding import part
from chaindock.ledger.ledger import Ledger, TxLocation
from chaindock.ledger.transaction import code_name
from chaindock.lifecycle.approvals import Approvals, source_of
from chaindock.lifecycle.definitions import NAMESPACE, Definition

Explain = Callable[[bytes, TxLocation], Awaitable[Mapping[str, Any]]]

_LOWEST_STATUS: Final = 200
RUNS: Final = 5
PAUSE_S: Final = 0.3
"""Seconds between two runs: in all of them the clock shows another second."""
_EXPLAIN_S: Final = 2.0
"""After so many seconds a conflict is answered without an explanation."""


@dataclass(slots=True, eq=False)
class Answer:
    """The outcome of a call.

    `status`, `message` and `payload` are of the chaincode; a status below 400 is
    success. `block` and `code`, a TxValidationCode, are None when nothing was ordered.
    `event` is a ChaincodeEvent or None. `conflict` and `unmet`: what the transaction
    had read and another one had changed, and the policy that it does not satisfy, as
    `Explorer.reasons` of the node gives them; None = that is not why it failed. `held`:
    as `Outcome.held`.
    """

    status: int
    message: str
    payload: bytes
    tx_id: TxId
    block: int | None = None
    code: int | None = None
    event: Any = None
    refusals: Sequence[str] = ()
    conflict: Mapping[str, Any] | None = None
    unmet: Mapping[str, Any] | None = None
    held: Held | None = None

    @property
    def code_name(self) -> str | None:
        """Name of `code`, e.g. `MVCC_READ_CONFLICT`."""
        return None if self.code is None else code_name(self.code)


@dataclass
class Clock:
    """The time that calls of the node put into their proposals."""

    offset_s: float = 0.0
    """Seconds that this clock is ahead of the machine's; may be negative."""

    def now_ns(self) -> int:
        """Return nanoseconds since 1970 UTC."""
        return time.time_ns() + round(self.offset_s * 1e9)


@dataclass(frozen=True)
class Caller:
    """Calls chaincode on the node's channel."""

    channel: ChannelId
    endorser: Endorser
    orderer: Orderer
    explain: Explain | None = None
    """Finds out why a committed transaction has another code than 0."""
    clock: Clock = field(default_factory=Clock)

    async def invoke(
        self,
        name: str,
        args: Sequence[bytes],
        *,
        signer: SigningIdentity,
        transient: Mapping[str, bytes] | None = None,
        timeout_s: float | None = None,
        is_init: bool = False,
        commits: bool = True,
        endorsers: Sequence[str] = (),
    ) -> Answer:
        """Run a function and commit its writes.

        `args` are the name of the function and its arguments; only the chaincode sees
        `transient`. `timeout_s` is for the answer once the chaincode runs, None =
        configured; committing has no limit. Without `commits` the writes are dropped
        and nothing is ordered. `endorsers`: as for `Endorser.process`.

        Returns the answer. Check `code`: 0 = the writes took effect. An answer of 400
        or more was not ordered.

        Raises:
            As `Endorser.process`: the chaincode gave no answer. ExecuteFailed also for a
            status below 200, unless it is a query. LedgerError: the transaction could
            not be committed.
        Cancelled: a transaction that was ordered already is committed all the same.
        """
        facts: dict[str, Any] = {"transient": transient, "is_init": is_init}
        facts["now_ns"] = self.clock.now_ns()

        propose = partial(draw, self.channel, name, args, signer, **facts)
        ledger = self.endorser.ledger
        reverts = ledger.reverts
        given = *args, *(transient or {}), *(transient or {}).values()
        size = sum(map(len, given)) + 3 * len(given)
        proposal = await off_loop(size, propose)
        outcome, endorsed = await self.endorser.process(
            proposal, timeout_s, endorse=commits, endorsers=endorsers
        )
        commit, response = None, outcome.response
        reasons: Mapping[str, Any] = {}
        if endorsed and response.status < ERROR_STATUS:
            if response.status < _LOWEST_STATUS:  # Fabric's clients refuse it, too
                raise ExecuteFailed(
                    f"chaincode {name!r} answered with status {response.status} "
                    f"({response.message!r}), expected 200 to 399: nothing was ordered",
                    hint="let the contract set the status of a response: 200 = success",
                    tx_id=proposal.tx_id,
                )
            sign = partial(assemble, proposal, endorsed, signer)
            size = outcome.nbytes + len(proposal.payload)
            envelope = await off_loop(size, sign)
            if ledger.reverts != reverts:
                raise reverted()
            commit = await self.orderer.submit(envelope)
            if commit.code and self.explain is not None:
                # The transaction is committed, whatever becomes of the explanation.
                with suppress(ChaindockError, TimeoutError):
                    async with asyncio.timeout(_EXPLAIN_S):
                        reasons = await self.explain(envelope, commit)
        payload = await off_loop(outcome.nbytes, lambda: response.payload)
        return Answer(
            status=response.status,
            message=response.message,
            payload=payload,
            tx_id=proposal.tx_id,
            block=commit.block if commit else None,
            code=commit.code if commit else None,
            event=outcome.event,
            refusals=proposal.refusals,
            held=outcome.held,
            **reasons,
        )

    query = partialmethod(invoke, commits=False)


async def compare(
    caller: Caller,
    name: str,
    args: Sequence[bytes],
    signer: SigningIdentity,
    timeout_s: float | None = None,
    elsewhere: Callable[[], AbstractAsyncContextManager[None]] | None = None,
    **facts: Any,
) -> list[Difference]:
    """Run a proposal `RUNS` times and return what differed; nothing is ordered.

    If nothing differs, it runs once more within `elsewhere`, where the chaincode has
    another time zone and locale. `facts` are `transient` and `is_init`, as for
    `Caller.invoke`.

    Raises: TransactionInvalid: a block was committed meanwhile. As `Caller.invoke`.
    """
    endorser = caller.endorser
    now_ns = caller.clock.now_ns()
    drawn = draw(caller.channel, name, args, signer, **facts, now_ns=now_ns)
    height, found = endorser.ledger.height, []

    async def run() -> None:
        proposal = parse_proposal(drawn.signed)
        peer = endorser.peer_of(proposal, signer.mspid)
        outcome, answers = await endorser.process(
            proposal, timeout_s, endorse=True, endorsers=(peer,)
        )
        payload = answers[0].payload if answers else b""
        found.append(dict(parts(outcome.response, payload)))

    for number in range(RUNS):
        await asyncio.sleep(PAUSE_S if number else 0)
        await run()
    if elsewhere is not None and not differences(found):
        async with elsewhere():
            await run()
    if endorser.ledger.height != height:
        raise TransactionInvalid(
            "a block was committed while the runs were compared",
            hint="try again when nothing else is submitted",
        )
    return differences(found)


def draw(
    channel: str,
    name: str,
    args: Sequence[bytes],
    signer: SigningIdentity,
    *,
    transient: Mapping[str, bytes] | None = None,
    is_init: bool = False,
    now_ns: int | None = None,
) -> Proposal:
    """Return a new proposal, signed as a client does, and its parts.

    The parameters are as for `Caller.invoke`; `channel` is "" for a call to the node
    itself; `now_ns`: None = the machine's time.

    Raises: ProposalInvalid: it has no name, or too many arguments.
    """
    kind = common_pb2.ENDORSER_TRANSACTION
    nonce, header = new_header(kind, channel, signer.creator, now_ns)
    chaincode = part(2, encoded(2, name.encode()))
    header.extension = chaincode  # of a ChaincodeHeaderExtension it is field 2, too
    given = chaincode_pb2.ChaincodeInput(args=args, is_init=is_init)
    spec = chaincode + part(3, given.SerializeToString())
    payload = whole = encoded(1, encoded(1, spec))
    if transient:
        values = proposal_pb2.ChaincodeProposalPayload(TransientMap=transient)
        whole += values.SerializeToString()
    headers = header.SerializeToString(), encoded(1, signer.creator) + encoded(2, nonce)
    both = encoded(1, headers[0]) + encoded(2, headers[1])
    data = encoded(1, both) + encoded(2, whole)
    signature = signer.sign(data)
    signed = proposal_pb2.SignedProposal(proposal_bytes=data, signature=signature)
    if not name or len(data) > LARGE:
        return parse_proposal(signed, drawn=True)  # which may refuse it
    return Proposal(
        signed=signed,
        header=header,
        channel=ChannelId(channel),
        tx_id=TxId(header.tx_id),
        channel_header_bytes=headers[0],
        signature_header_bytes=headers[1],
        creator=signer.creator,
        nonce=nonce,
        name=name,
        called=name,
        input=given,
        payload=payload,
        nbytes=signed.ByteSize(),
        transient=bool(transient),
        drawn=True,
    )


def assemble(
    proposal: Proposal,
    endorsed: Sequence[proposal_response_pb2.ProposalResponse],
    signer: SigningIdentity,
) -> bytes:
    """Return the transaction of `payload_of`, signed by the client."""
    payload = payload_of(proposal, endorsed)
    return encoded(1, payload) + encoded(2, signer.sign(payload))


def payload_of(
    proposal: Proposal, endorsed: Sequence[proposal_response_pb2.ProposalResponse]
) -> bytes:
    """Return what a client signs as transaction; `endorsed` are over the same payload."""
    action = encoded(1, endorsed[0].payload)
    for one in endorsed:
        action += part(2, one.endorsement.SerializeToString())
    signed = proposal.signature_header_bytes
    once = encoded(1, signed) + part(2, encoded(1, proposal.payload) + part(2, action))
    header = encoded(1, proposal.channel_header_bytes) + encoded(2, signed)
    return part(1, header) + part(2, part(1, once))


@dataclass(frozen=True)
class DefinitionWriter:
    """Approves and commits definitions; for lifecycle.Deployer."""

    caller: Caller
    ledger: Ledger
    admins: Callable[[], Sequence[SigningIdentity]]
    """Returns those of the organisations that approve; the first one commits."""

    async def commit(self, definition: Definition, ccid: Ccid) -> None:
        """Have every organisation approve a definition, which runs `ccid`; commit it.

        If organisations came or went meanwhile, those that are there now, once.

        Raises: TransactionInvalid when it did not take effect.
        """
        admins = self.admins()
        try:
            await self._commit(definition, ccid, admins)
        except ChaindockError:
            if admins == (now := self.admins()):
                raise
            await self._commit(definition, ccid, now)

    async def _commit(
        self, definition: Definition, ccid: Ccid, admins: Sequence[SigningIdentity]
    ) -> None:
        fields = {key.name: value for key, value in definition.ListFields()}
        source = source_of(ccid)
        approval = ApproveChaincodeDefinitionForMyOrgArgs(**fields, source=source)
        for admin in admins:
            approvals = Approvals(self.ledger.channel, admin.mspid)
            with self.ledger.new_simulator(TxId("")) as simulator:
                # An attempt that did not come to the commit may have approved this.
                approved = approvals.holds(simulator, definition, ccid)
            if not approved:
                await self._call("ApproveChaincodeDefinitionForMyOrg", approval, admin)
        await self._call("CommitChaincodeDefinition", definition, admins[0])

    async def _call(self, function: str, args: Any, admin: SigningIdentity) -> None:
        answer = await self.caller.invoke(
            NAMESPACE, [function.encode(), args.SerializeToString()], signer=admin
        )
        if answer.status >= ERROR_STATUS or answer.code:
            why = answer.message if answer.code is None else answer.code_name
            stopped = (answer.unmet or {}).get("stopped") or ()
            starts = ", ".join(f"chaindock org start {one}" for one in stopped)
            raise TransactionInvalid(
                f"the definition of {args.name!r}, sequence {args.sequence}, was not "
                f"committed: {why}",
                hint=f"start these peers: {starts}" if starts else "try again",
                chaincode=args.name,
                code=answer.code,
            )
