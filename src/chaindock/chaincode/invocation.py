"""What a call of a chaincode is, what is open for it, and what came of it.

The texts of errors are complete: an endorser only puts `error in simulation: ` before.
Source: docs/fabric/shim-protocol.md#calls
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from fabric_protos.peer import (
    chaincode_event_pb2,
    chaincode_pb2,
    proposal_pb2,
    proposal_response_pb2,
)
from fabric_protos.peer import chaincode_shim_pb2 as shim
from google.protobuf.message import DecodeError

from chaindock.chaincode.wire import LARGE, LargeMessage, Message, why_unreadable
from chaindock.errors import (
    ChaincodeError,
    ChaindockError,
    InvalidInput,
    NotFound,
    StreamTerminated,
)
from chaindock.ids import ChannelId, TxId
from chaindock.ledger.budget import Budget, Held
from chaindock.ledger.queries import Results
from chaindock.ledger.simulator import Simulator

Nested = Callable[[], Awaitable[Any]]
"""Waits for the answer of another chaincode, a serialised message, or for a thread."""
Payload = bytes | Sequence[bytes]
"""Of a reply, as a whole or in pieces: so nothing large is copied on the event loop."""
Steps = Generator[Nested | None, Any, Payload]
"""Work that yields between two steps; it gets the outcome of each call that it yields."""

Kind: Final = shim.ChaincodeMessage
_FUNCTION_MAX: Final = 100
"""Bytes of a function's name that are shown."""
MAX_REFUSALS: Final = 10
_REFUSAL_MAX: Final = 300
"""Characters of one: names in it are the chaincode's."""
_TIMED: Final = 20
"""Requests of a kind whose times are kept one by one."""
ERROR_STATUS: Final = 400
"""From this status on the event of a transaction is dropped."""
MAX_QUERIES = 1000
"""Open queries of one call; the next one is refused. Shims close theirs."""
BATCH_RESULTS: Final = 100
"""Rows of one batch, as Fabric has it."""
BATCH_BYTES: Final = 1024 * 1024
"""A batch ends at this size: some shims take messages of 4 MiB only."""


class CollectionRules(Protocol):
    """Who may do what with collections: lifecycle.collections.Collections."""

    def require(self, collection: str, *, write: bool) -> bool:
        """Return whether the peer has the values of a collection.

        Raises: NotFound: no such collection. Denied: the client may not.
        """

    def require_known(self, collection: str) -> None:
        """Raises: NotFound: no such collection."""


