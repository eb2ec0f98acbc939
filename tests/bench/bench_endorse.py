"""CPU of a query and of a transaction inside the node, beside bare ECDSA.

Run: python tests/bench/bench_endorse.py [seconds per measurement]

The chaincode is a function that answers at once: what is measured is proposals, checks,
simulation, endorsement, and for transactions order, validation and commit.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fabric_protos.peer import proposal_response_pb2
from fabric_protos.peer.lifecycle import lifecycle_pb2

from chaindock.chaincode.invocation import Outcome
from chaindock.endorser.caller import Caller, DefinitionWriter
from chaindock.endorser.endorser import Endorser
from chaindock.endorser.genesis import genesis_envelope
from chaindock.endorser.orderer import Orderer, OrdererOptions
from chaindock.endorser.proposals import new_proposal
from chaindock.endorser.transactions import TransactionChecks
from chaindock.identity.organization import Organization
from chaindock.ids import Ccid, ChannelId
from chaindock.ledger import Ledger
from chaindock.lifecycle.contract import LifecycleContract
from chaindock.lifecycle.definitions import Approval, Definitions

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

CHANNEL = ChannelId("mychannel")
CCID = Ccid("basic:" + "a" * 64)
APPROVAL = Approval("basic", 1, "1.0", CCID)


class Approvals:
    """One chaincode."""

    def approval(self, name: str, sequence: int) -> Approval:
        return APPROVAL

    def is_stopped(self, name: str) -> bool:
        return False


class Echo:
    """Reads or writes one key and answers."""

    async def execute(self, ccid: Ccid, invocation: Any) -> Outcome:
        _, key, *value = invocation.input.args
        simulator = invocation.simulator
        if value:
            simulator.put_state("basic", key.decode(), value[0])
        else:
            simulator.get_state("basic", key.decode())
        return Outcome(proposal_response_pb2.Response(status=200, payload=b"ok"), None)


async def cpu_us(work: Callable[[int], Awaitable[Any]], seconds: float) -> float:
    """CPU of this process per call, all threads, in microseconds."""
    for n in range(50):
        await work(n)
    calls, begin, end = 0, time.process_time(), time.monotonic() + seconds
    while time.monotonic() < end:
        await work(calls)
        calls += 1
    return (time.process_time() - begin) / calls * 1e6


async def main(seconds: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        org = Organization.open(Path(folder), "Org1MSP", "org1.example.com")
        approvals, options = Approvals(), OrdererOptions()
        opened = Ledger.open(
            Path(folder) / "ledger.db",
            CHANNEL,
            org.orderer,
            lambda: genesis_envelope(CHANNEL, org.msp, options),
        )
        async with opened as ledger:
            endorser = Endorser(
                msp=org.msp,
                signer=org.peer,
                ledger=ledger,
                definitions=Definitions(approvals),
                executor=Echo(),
                system={"_lifecycle": LifecycleContract(approvals, "Org1MSP")},
            )
            checks = TransactionChecks(CHANNEL, org.msp)
            async with Orderer(ledger, checks, options) as orderer:
                caller = Caller(CHANNEL, endorser, orderer)
                await DefinitionWriter(caller, ledger, org.admin).commit(
                    lifecycle_pb2.CommitChaincodeDefinitionArgs(
                        name="basic", sequence=1, version="1.0"
                    )
                )
                print(json.dumps(await measure(org, endorser, caller, seconds)))


async def measure(
    org: Organization, endorser: Endorser, caller: Caller, seconds: float
) -> dict[str, float]:
    user = org.user("User1")
    message = b"m" * 1200
    signature = user.sign(message)
    identity = org.msp.identify(user.creator)
    batch = 100

    async def sign(_: int) -> None:
        user.sign(message)

    async def verify(_: int) -> None:
        identity.verify(message, signature)

    async def build(_: int) -> None:
        new_proposal(CHANNEL, "basic", [b"get", b"k"], user)

    async def query(_: int) -> None:
        await caller.query("basic", [b"get", b"k"], signer=user)

    async def invoke(n: int) -> None:
        await asyncio.gather(
            *(
                caller.invoke(
                    "basic", [b"put", b"k%d" % (n * batch + i), b"v"], signer=user
                )
                for i in range(batch)
            )
        )

    found = {
        "sign_us": await cpu_us(sign, seconds),
        "verify_us": await cpu_us(verify, seconds),
        "build_proposal_us": await cpu_us(build, seconds),
        "query_us": await cpu_us(query, seconds),
    }
    begin, count = time.process_time(), 10
    for n in range(count):
        await invoke(n)
    found["invoke_us"] = (time.process_time() - begin) / (count * batch) * 1e6
    # A query signs twice (client, peer) and verifies once.
    found["query_ecdsa_us"] = 2 * found["sign_us"] + found["verify_us"]
    found["query_other_us"] = found["query_us"] - found["query_ecdsa_us"]
    # A transaction signs three times and verifies three times.
    found["invoke_ecdsa_us"] = 3 * (found["sign_us"] + found["verify_us"])
    return {name: round(value, 1) for name, value in found.items()}


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]) if len(sys.argv) > 1 else 1.0))
