"""A line is marked with a transaction only when that is certain enough."""

from __future__ import annotations

import time

import pytest

from chaindock.chaincode import correlator
from chaindock.chaincode.correlator import MOST, OutputCorrelator
from chaindock.ids import TxId

A, B = TxId("a" * 64), TxId("b" * 64)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_the_only_one_under_way_has_written_it() -> None:
    found = OutputCorrelator()
    assert found.transaction_of("before") is None
    found.began(A)
    assert found.transaction_of("during") == A


def test_of_two_the_one_that_the_line_names() -> None:
    found = OutputCorrelator()
    found.began(A)
    found.began(B)
    assert found.transaction_of("whose is it?") is None
    assert found.transaction_of(f"[{B[:8]}] done") == B
    assert found.transaction_of(f"{A} and {B}") is None


def test_the_last_lines_may_come_after_the_answer(clock: list[float]) -> None:
    found = OutputCorrelator()
    found.began(A)
    found.ended(A)
    assert found.transaction_of("late") == A
    clock[0] += correlator.LATE_S + 0.01
    assert found.transaction_of("much later") is None


def test_a_line_is_not_given_to_the_next_one(clock: list[float]) -> None:
    found = OutputCorrelator()
    found.began(A)
    found.ended(A)
    found.began(B)
    assert found.transaction_of("of A, or of B") is None
    assert found.transaction_of(f"of {A[:8]}") == A
    clock[0] += correlator.LATE_S + 0.01
    assert found.transaction_of("of B") == B


def test_what_it_wrote_as_it_died_is_marked(clock: list[float]) -> None:
    found = OutputCorrelator()
    found.began(A)
    found.close()
    clock[0] += 60
    assert found.transaction_of("panic: nil map") == A


def test_an_answer_to_nothing_marks_nothing() -> None:
    found = OutputCorrelator()
    found.ended(A)
    assert found.transaction_of("line") is None


def test_very_many_at_once_are_not_looked_through() -> None:
    found = OutputCorrelator()
    ids = [TxId(f"{number:08x}" + "0" * 56) for number in range(MOST + 1)]
    for one in ids:
        found.began(one)
    assert found.transaction_of(ids[0]) is None
    found.close()
    assert found.transaction_of(ids[0]) == ids[0]


def test_a_transaction_may_run_twice_on_one_stream(clock: list[float]) -> None:
    """A chaincode that calls itself on another channel."""
    found = OutputCorrelator()
    found.began(A)
    found.began(A)
    found.ended(A)
    clock[0] += 1
    assert found.transaction_of("of the caller") == A
    found.ended(A)
    clock[0] += 1
    assert found.transaction_of("of nobody") is None
