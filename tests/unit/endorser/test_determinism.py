"""Contracts whose results differ from run to run."""

import asyncio
import itertools
from contextlib import asynccontextmanager
from typing import Any

import pytest

from chaindock.endorser import caller as calls
from chaindock.endorser.caller import RUNS, compare
from chaindock.errors import TransactionInvalid


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(calls, "PAUSE_S", 0.01)


def runs(node: Any, *args: bytes) -> Any:
    return compare(node.caller, "basic", args, node.user, transient=None, is_init=False)


async def test_the_same_results_have_no_difference(defined):
    height = defined.ledger.height
    assert await runs(defined, b"put", b"k", b"v") == []
    assert await runs(defined, b"copy", b"absent", b"k") == []
    assert len(defined.chaincode.seen) == 2 * RUNS
    assert len({one.tx_id for _, one in defined.chaincode.seen[:RUNS]}) == 1
    assert defined.ledger.height == height


async def test_what_differs_is_named_with_its_values(defined, monkeypatch):
    count = itertools.count()
    plain = defined.chaincode.put

    def put(invocation: Any, key: Any, value: Any) -> Any:
        number = next(count)
        if number % 2:
            invocation.simulator.get_state("basic", "sometimes")
        return plain(invocation, key, f"{value}{number}")

    monkeypatch.setattr(defined.chaincode, "put", put)
    found = {one.what: one for one in await runs(defined, b"put", b"k", b"v")}
    assert list(found) == ["read", "response", "write"]
    assert (found["response"].key, found["response"].values[0]) == (b"payload", b"v0")
    assert (found["write"].namespace, found["write"].key) == ("basic", b"k")
    assert found["write"].values == [b"v0", b"v1", b"v2", b"v3", b"v4"]
    assert (found["read"].key, found["read"].values) == (b"sometimes", [None, b"None"])


async def test_errors_are_compared_too(defined):
    assert await runs(defined, b"status", b"500", b"no") == []


async def test_a_block_in_between_makes_the_runs_worthless(defined, monkeypatch):
    monkeypatch.setattr(calls, "PAUSE_S", 0.1)
    call = asyncio.ensure_future(runs(defined, b"get", b"k"))
    await defined.caller.invoke("basic", [b"put", b"k", b"v"], signer=defined.user)
    with pytest.raises(TransactionInvalid, match="a block was committed"):
        await call


async def test_what_differs_elsewhere_is_found_by_one_more_run(defined, monkeypatch):
    zone = ["UTC"]
    plain = defined.chaincode.put

    @asynccontextmanager
    async def elsewhere() -> Any:
        zone.append("+14")
        yield
        zone.pop()

    def put(invocation: Any, key: Any, value: Any) -> Any:
        return plain(invocation, key, zone[-1])

    monkeypatch.setattr(defined.chaincode, "put", put)
    args = (defined.caller, "basic", (b"put", b"k", b"v"), defined.user)
    (_, found) = await compare(*args, elsewhere=elsewhere)
    assert (found.what, found.values) == ("write", [b"UTC", b"+14"])
    assert zone == ["UTC"]
