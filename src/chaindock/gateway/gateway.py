"""gateway.Gateway: evaluate, endorse and submit transactions, and wait for their commit.

Codes, texts and details are those of a Fabric peer. The node has the peers of several
organisations in one: each peer that is needed runs a proposal, and signs the result.
Source: docs/fabric/gateway.md
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

from fabric_protos.common import common_pb2
from fabric_protos.gateway import gateway_pb2 as pb

from chaindock.aio import off_loop
from chaindock.endorser.caller import payload_of
from chaindock.endorser.channel import Channel, Joined
from chaindock.endorser.checks import Proposal, check_clock
from chaindock.endorser.simulation import UNSIMULATED
from chaindock.errors import (
    ChaindockError,
    Code,
    EndorsersMissing,
    ExecuteTimeout,
    NotEndorsed,
    NotFound,
    ProposalInvalid,
)
from chaindock.gateway import requests
from chaindock.gateway.blocks import Feeds
from chaindock.gateway.calls import Call as Context
from chaindock.gateway.calls import Service
from chaindock.gateway.events import chaincode_events
from chaindock.gateway.options import GatewayOptions
from chaindock.gateway.seat import Seat
from chaindock.gateway.statuses import (
    Refusal,
    broadcast_status,
    detail,
    endorser_status,
    response_status,
)
from chaindock.rpc.status import Status

_UNPLANNED: Final = (
    "no combination of peers can be derived which satisfy the endorsement policy: "
)
_OWN: Final = "no endorsers found in the gateway's organization; retry specifying {} "
_PROTECT: Final = "organization(s) to protect transient data"
_COLLECT: Final = "collect enough transaction endorsements"
_SEE: Final = ", see attached details for more info"
_MOST_LATE: Final = 2
"""Peers that may let a query time out. One process may hang; if two do, it is the contract,
and each more would hold the client for as long as chaincode may run."""


def service(
    channels: Mapping[str, Channel],
    options: GatewayOptions,
    execute_s: float,
    feeds: Feeds,
    seat: Seat,
) -> Service:
    """Return the service of one peer; `execute_s`: chaincode.executetimeout."""
    limit_s = options.endorsement_s if options.endorsement_s < execute_s else None
    made = Gateway(channels, options, limit_s, seat)
    unary = {
        "Evaluate": made.evaluate,
        "Endorse": made.endorse,
        "Submit": made.submit,
        "CommitStatus": made.commit_status,
    }
    joined = Joined(channels, seat.mspid)
    events = {"ChaincodeEvents": partial(chaincode_events, joined, feeds)}
    return Service("gateway.Gateway", unary, feeds=events, limit=options.gateway_calls)


class Gateway:
    """The unary methods at the peer of one organisation.

    Each takes a serialised request and returns the serialised response, or raises Refusal.
    """

    def __init__(
        self,
        channels: Mapping[str, Channel],
        options: GatewayOptions,
        limit_s: float | None,
        seat: Seat,
    ) -> None:
        self._channels, self._options = Joined(channels, seat.mspid), options
        self._limit_s, self._seat = limit_s, seat

    # ---- evaluate

    async def evaluate(self, raw: bytes, _context: Context) -> bytes:
        """Run a proposal at one peer and return what the chaincode said.

        If that peer cannot execute it, the next one is asked, but none after the
        second one that took too long.
        """
        request, proposal = await off_loop(len(raw), partial(requests.evaluated, raw))
        del raw
        if isinstance(proposal, ProposalInvalid):
            code, text = endorser_status(proposal)
            raise self._failed(_EVALUATED.format(text), code, {self._seat.mspid: text})
        channel = self._channels.get(proposal.channel)
        if channel is None:
            raise Refusal(Status.UNAVAILABLE, _unknown(proposal.channel))
        code, said, late = Status.ABORTED, dict[str, str](), 0
        for mspid in self._evaluators(channel, proposal, request.target_organizations):
            try:
                check_clock(proposal.header, self._options.time_window_s)
                outcome, _ = await channel.endorser.process(
                    proposal, self._limit_s, endorse=False, endorsers=(mspid,)
                )
            except ChaindockError as error:
                if type(error) is NotFound:
                    raise _no_peers(proposal, request.target_organizations) from error
                code, said[mspid] = endorser_status(error, proposal)
                if code is Status.FAILED_PRECONDITION:
                    text = _EVALUATED.format(said[mspid])
                    raise self._failed(text, code, said) from error
                late += error.code is Code.DEADLINE_EXCEEDED
                if code is not Status.ABORTED or late == _MOST_LATE:
                    break
                continue
            response = outcome.response
            if failed := response_status(response.status, response.message):
                code, text = failed
                raise self._failed(_EVALUATED.format(text), code, {mspid: text})
            return await off_loop(outcome.nbytes, partial(_evaluated, response))
        raise self._failed(f"failed to evaluate transaction{_SEE}", code, said)

    def _evaluators(
        self, channel: Channel, proposal: Proposal, targets: Sequence[str]
    ) -> list[str]:
        """Return the MSP ids of the peers that may run a proposal, the best one first.

        One of those that share a process is enough.
        """
        own, peers = self._seat.mspid, channel.members.peers
        wanted = targets or ((own,) if proposal.transient else peers)
        found = [one for one in dict.fromkeys((own, *peers)) if one in wanted]
        if not found:
            raise _no_peers(proposal, targets)
        process_of, first = channel.endorser.executor.process_of, dict[str, str]()
        for mspid in found:
            first.setdefault(process_of(mspid), mspid)
        return list(first.values())

    def _failed(self, text: str, code: Any, said: Mapping[str, str]) -> Refusal:
        """Return the end of a call; `said`: what peers said, by MSP id."""
        details = (detail(self._seat.of(mspid), one) for mspid, one in said.items())
        return Refusal(code, text, *details)

    # ---- endorse

    async def endorse(self, raw: bytes, _context: Context) -> bytes:
        """Run a proposal, have it endorsed and return the transaction without signature."""
        request, proposal = await off_loop(len(raw), partial(requests.proposed, raw))
        del raw
        named = list(dict.fromkeys(request.endorsing_organizations))
        if isinstance(proposal, ProposalInvalid):
            raise self._uncollected(named, endorser_status(proposal)[1])
        channel = self._endorsing(proposal, named)
        try:
            check_clock(proposal.header, self._options.time_window_s)
            outcome, endorsed = await channel.endorser.process(
                proposal,
                self._limit_s,
                endorse=True,
                endorsers=named,
                at=self._seat.mspid,
                strict=True,
            )
        except EndorsersMissing as error:
            raise _unplanned(error) from error
        except NotEndorsed as error:
            self._require_time(error, "endorsements")
            text = f"failed to {_COLLECT}{_SEE}"
            raise self._failed(text, Status.ABORTED, error.organizations) from error
        except ChaindockError as error:
            if type(error) is NotFound:
                raise _no_plan(proposal, named, error) from error
            self._require_time(error, "endorsements" if named else "first endorsement")
            said = endorser_status(error, proposal)[1]
            raise self._uncollected(named, said) from error
        response = outcome.response
        if (failed := response_status(response.status, response.message)) is not None:
            raise self._uncollected(named, failed[1])
        work = partial(_prepared, proposal, endorsed)
        return await off_loop(outcome.nbytes + len(proposal.payload), work)

    def _endorsing(self, proposal: Proposal, named: Sequence[str]) -> Channel:
        """Return the channel of a proposal, which has the organisations that are named."""
        channel = self._channels.get(proposal.channel)
        peers = channel.members.peers if channel else {}
        if missing := [mspid for mspid in named if mspid not in peers]:
            raise _no_endorsers(missing)
        if channel is None or (proposal.called in UNSIMULATED and not named):
            raise _no_metadata(proposal)
        return channel

    def _require_time(self, error: ChaindockError, what: str) -> None:
        """End a call for which chaincode took longer than the gateway lets it."""
        late = isinstance(error, ExecuteTimeout) or error.facts.get("late")
        if late and self._limit_s is not None:
            text = f"endorsement timeout expired while collecting {what}"
            raise Refusal(Status.DEADLINE_EXCEEDED, text)

    def _uncollected(self, named: Sequence[str], said: str) -> Refusal:
        """Return the end of a call for which all peers said the same, and not yes."""
        text = f"failed to {_COLLECT if named else 'endorse transaction'}{_SEE}"
        asked = dict.fromkeys(named or (self._seat.mspid,), said)
        return self._failed(text, Status.ABORTED, asked)

    # ---- submit and wait

    async def submit(self, raw: bytes, _context: Context) -> bytes:
        """Put a signed transaction in order; return when it is accepted."""
        name, envelope = await off_loop(len(raw), partial(requests.submitted, raw))
        del raw
        channel = self._channels.get(name)
        if channel is None:
            raise Refusal(Status.FAILED_PRECONDITION, _unknown(name))
        limit_s = self._options.broadcast_s
        try:
            async with asyncio.timeout(limit_s):
                _ = await channel.orderer.order(envelope)
        except TimeoutError:
            text = "submit timeout expired while broadcasting to ordering service"
            raise Refusal(Status.DEADLINE_EXCEEDED, text) from None
        except ChaindockError as error:
            raise self._not_ordered(*broadcast_status(error)) from error
        return _SUBMITTED

    def _not_ordered(self, status: int, info: str) -> Refusal:
        name = common_pb2.Status.Name(status)
        if status < common_pb2.INTERNAL_SERVER_ERROR:
            text = f"received unsuccessful response from orderer: status={name}, "
            return Refusal(Status.ABORTED, f"{text}info={info}")
        return Refusal(
            Status.UNAVAILABLE,
            "no orderers could successfully process transaction",
            detail(self._seat, f"received unsuccessful response: {name}, {info}"),
        )

    async def commit_status(self, raw: bytes, _context: Context) -> bytes:
        """Return where a transaction is on the ledger; wait until it is there."""
        request, signed = await off_loop(len(raw), partial(requests.commit_status, raw))
        resource = "gateway/CommitStatus"
        channel = await requests.opened(self._channels, resource, request, signed)
        try:
            where = await channel.ledger.committed(request.transaction_id)
        except ChaindockError as error:
            raise Refusal(Status.ABORTED, error.message) from error
        answer = pb.CommitStatusResponse(result=where.code, block_number=where.block)
        return bytes(answer.SerializeToString())


# --- refusals and answers -----------------------------------------------------------

_EVALUATED: Final = "evaluate call to endorser returned error: {}"
_SUBMITTED: Final[bytes] = pb.SubmitResponse().SerializeToString()


def _unknown(channel: str) -> str:
    return (
        f"failed to get config for channel [{channel}]: could not get last config for "
        f"channel {channel}"
    )


def _no_peers(proposal: Proposal, targets: Sequence[str]) -> Refusal:
    text = f"no peers available to evaluate chaincode {proposal.called} in channel "
    text += proposal.channel
    if proposal.transient and not targets:
        text = f"{_OWN.format('target')}{_PROTECT}: {text}"
    return Refusal(Status.FAILED_PRECONDITION, text)


def _no_metadata(proposal: Proposal) -> Refusal:
    text = f"No metadata was found for chaincode {proposal.called} in channel "
    text = f"{_UNPLANNED}{text}{proposal.channel}"
    if proposal.transient and proposal.called not in UNSIMULATED:
        text = _OWN.format("endorsing") + _PROTECT
    return Refusal(Status.FAILED_PRECONDITION, text)


def _no_endorsers(mspids: Sequence[str]) -> Refusal:
    text = f"failed to find any endorsing peers for org(s): {', '.join(mspids)}"
    return Refusal(Status.UNAVAILABLE, text)


def _no_plan(proposal: Proposal, named: Sequence[str], error: NotFound) -> Refusal:
    """Return the end of a call to chaincode that is not defined, or not installed."""
    if named:
        return _no_endorsers(named)
    if proposal.transient or "sequence" not in error.facts:
        return _no_metadata(proposal)
    text = "required chaincodes are not installed on sufficient peers"
    return Refusal(Status.FAILED_PRECONDITION, f"{_UNPLANNED}{text}")


def _unplanned(error: EndorsersMissing) -> Refusal:
    text = f"{_UNPLANNED}{error.message}"
    if error.protected:
        text = (
            "requires endorsement from organisation(s) that are not in the distribution "
            "policy of the private data collection(s): "
            f"[{' '.join(error.protected)}]; retry specifying trusted endorsing "
            "organizations to protect transient data"
        )
    return Refusal(Status.FAILED_PRECONDITION, text)


def _evaluated(response: Any) -> bytes:
    return bytes(pb.EvaluateResponse(result=response).SerializeToString())


def _prepared(proposal: Proposal, endorsed: Sequence[Any]) -> bytes:
    envelope = common_pb2.Envelope(payload=payload_of(proposal, endorsed))
    answer = pb.EndorseResponse(prepared_transaction=envelope)
    return bytes(answer.SerializeToString())
