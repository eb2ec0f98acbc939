"""CPU of the stream: `execute()` against a bare grpc.aio server, in the same run.

The chaincode is a process of its own that answers each TRANSACTION at once. Both sides
of the comparison handle the same two messages per call; only the CPU time of this
process counts. Run: `python tests/bench/bench_stream.py [calls]`; it ends with status 1
when the ratio is above the goal.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from fabric_protos.peer import chaincode_pb2, proposal_pb2, proposal_response_pb2
from fabric_protos.peer import chaincode_shim_pb2 as shim

sys.path.insert(0, str(Path(__file__).parent.parent))

from support.memory_state import MemorySimulator, MemoryState

from chaindock.chaincode.handler import Handler
from chaindock.chaincode.invocation import Invocation
from chaindock.chaincode.options import StreamOptions
from chaindock.chaincode.registry import Expected, HandlerRegistry
from chaindock.chaincode.server import ChaincodeListener, server_options
from chaindock.container.attempt import Attempt
from chaindock.ids import Ccid, ChannelId, TxId

GOAL = 2.0
CCID = Ccid("bench:" + "0" * 64)
Kind = shim.ChaincodeMessage
PROPOSAL = proposal_pb2.SignedProposal(proposal_bytes=b"p" * 900, signature=b"s" * 71)
INPUT = chaincode_pb2.ChaincodeInput(args=[b"noop"])


async def echo_process(address: str) -> None:
    """Be the chaincode: register, then answer every TRANSACTION with COMPLETED."""
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.stream_stream(
            "/protos.ChaincodeSupport/Register",
            request_serializer=Kind.SerializeToString,
            response_deserializer=Kind.FromString,
        )()
        name = chaincode_pb2.ChaincodeID(name=CCID).SerializeToString()
        await call.write(Kind(type=Kind.REGISTER, payload=name))
        done = proposal_response_pb2.Response(status=200).SerializeToString()
        while (message := await call.read()) is not grpc.aio.EOF:
            if message.type == Kind.TRANSACTION:
                answer = Kind(
                    type=Kind.COMPLETED,
                    payload=done,
                    txid=message.txid,
                    channel_id=message.channel_id,
                )
                await call.write(answer)


async def start_echo(address: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, __file__, "--echo", address
    )


def tx_ids(count: int) -> list[TxId]:
    return [TxId(f"{number:064x}") for number in range(count)]


class BareServer:
    """What a server costs that only reads and writes the same messages."""

    def __init__(self, calls: int, window: int) -> None:
        self._calls, self._window = calls, window
        self.result: asyncio.Future[dict[str, float]] = (
            asyncio.get_running_loop().create_future()
        )

    async def register(self, _messages: Any, context: Any) -> None:
        await context.read()
        payload = INPUT.SerializeToString()

        def transaction(tx_id: TxId) -> shim.ChaincodeMessage:
            return Kind(
                type=Kind.TRANSACTION,
                payload=payload,
                txid=tx_id,
                channel_id="dev",
                proposal=PROPOSAL,
            )

        ids = iter(tx_ids(self._calls))
        clock = Clock()
        for _ in range(self._window):
            await context.write(transaction(next(ids)))
        for _ in range(self._calls):
            await context.read()
            following = next(ids, None)
            if following is not None:
                await context.write(transaction(following))
        self.result.set_result(clock.read(self._calls))


async def bare(calls: int, window: int) -> dict[str, float]:
    service = BareServer(calls, window)
    server = grpc.aio.server(options=server_options(StreamOptions()))
    method = grpc.stream_stream_rpc_method_handler(
        service.register,
        request_deserializer=Kind.FromString,
        response_serializer=Kind.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                "protos.ChaincodeSupport", {"Register": method}
            ),
        )
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    process = await start_echo(f"127.0.0.1:{port}")
    try:
        return await service.result
    finally:
        await server.stop(None)
        await process.wait()


async def ours(calls: int, window: int) -> dict[str, float]:
    registry = HandlerRegistry()
    expected = Expected(CCID, Attempt(CCID))
    registry.expect(expected)
    simulator: Any = MemorySimulator(MemoryState())
    async with ChaincodeListener(registry) as listener:
        process = await start_echo(await listener.address_on("127.0.0.1"))
        handler: Handler = await expected.ready.wait()
        ids = iter(tx_ids(calls))

        async def client() -> None:
            for tx_id in ids:
                call = Invocation(
                    ChannelId("dev"), tx_id, "bench", INPUT, PROPOSAL, simulator
                )
                outcome = await handler.execute(call, 30.0)
                assert outcome.response.status == 200

        clock = Clock()
        async with asyncio.TaskGroup() as group:
            for _ in range(window):
                group.create_task(client())
        result = clock.read(calls)
    await process.wait()
    return result


class Clock:
    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self, calls: int) -> dict[str, float]:
        wall = time.perf_counter() - self._wall
        cpu = time.process_time() - self._cpu
        return {"calls_per_s": calls / wall, "cpu_us": cpu / calls * 1e6}


async def compare(calls: int, window: int, rounds: int) -> dict[str, Any]:
    """Alternate both sides and take the best of each: other load only adds."""
    pairs = [
        (await bare(calls, window), await ours(calls, window)) for _ in range(rounds)
    ]
    base = min((pair[0] for pair in pairs), key=lambda side: side["cpu_us"])
    own = min((pair[1] for pair in pairs), key=lambda side: side["cpu_us"])
    return {
        "in_flight": window,
        "bare": base,
        "execute": own,
        "ratio": own["cpu_us"] / base["cpu_us"],
    }


async def measure(calls: int = 20_000, rounds: int = 3) -> list[dict[str, Any]]:
    await compare(500, 1, 1)  # warm
    return [await compare(calls, window, rounds) for window in (1, 16, 100)]


def main() -> int:
    if sys.argv[1:2] == ["--echo"]:
        try:
            asyncio.run(echo_process(sys.argv[2]))
        except grpc.aio.AioRpcError:
            pass  # the server ended the stream: the run is over
        return 0
    calls = int(sys.argv[1]) if sys.argv[1:] else 20_000
    results = asyncio.run(measure(calls))
    for result in results:
        print(json.dumps(result))
    return int(max(result["ratio"] for result in results) > GOAL)


if __name__ == "__main__":
    sys.exit(main())
