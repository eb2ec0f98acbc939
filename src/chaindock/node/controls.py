"""What developers change of a running node: state, when blocks are cut, the time of calls.

A transaction that changes the state by hand is admitted, endorsed, ordered and validated
as a call of its chaincode would be; only the program does not run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final, cast

from fabric_protos.peer import chaincode_shim_pb2, proposal_pb2, proposal_response_pb2

from chaindock.chaincode.invocation import Invocation, Kind
from chaindock.endorser.caller import Answer, Caller
from chaindock.endorser.cutting import AUTO, show_mode
from chaindock.errors import Denied, InvalidInput, NotFound
from chaindock.identity.msp import SigningIdentity
from chaindock.ledger.queries import encode_key

FUNCTION: Final = b"chaindock.state.write"
"""What the transaction shows as its function; keys and values follow in turn."""
PRIVATE: Final = b"chaindock.state.writePrivate"
"""The same for a collection, which follows; keys and values are transient."""
_LAST_S: Final = datetime(9999, 12, 31, tzinfo=UTC).timestamp()
"""Later times are refused: JSON of protobuf and most languages end at the year 9999."""


def arguments(
    writes: Iterable[tuple[str, bytes]], collection: str = ""
) -> tuple[list[bytes], dict[str, bytes]]:
    """Return arguments and transient values of a call that writes keys; b"" deletes.

    Raises: InvalidInput: no key, an empty one, or one that is not valid Unicode.
    """
    rows = list(writes)
    for key, _ in rows:
        if not encode_key(key):
            raise InvalidInput("a key is empty: expected text")
    if not rows:
        raise InvalidInput("there is nothing to write: expected keys and values")
    if collection:
        return [PRIVATE, collection.encode()], dict(rows)
    return [FUNCTION, *(part for key, one in rows for part in (key.encode(), one))], {}


class StateWriter:
    """Takes the place of the chaincode for calls made of `arguments`."""

    def process_of(self, _mspid: str) -> str:
        """Say that it writes the same for the peers of all organisations."""
        return ""

    async def execute(
        self, _ccid: Any, invocation: Invocation, _mspid: str
    ) -> chaincode_shim_pb2.ChaincodeMessage:
        """Write what the arguments say into the namespace that is called."""
        function, *rest = invocation.input.args
        ns, simulator = invocation.namespace, invocation.simulator
        if function == PRIVATE:
            collection = rest[0].decode()
            invocation.require(collection, write=True)
            data = invocation.signed_proposal.proposal_bytes
            payload = proposal_pb2.Proposal.FromString(data).payload
            hidden = proposal_pb2.ChaincodeProposalPayload.FromString(payload)
            for key, value in sorted(hidden.TransientMap.items()):
                simulator.put_private(ns, collection, key, value)
        else:
            for key, value in zip(rest[::2], rest[1::2], strict=True):
                simulator.put_state(ns, key.decode(), value)
        response = proposal_response_pb2.Response(status=200)
        return chaincode_shim_pb2.ChaincodeMessage(
            type=Kind.COMPLETED, payload=response.SerializeToString()
        )


@dataclass(frozen=True)
class Controls:
    """Changes the channel of `caller`."""

    caller: Caller
    """Of the node; its clock is the one that is set."""
    admins: Callable[[str | None], Sequence[SigningIdentity]]
    """As `Members.admins`; the first one that may change what a user changes signs."""

    async def write(
        self,
        name: str,
        writes: Iterable[tuple[str, bytes]],
        collection: str = "",
        org: str | None = None,
    ) -> Answer:
        """Write keys of the chaincode `name` in one transaction; b"" deletes a key.

        `collection`: "" = the public state. `org`: whose admin signs.

        Check `code` of the answer: 0 = the writes took effect.

        Raises: InvalidInput; NotFound: the organisation; what `Caller.invoke` raises.
        """
        endorser = replace(self.caller.endorser, executor=cast("Any", StateWriter()))
        caller = replace(self.caller, endorser=endorser)
        args, transient = arguments(writes, collection)
        admins = self.admins(org)
        *others, last = admins if collection else admins[:1]
        for admin in others:  # a collection may be written by its members alone
            with suppress(Denied):
                return await caller.invoke(
                    name, args, signer=admin, transient=transient
                )
        return await caller.invoke(name, args, signer=last, transient=transient)

    async def revert(self, name: str) -> dict[str, Any]:
        """Go back to a snapshot, "" = the newest; return it and {"removed": blocks}.

        Raises: NotFound. InvalidInput: chaincode was deployed since.
        """
        ledger = self.caller.endorser.ledger
        known = {mark.name: mark for mark in await ledger.snapshots()}
        if name not in known and (name or not known):
            asked, others = f" {name!r}" if name else "", ", ".join(known) or "none"
            raise NotFound(
                f"there is no snapshot{asked}; known: {others}",
                hint="take one: chaindock snapshot NAME",
            )
        height = ledger.height
        mark = await self.caller.orderer.revert(name or [*known][-1])
        return {**vars(mark), "removed": height - mark.height}

    def time(self) -> dict[str, Any]:
        """Return {"now", "offset_s"} of the clock that calls of the node have."""
        now_s = self.caller.clock.now_ns() / 1e9
        return {
            "now": datetime.fromtimestamp(now_s, UTC).isoformat(
                timespec="milliseconds"
            ),
            "offset_s": self.caller.clock.offset_s,
        }

    def set_time(
        self, *, at_s: float | None, advance_s: float | None
    ) -> dict[str, Any]:
        """Set the clock to `at_s` seconds since 1970, or move it; neither: reset it.

        The clock runs on from there, until the node stops. Returns what `time` does.

        Raises: InvalidInput: before 1970 or after 9999.
        """
        clock = self.caller.clock
        machine_s = clock.now_ns() / 1e9 - clock.offset_s
        offset_s = 0.0
        if at_s is not None:
            offset_s = at_s - machine_s
        elif advance_s is not None:
            offset_s = clock.offset_s + advance_s
        if not 0 <= machine_s + offset_s < _LAST_S:
            raise InvalidInput(
                "the time is before 1970 or after 9999",
                hint="go back to the machine's time: chaindock time reset",
            )
        clock.offset_s = offset_s
        return self.time()

    def warnings(self, channel: str = "") -> Iterator[str]:
        """Yield what a user may have forgotten; `channel`: not the node's first one."""
        orderer = self.caller.orderer
        if (damage := self.caller.endorser.ledger.damage) is not None:
            yield f"{damage.message}; {damage.hint}"
        if orderer.mode != AUTO and orderer.waiting:
            one = orderer.waiting == 1
            what = (
                "1 transaction waits" if one else f"{orderer.waiting} transactions wait"
            )
            where, option = f"channel {channel}: ", f" --channel {channel}"
            yield (
                f"{where if channel else ''}{what} for {'its' if one else 'their'} block (mode "
                f"{show_mode(orderer.mode)}); cut it: chaindock block cut"
                f"{option if channel else ''}"
            )
        if self.caller.clock.offset_s and not channel:  # it is the node's clock
            yield (
                f"the time of calls is {self.time()['now']}; back to the machine's: "
                "chaindock time reset"
            )