@dataclass(slots=True)
class Invocation:
    """One call of a chaincode.

    Args:
        channel_id, tx_id: together the key of the transaction on a stream.
        namespace: name of the chaincode (not its ccid).
        input: arguments, decorations, is_init; sent as it is.
        signed_proposal: the client's; the chaincode gets exactly these bytes.
        nbytes: about the bytes of input and signed_proposal, never fewer.
        simulator: takes the reads and writes; its owner calls `done`.
        capability: the application capability of the channel, e.g. V2_5.
        is_init: send INIT instead of TRANSACTION.
        timeout_s: for this call; None = the configured execute timeout.
        refusals: what the node does not support of what the chaincode asked for; a
            contract may hide these errors from its caller.
        spent: kind of request → [how many, seconds of all, of each of the first few].
        caller: the call that waits for this one; None = a client's.
        invoke: calls the chaincode of this name on this channel ("" = that of the
            caller), for the given call; returns the message that answers, serialised.
            Raises what the ERROR reply is to say.
        collections: finds the collections of the chaincode, and records that.
        answer_held: what a large answer takes of the budget of the contract, until its
            caller is done with it.
    """

    channel_id: ChannelId
    tx_id: TxId
    namespace: str
    input: chaincode_pb2.ChaincodeInput
    signed_proposal: proposal_pb2.SignedProposal
    nbytes: int
    simulator: Simulator
    capability: str
    is_init: bool = False
    timeout_s: float | None = None
    refusals: list[str] = field(default_factory=list)
    spent: dict[str, list[float]] = field(default_factory=dict)
    caller: Call | None = None
    invoke: (
        Callable[[Call, str, str, chaincode_pb2.ChaincodeInput], Awaitable[bytes]]
        | None
    ) = None
    collections: Callable[[], CollectionRules] | None = None
    answer_held: Held | None = None
    _rules: CollectionRules | None = None

    def require(self, collection: str, *, write: bool = False) -> bool:
        """As `CollectionRules.require`. Raises: InvalidInput: in Init."""
        return self.rules().require(collection, write=write)

    def rules(self) -> CollectionRules:
        """Return the rules of the chaincode's collections. Raises: InvalidInput: in Init."""
        if self.is_init:
            raise InvalidInput("private data APIs are not allowed in chaincode Init()")
        if self._rules is None:
            if self.collections is None:
                raise NotFound(f"chaincode {self.namespace} has no collections")
            self._rules = self.collections()
        return self._rules

    def refuse(self, why: str) -> None:
        """Keep the text of a refusal, the first few of them, each once."""
        why = why[:_REFUSAL_MAX]
        if why not in self.refusals and len(self.refusals) < MAX_REFUSALS:
            self.refusals.append(why)

    def count(self, kind: str, spent_s: float) -> None:
        """Count an answered request."""
        known = self.spent.setdefault(kind, [0, 0.0])
        known[0] += 1
        known[1] += spent_s
        if len(known) < 2 + _TIMED:
            known.append(spent_s)

    @property
    def function(self) -> str:
        """The begin of the first argument as text; "" when there is none."""
        name: bytes = self.input.args[0] if self.input.args else b""
        return name[:_FUNCTION_MAX].decode(errors="replace")

    def message(self) -> Message:
        """Return the message that starts it."""
        kind = Kind.INIT if self.is_init else Kind.TRANSACTION
        if self.nbytes > LARGE:
            return LargeMessage(kind, self.tx_id, self.channel_id, self._content)
        return Kind(
            type=kind,
            payload=self.input.SerializeToString(),
            txid=self.tx_id,
            channel_id=self.channel_id,
            proposal=self.signed_proposal,
        )

    def _content(self) -> tuple[Sequence[bytes], bytes]:
        given = self.input.SerializeToString()
        return (given,), self.signed_proposal.SerializeToString()

    def lost_stream(self, reason: str, *, sent: bool = True) -> StreamTerminated:
        """Return the error: the stream ended; not `sent` = before the call was sent."""
        text = self.unsent("chaincode stream terminated")
        return StreamTerminated(text, tx_id=self.tx_id, reason=reason, sent=sent)

    def unsent(self, cause: str) -> str:
        """Return the text of an error that is no answer, as Fabric has it."""
        if self.caller is not None:
            return f"error sending: {cause}"
        return f"failed to execute transaction {self.tx_id}: error sending: {cause}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the chaincode answered."""

    response: proposal_response_pb2.Response
    """With any status."""
    event: chaincode_event_pb2.ChaincodeEvent | None
    """Name and payload as set by the chaincode, the rest filled in by the node; None
    for a status of 400 and more."""
    held: Held | None = None
    """As `Invocation.answer_held`, kept as long as the answer is."""
    nbytes: int = 0
    """About those of response, event, and endorsement if it has one; 0 if they are few."""


def outcome_of(final: shim.ChaincodeMessage, invocation: Invocation) -> Outcome:
    """Return what the COMPLETED or ERROR message says; that is changed by it.

    Raises: ChaincodeError for ERROR and for what cannot be decoded.
    """
    tx_id = invocation.tx_id
    if final.type != Kind.COMPLETED:
        text = final.payload.decode(errors="replace")
        raise ChaincodeError(f"transaction returned with failure: {text}", tx_id=tx_id)
    try:
        response = proposal_response_pb2.Response.FromString(final.payload)
    except DecodeError as error:
        raise ChaincodeError(
            f"failed to unmarshal response for transaction {tx_id}: "
            f"{why_unreadable(final.payload)}",
            tx_id=tx_id,
        ) from error
    event: chaincode_event_pb2.ChaincodeEvent | None = None
    if final.HasField("chaincode_event") and response.status < ERROR_STATUS:
        event = final.chaincode_event  # no copy: it may be large
        event.DiscardUnknownFields()
        event.chaincode_id, event.tx_id = invocation.namespace, tx_id
    held = invocation.answer_held
    return Outcome(response, event, held, held.nbytes if held else 0)


