"""Parcels that must stay between two temperatures on their way.

The public methods of `ColdChain` are the transactions. Arguments arrive as text; the
contract API turns them into what the annotations say, and dataclasses into JSON.
"""

import json
import math
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from fabric_chaincode_python.fabric_contract_api import Contract, TransactionContext

INTACT = "intact"
BREACHED = "breached"

# Composite keys: holding/MSP/parcel finds what an organisation holds,
# reading/parcel/time/transaction lists readings in order of time.
HOLDING = "holding"
READING = "reading"


@dataclass
class Parcel:
    """Its temperature band in °C, and the organisation (MSP id) that has it."""

    id: str
    lowest: float
    highest: float
    custodian: str
    state: str


@dataclass
class Reading:
    """A temperature that the custodian measured."""

    celsius: float
    at: str
    by: str


class ColdChain(Contract):
    """The contract."""

    Name = "ColdChain"

    def get_evaluate_transactions(self) -> list[str]:
        """Name the transactions that only read."""
        return ["parcel", "readings", "holdings", "history"]

    async def register(
        self, ctx: TransactionContext, id: str, lowest: float, highest: float
    ) -> Parcel:
        """Put a new parcel into the hands of the caller's organisation."""
        if not id:
            raise ValueError("a parcel needs an id")
        if not (math.isfinite(lowest) and math.isfinite(highest) and lowest <= highest):
            raise ValueError(f"{lowest:g} to {highest:g} °C is no temperature band")
        if await ctx.get_stub().get_state(id):
            raise ValueError(f"parcel {id} is registered already")
        caller = ctx.get_client_identity().get_mspid()
        parcel = Parcel(id, lowest, highest, caller, INTACT)
        await _hold(ctx, parcel)
        return await _save(ctx, parcel)

    async def handover(self, ctx: TransactionContext, id: str, to: str) -> Parcel:
        """Give a parcel to another organisation; only its custodian can."""
        if not to:
            raise ValueError(f"parcel {id} needs a new custodian")
        parcel = await _in_hand(ctx, id)
        if to == parcel.custodian:
            raise ValueError(f"parcel {id} is with {to} already")
        stub = ctx.get_stub()
        before = stub.create_composite_key(HOLDING, [parcel.custodian, id])
        await stub.delete_state(before)
        parcel.custodian = to
        await _hold(ctx, parcel)
        return await _save(ctx, parcel)

    async def record(self, ctx: TransactionContext, id: str, celsius: float) -> Parcel:
        """Add a temperature reading; one outside the band breaches the parcel."""
        if not math.isfinite(celsius):
            raise ValueError(f"{celsius} is no temperature")
        parcel = await _in_hand(ctx, id)
        stub = ctx.get_stub()
        reading = Reading(celsius, _stamp(stub.get_tx_timestamp()), parcel.custodian)
        # A key of its own: two readings in one block do not invalidate each other,
        # because neither writes what the other has read.
        key = stub.create_composite_key(READING, [id, reading.at, stub.get_txid()])
        await stub.put_state(key, _encode(reading))

        fits = parcel.lowest <= celsius <= parcel.highest
        if fits or parcel.state == BREACHED:
            return parcel
        parcel.state = BREACHED
        # Shim 2.5.4 takes events and does not send them: the state must tell it too.
        notice = {"id": id, "celsius": celsius, "at": reading.at}
        stub.set_event("breach", json.dumps(notice))
        return await _save(ctx, parcel)

    async def parcel(self, ctx: TransactionContext, id: str) -> Parcel:
        """Return a parcel as it is now."""
        return await _load(ctx, id)

    async def readings(self, ctx: TransactionContext, id: str) -> list[Reading]:
        """Return all readings of a parcel, oldest first."""
        rows = await ctx.get_stub().get_state_by_partial_composite_key(READING, [id])
        return [Reading(**json.loads(row.value)) async for row in rows]

    async def holdings(self, ctx: TransactionContext, custodian: str) -> list[str]:
        """Return the ids of the parcels that an organisation holds."""
        stub = ctx.get_stub()
        rows = await stub.get_state_by_partial_composite_key(HOLDING, [custodian])
        return [stub.split_composite_key(row.key)[1][1] async for row in rows]

    async def history(self, ctx: TransactionContext, id: str) -> list[dict[str, Any]]:
        """Return every version of a parcel, newest first."""
        rows = await ctx.get_stub().get_history_for_key(id)
        return [
            {
                "tx": row.tx_id,
                "at": _stamp(row.timestamp),
                "parcel": json.loads(row.value),
            }
            async for row in rows
        ]


async def _load(ctx: TransactionContext, id: str) -> Parcel:
    value = await ctx.get_stub().get_state(id)
    if not value:
        raise LookupError(f"there is no parcel {id}")
    return Parcel(**json.loads(value))


async def _in_hand(ctx: TransactionContext, id: str) -> Parcel:
    """Return the parcel if the caller's organisation holds it."""
    parcel = await _load(ctx, id)
    caller = ctx.get_client_identity().get_mspid()
    if caller != parcel.custodian:
        raise PermissionError(f"parcel {id} is with {parcel.custodian}, not with {caller}")
    return parcel


async def _save(ctx: TransactionContext, parcel: Parcel) -> Parcel:
    await ctx.get_stub().put_state(parcel.id, _encode(parcel))
    return parcel


async def _hold(ctx: TransactionContext, parcel: Parcel) -> None:
    stub = ctx.get_stub()
    key = stub.create_composite_key(HOLDING, [parcel.custodian, parcel.id])
    # The key says it all, but an empty value would delete it.
    await stub.put_state(key, b"\x01")


def _encode(value: Parcel | Reading) -> bytes:
    return json.dumps(asdict(value)).encode()


def _stamp(timestamp) -> str:
    """Return the time as text, as wide for every time: keys are ordered by it."""
    moment = datetime.fromtimestamp(timestamp.seconds, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{timestamp.nanos // 1_000_000:03d}Z"
