"""CPU and number of empty calls, beside a bare grpc.aio server.

The bare server writes the same TRANSACTION to the same chaincode process and reads the
same COMPLETED, and does nothing else. Only the CPU time of this process counts: the node
here, the bare server there.

Both speak the same transport: mutual TLS, as it is by default, or in plain.

A call is `ChaincodeSupport.execute`. A whole query is all that a user's query needs:
proposal, signature, all checks, simulation, call, answer. Its floor is a bare server that
also makes one signature and checks one for each call, as the protocol wants it.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest import mock

import grpc
import grpc.aio
import pytest
from fabric_protos.peer import chaincode_pb2
from fabric_protos.peer import chaincode_shim_pb2 as shim

from bench.calling_side import (
    CCID,
    CHANNEL,
    NAME,
    CallingSide,
    Trust,
    calling_side,
    chaincode,
    verify,
)
from bench.measure import Clock, in_turns, scratch
from bench.rows import Row, Skipped
from chaindock.chaincode import calls as chaincode_calls
from chaindock.chaincode.invocation import Invocation, outcome_of
from chaindock.endorser.checks import parse_proposal
from chaindock.ledger import simulator as ledger_simulator
from support.ledgers.proposals import new_proposal
from support.shims import credentials
from support.shims.builds import go_program

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from chaindock.identity.msp import Identity, SigningIdentity

GOAL, BUDGET_GOAL = 2.0, 1.03
CALLS, ROUNDS = 1000, 9
Kind = shim.ChaincodeMessage
ARGUMENTS = [b"status", b"200"]
Call = Callable[[], Awaitable[Any]]


class BareServer:
    """What a server costs that only reads and writes the same messages."""

    def __init__(self, client: SigningIdentity, key: Identity) -> None:
        signed = new_proposal(CHANNEL, NAME, ARGUMENTS, client)
        self._payload = chaincode_pb2.ChaincodeInput(args=ARGUMENTS).SerializeToString()
        self._proposal, self._number = signed, 0
        self._client, self._key = client, key
        self._stream: Any = None
        self._ready = asyncio.Event()
        self._over = asyncio.Event()

    async def register(self, _messages: Any, stream: Any) -> None:
        await stream.read()
        await stream.write(Kind(type=Kind.REGISTERED))
        await stream.write(Kind(type=Kind.READY))
        self._stream = stream
        self._ready.set()
        await self._over.wait()

    def _transaction(self) -> shim.ChaincodeMessage:
        self._number += 1
        return Kind(
            type=Kind.TRANSACTION,
            payload=self._payload,
            txid=f"{self._number:064x}",
            channel_id=CHANNEL,
            proposal=self._proposal,
        )

    async def signed_calls(self, count: int, in_flight: int) -> None:
        """Make calls, with one signature made and one checked for each."""
        await self.calls(count, in_flight, self._sign_and_verify)

    def _sign_and_verify(self) -> None:
        data = self._proposal.proposal_bytes
        verify(self._key, data, self._client.sign(data))

    async def calls(
        self, count: int, in_flight: int, beside: Callable[[], None] = lambda: None
    ) -> None:
        """Make `count` calls, `in_flight` at a time."""
        await self._ready.wait()
        stream = self._stream
        for _ in range(in_flight):
            await stream.write(self._transaction())
        for number in range(count):
            await stream.read()
            beside()
            if number < count - in_flight:
                await stream.write(self._transaction())

    async def serve(self, trust: Trust | None) -> tuple[grpc.aio.Server, str]:
        server = grpc.aio.server()
        method = grpc.stream_stream_rpc_method_handler(
            self.register,
            request_deserializer=Kind.FromString,
            response_serializer=Kind.SerializeToString,
        )
        service = grpc.method_handlers_generic_handler(
            "protos.ChaincodeSupport", {"Register": method}
        )
        server.add_generic_rpc_handlers((service,))
        if trust is None:
            port = server.add_insecure_port("127.0.0.1:0")
        else:
            own = trust.authority.issue_server("127.0.0.1")
            port = server.add_secure_port(
                "127.0.0.1:0", credentials.server(trust.authority, own)
            )
        await server.start()
        return server, f"127.0.0.1:{port}"

    def leave(self) -> None:
        self._over.set()


async def many(call: Call, count: int, in_flight: int) -> None:
    """Make `count` calls, `in_flight` at a time."""
    numbers = iter(range(count))

    async def client() -> None:
        for _ in numbers:
            await call()

    async with asyncio.TaskGroup() as group:
        for _ in range(in_flight):
            _ = group.create_task(client())


class Uncounted:
    """Stands in for `Budget`, and counts nothing."""

    limit = held = 0

    def __init__(self, *_: object) -> None:
        pass

    def take(self, nbytes: int) -> None:
        pass

    def give_back(self, nbytes: int | None = None) -> None:
        pass


async def uncounted(call: Call, count: int, in_flight: int) -> None:
    """Make calls as `many` does, but hold them to no budget."""
    with (
        mock.patch.object(chaincode_calls, "Budget", Uncounted),
        mock.patch.object(ledger_simulator, "Budget", Uncounted),
    ):
        await many(call, count, in_flight)


class Pace:
    """Measures one side again and again; keeps its calls per second."""

    def __init__(self, calls: Callable[[int, int], Awaitable[None]], at_once: int):
        self._calls, self._at_once = calls, at_once
        self.per_s: list[float] = []

    async def cpu_us(self) -> float:
        clock = Clock()
        await self._calls(CALLS, self._at_once)
        cpu, wall = clock.cpu_s, clock.wall_s
        self.per_s.append(CALLS / wall)
        return cpu / CALLS * 1e6


async def compare(
    side: CallingSide, bare: BareServer, who: str, at_once: Sequence[int]
) -> AsyncIterator[Row]:
    signed = new_proposal(CHANNEL, NAME, ARGUMENTS, side.client)
    proposal = parse_proposal(signed)
    numbers = iter(range(10**9))

    async def execute() -> None:
        tx_id: Any = f"{next(numbers):064x}"
        simulator = side.ledger.new_simulator(tx_id)
        about = proposal.input, signed, proposal.nbytes, simulator, "V2_5"
        call = Invocation(CHANNEL, tx_id, NAME, *about)
        outcome = outcome_of(await side.support.execute(CCID, call), call)
        simulator.done()
        assert outcome.response.status == 200

    async def query() -> None:
        answer = await side.caller.query(NAME, ARGUMENTS, signer=side.client)
        assert answer.status == 200

    for in_flight in at_once:
        paces = [
            Pace(partial(many, execute), in_flight),
            Pace(bare.calls, in_flight),
            Pace(partial(many, query), in_flight),
            Pace(bare.signed_calls, in_flight),
        ]
        for pace in paces:  # warm
            await pace.cpu_us()
            pace.per_s.clear()
        # Other load only adds to CPU time, through cold caches: the least counts.
        cpu = await in_turns(ROUNDS, *(pace.cpu_us for pace in paces), pick=min)
        speed = [statistics.median(pace.per_s) for pace in paces]
        counting = paces[0], Pace(partial(uncounted, execute), in_flight)
        cost = await in_turns(ROUNDS, *(one.cpu_us for one in counting), pick=min)
        at, plain = f"{in_flight} at once", f"bare grpc.aio, {who}"
        signing = "the same and ECDSA"
        yield Row(f"CPU of a call, {at}", cpu[0], "µs", cpu[1], plain, most=GOAL)
        yield Row(
            f"CPU of a call, {at}",
            cost[0],
            "µs",
            cost[1],
            "the same, nothing counted",
            most=BUDGET_GOAL,
        )
        yield Row(f"calls, {at}", speed[0], "/s", speed[1], plain)
        yield Row(
            f"CPU of a whole query, {at}", cpu[2], "µs", cpu[3], signing, most=GOAL
        )
        yield Row(f"CPU of a whole query, {at}", cpu[2], "µs", cpu[1], plain)
        yield Row(f"whole queries, {at}", speed[2], "/s", speed[3], signing)


async def with_chaincode(
    folder: Path,
    argv: Sequence[str] | None,
    who: str,
    at_once: Sequence[int],
    *,
    tls: bool = True,
) -> AsyncIterator[Row]:
    trust = Trust(folder) if tls else None
    async with calling_side(folder, argv, trust) as side:
        identity = side.caller.endorser.configuration.msps.identify(side.client.creator)
        bare = BareServer(side.client, identity)
        server, address = await bare.serve(trust)
        words = argv and [word.format(address=address) for word in argv]
        try:
            async with chaincode(address, words, trust):
                async for row in compare(side, bare, who, at_once):
                    yield row
                bare.leave()
        finally:
            await server.stop(None)


async def run() -> AsyncIterator[Row | Skipped]:
    with scratch() as folder:
        for name, tls in (("TLS", True), ("in plain", False)):
            async for row in with_chaincode(
                folder / name, None, f"bare chaincode, {name}", (1, 16), tls=tls
            ):
                yield row
        try:
            program = go_program()
        except pytest.skip.Exception as missing:
            yield Skipped("calls of a Go chaincode", str(missing))
            return
        argv = (str(program), "-peer.address={address}")
        async for row in with_chaincode(folder / "go", argv, "Go shim, TLS", (16,)):
            yield row
