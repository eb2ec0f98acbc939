"""What developers change of a running node: state, when blocks are cut, the time of calls."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final, cast

from chaindock.endorser.caller import Answer, Caller
from chaindock.endorser.cutting import AUTO, show_mode
from chaindock.endorser.edits import StateWriter, arguments
from chaindock.errors import Denied, InvalidInput, NotFound
from chaindock.identity.msp import SigningIdentity

_FIRST_S: Final = 0.0
_LAST_S: Final = datetime(9999, 12, 31, tzinfo=UTC).timestamp()
"""Later times are refused: JSON of protobuf and most languages end at the year 9999."""


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
        endorser = dataclasses.replace(
            self.caller.endorser, executor=cast("Any", StateWriter())
        )
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
            raise NotFound(
                f"there is no snapshot {name!r}; known: {', '.join(known) or 'none'}",
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

        The clock runs on from there, until the node stops.

        Returns: as `time`.
        Raises: InvalidInput: before 1970 or after 9999.
        """
        clock = self.caller.clock
        machine_s = clock.now_ns() / 1e9 - clock.offset_s
        offset_s = 0.0
        if at_s is not None:
            offset_s = at_s - machine_s
        elif advance_s is not None:
            offset_s = clock.offset_s + advance_s
        if not _FIRST_S <= machine_s + offset_s < _LAST_S:
            raise InvalidInput(
                "the time is before 1970 or after 9999",
                hint="go back to the machine's time: chaindock time reset",
            )
        clock.offset_s = offset_s
        return self.time()

    def warnings(self, channel: str = "") -> Iterator[str]:
        """Yield what a user may have forgotten; `channel`: not the node's first one."""
        orderer = self.caller.orderer
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
