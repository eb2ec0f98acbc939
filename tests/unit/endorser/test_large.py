"""Large read-write sets: never handled on the loop, and refused before they are signed."""

import threading
from functools import partial
from typing import Any

import pytest

from chaindock.endorser import caller, orderer
from chaindock.endorser.cutting import OrdererOptions
from chaindock.errors import InvalidInput
from chaindock.ledger import simulator


@pytest.fixture
def threads(monkeypatch: Any) -> Any:
    """The threads in which large things were done."""
    used: dict[str, Any] = {}
    for module, name in (
        (simulator, "marshal"),
        (caller, "assemble"),
        (orderer, "parse_and_check"),
    ):
        work = partial(noted, used, getattr(module, name))
        monkeypatch.setattr(module, name, work)
    return used


def noted(used: Any, work: Any, *args: Any) -> Any:
    used[work.__name__] = threading.current_thread()
    return work(*args)


async def test_a_large_transaction_is_serialised_and_parsed_off_the_loop(
    defined, threads
):
    """No other stream waits while the node works on what one contract wrote."""
    for size, off in ((10, False), (2_000_000, True)):
        done = await defined.caller.invoke(
            "basic", [b"put", b"k", b"v" * size], signer=defined.user
        )
        assert done.code == 0
        main = threading.main_thread()
        assert [used is not main for used in threads.values()] == [off] * 3


async def test_what_is_too_large_to_be_ordered_is_refused_before_it_is_put_together(
    defined, threads
):
    defined.endorser.options = OrdererOptions(absolute_max_bytes=20_000)
    threads.clear()
    with pytest.raises(InvalidInput, match="exceeds maximum allowed 20000 bytes"):
        await defined.caller.invoke(
            "basic", [b"put", b"k", b"v" * 20_000], signer=defined.user
        )
    assert threads == {}
