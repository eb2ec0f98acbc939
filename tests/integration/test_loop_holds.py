"""The event loop is held for at most 20 ms by what contracts and clients send."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from chaindock.errors import ChaindockError
from chaindock.identity.organization import Organization
from chaindock.node.serve import map_large_blocks
from support.holds import beating, watched
from support.shims.endorsing import EndorsingNode, ccid_of
from support.shims.hostile import ANSWERS, ATTACKS, LARGEST
from support.shims.large import WORK, WORK_JSON

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(300)]
TESTS = Path(__file__).parents[1]
MIB = 1024 * 1024
INDEX = "META-INF/statedb/couchdb/indexes/colours.json"
LONGEST_S = 0.02
ROUNDS = 20
"""Other programs make a round longer, also in time of the processor: they take the caches.
What the node does itself comes in each. The first round that is short enough is the last.
"""


@contextlib.asynccontextmanager
async def contract(node: EndorsingNode, name: str) -> AsyncIterator[None]:
    """A program of tests/support/shims, defined and registered under its name."""
    await node.define(name)
    expected = node.streams.expect(ccid_of(name))
    address = await node.streams.listener.address_on("127.0.0.1")
    words = [sys.executable, "-m", f"support.shims.{name}", address, ccid_of(name)]
    program = await asyncio.create_subprocess_exec(*words, cwd=TESTS)
    try:
        async with asyncio.timeout(20):
            await expected.ready.wait()
        yield
    finally:
        program.kill()
        await program.wait()


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[EndorsingNode]:
    map_large_blocks()  # as a node does
    org = Organization.open(tmp_path / "org", "Org1MSP", "org1.example.com")
    async with EndorsingNode(tmp_path, org, timeout_s=60) as found:
        yield found


async def longest(node: EndorsingNode, name: str, args: Any, *, submit: bool) -> Any:
    """Return the longest hold of the best round, in seconds, and what held."""
    call = node.caller.invoke if submit else node.caller.query
    found: list[tuple[float, str]] = []
    while len(found) < ROUNDS and not (found and found[-1][0] <= LONGEST_S):
        refused = [ChaindockError] if name == "hostile" else []
        with watched() as holds, contextlib.suppress(*refused):
            work = call(name, args, signer=node.org.user("User1"))
            answer = await asyncio.ensure_future(work)  # its first step is seen, too
            assert answer.status == 200, answer
        found.append((holds.cpu_s, holds.what))
        print(
            f"{args[0][:40]!r:45} {holds.wall_s * 1000:6.1f} {holds.cpu_s * 1000:6.1f} ms"
        )
    return min(found)


async def test_what_a_hostile_contract_sends_does_not_hold_the_loop(node):
    async with contract(node, "hostile"):
        for attack in (*ATTACKS, LARGEST, *ANSWERS):
            args = [attack.encode()]
            held_s, what = await longest(node, "hostile", args, submit=False)
            assert held_s <= LONGEST_S, (attack, what)


async def test_the_largest_transactions_do_not_hold_the_loop(node):
    async with contract(node, "large"):
        for work in WORK:
            submit = work.split()[0] in {"put", "delete", "answer"}
            held_s, what = await longest(node, "large", [work.encode()], submit=submit)
            assert held_s <= LONGEST_S, (work, what)


@pytest.mark.parametrize("more", [[bytes(40 * MIB)], [b"x"] * 30_000])
async def test_the_largest_arguments_do_not_hold_the_loop(node, more):
    async with contract(node, "large"):
        args = [b"get 1000 keys", *more]
        held_s, what = await longest(node, "large", args, submit=False)
        assert held_s <= LONGEST_S, what


async def test_documents_with_much_json_do_not_hold_the_loop(node):
    """Whichever thread parses them: C keeps the interpreter's lock while it does."""
    await node.ledger.put_indexes(
        "large", {INDEX: b'{"index":{"fields":["colour","n"]}}'}
    )
    async with contract(node, "large"):
        for work in WORK_JSON:
            call = node.caller.invoke if "put" in work else node.caller.query
            waits: list[float] = []
            while len(waits) < ROUNDS and not (waits and waits[-1] <= LONGEST_S):
                with beating() as found:
                    answer = await call(
                        "large", [work.encode()], signer=node.org.user("User1")
                    )
                assert answer.status == 200, answer
                waits.append(found.latest_s)
            print(f"{work!r:45}", *(f"{each * 1000:.1f} ms" for each in waits))
            assert min(waits) <= LONGEST_S, work