class Query:
    """One open query: its rows, cut into batches that every shim can take.

    A batch that announces more is never followed by an empty one.

    Args:
        rows: of the ledger; None when they are closed.
        limit: rows handed out in all; the rest is cut silently.
        budget: of the call; what was read ahead is taken from it.
    """

    __slots__ = ("_budget", "_left", "_pending", "_size", "held", "name", "rows")

    def __init__(self, rows: Results, limit: int, budget: Budget) -> None:
        self.name = str(uuid.uuid4())
        self.rows: Results | None = rows
        self._left, self._budget = limit, budget
        self._pending: deque[bytes] = deque()
        self._size = 0
        self.held = 0
        """Bytes that were read for the next batch, as the budget has them."""

    def advance(self) -> bool:
        """Work for some ms on the next batch; return whether `batch` need not wait."""
        rows = self.rows
        if not (rows is None or rows.exhausted or rows.advance()):
            return False
        if self._short and self.rows is not None:
            self._read(self.rows)
        return not self._short

    @property
    def _short(self) -> bool:
        """Whether more rows are to be read for the next batch."""
        # One row is kept for the batch after it, or that might be empty.
        read = len(self._pending)
        return self.rows is not None and (
            read < 2 or (read <= BATCH_RESULTS and self._size <= BATCH_BYTES)
        )

    def _read(self, rows: Results) -> None:
        most = min(BATCH_RESULTS + 1 - len(self._pending), self._left)
        found = rows.take(most, BATCH_BYTES)
        self._left -= len(found)
        self._pending += found
        self._size += sum(map(len, found))
        if not found or rows.exhausted or self._left <= 0:
            self.close()
        # Large rows may wait for others while queries of other calls are read, too.
        held = max(self.held, self._size - BATCH_BYTES)
        self._budget.take(held - self.held)
        self.held = held

    def batch(self) -> tuple[list[bytes], bool]:
        """Return the next rows, and whether there are more. Raises: BudgetExceeded."""
        while self._short and self.rows is not None:
            self._read(self.rows)
        pending = self._pending
        batch: list[bytes] = []
        size = 0
        while pending and len(batch) < BATCH_RESULTS:
            size += len(pending[0])
            if batch and size > BATCH_BYTES:
                break
            batch.append(pending.popleft())
        self._budget.give_back(self.held)
        self.held = 0
        self._budget.take(ahead := sum(map(len, pending)))
        self.held = self._size = ahead
        return batch, bool(pending)

    def close(self) -> None:
        """Release the rows that were not read. Idempotent."""
        if self.rows is not None:
            self.rows.close()
            self.rows = None


@dataclass(slots=True, eq=False)
class Call:
    """One call on a stream, until the chaincode has answered it.

    Attributes:
        since: when it came, in seconds of the epoch.
        final: the answer, or the error that its caller gets.
        budget: what the node may hold in memory for it.
        running: returns the calls that take all turns of its stream; None if the next
            turn comes by itself.
        queries: the open ones, by their ids.
        sent: the chaincode has got it; else it waits until others are answered.
        over: the outcome was told, or the caller has left.
        worker: carries out a request that takes more than one step.
        asked_bytes: of the payload of the request that is carried out.
        backlog: requests that came meanwhile.
        callee_awaited: the request waits for another chaincode.
        callee: the call that it has made, once that is on a stream.
    """

    invocation: Invocation
    timeout_s: float
    budget: Budget
    running: Callable[[], Sequence[Call] | None]
    since: float = field(default_factory=time.time)
    # An error is a result here: an abandoned future must not log it.
    final: asyncio.Future[shim.ChaincodeMessage | ChaindockError] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    timer: asyncio.TimerHandle | None = None
    queries: dict[str, Query] = field(default_factory=dict)
    sent: bool = False
    over: bool = False
    worker: asyncio.Task[None] | None = None
    asked_bytes: int = 0
    backlog: deque[tuple[shim.ChaincodeMessage, Any]] = field(default_factory=deque)
    callee_awaited: bool = False
    callee: Call | None = None
    key: tuple[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.key = (self.invocation.channel_id, self.invocation.tx_id)
        self.invocation.simulator.budget = self.budget

    def finish(self, final: shim.ChaincodeMessage | ChaindockError) -> None:
        """Tell the caller the outcome, and release the queries. The first one counts.

        A callee has no context from now on: the read-write set is put together next.
        """
        self.over = True
        if self.callee is not None:
            self.callee.finish(self.callee.invocation.lost_stream("the caller is over"))
        for name in tuple(self.queries):
            self.drop_query(name)
        if not self.final.done():
            self.final.set_result(final)

    def is_stuck(self) -> bool:
        """Whether its turn comes only after calls that wait for such a turn, too."""
        seen = {self}
        todo = [self]
        while todo:
            call = todo.pop()
            while call.callee is not None:
                call = call.callee
            running = None if call.sent else call.running()
            if running is None:
                return False
            new = [one for one in running if one not in seen]
            seen.update(new)
            todo += new
        return True

    def open_query(self, rows: Results, limit: int) -> Query:
        """Keep a new query of `rows`. Raises: InvalidInput beyond the limit."""
        if len(self.queries) >= MAX_QUERIES:
            rows.close()
            raise InvalidInput(
                f"transaction holds {MAX_QUERIES} open queries; close some of them"
            )
        query = Query(rows, limit, self.budget)
        self.queries[query.name] = query
        return query

    def drop_query(self, name: str) -> None:
        """Release a query, if there is one with this id."""
        if (query := self.queries.pop(name, None)) is not None:
            query.close()
            self.budget.give_back(query.held)
