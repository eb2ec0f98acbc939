"""Chaincode output in the node's log: marked, and bounded."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from chaindock import telemetry
from chaindock.container.attempt import Attempt
from chaindock.container.output import LINES_PER_S, WINDOW_S, Echo
from chaindock.ids import Ccid

if TYPE_CHECKING:
    from collections.abc import Iterator

CCID = Ccid("parcels_1.0+b:" + "c" * 64)


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    before, spec = structlog.get_config(), telemetry.active()
    stream = io.StringIO()
    telemetry.configure(stream=stream, json=True)
    yield stream
    structlog.configure(**before)
    telemetry.activate(spec)


def lines(log: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.getvalue().splitlines()]


def test_a_line_tells_whose_it_is(log: io.StringIO) -> None:
    attempt = Attempt(CCID)
    attempt.echo = Echo(CCID, attempt.id, "info")
    attempt.tx_of = lambda line: "f00d" if "tx" in line else None
    attempt.output("compiling", "build")
    attempt.output("in tx", "stderr")
    attempt.output("idle", "stdout")
    first, second = lines(log)
    assert first["component"] == "peer.chaincode.parcels_1.0_b"
    assert first["ccid"] == CCID
    assert first["attempt"] == attempt.id
    assert (first["stream"], first["tx"], first["line"]) == ("stderr", "f00d", "in tx")
    assert "tx" not in second


def test_at_debug_it_is_there_when_asked_for(log: io.StringIO) -> None:
    echo = Echo(CCID, "a1", "debug")
    echo.line("hidden", "stdout", None)
    telemetry.activate("info:peer.chaincode=debug")
    echo.line("shown", "stdout", None)
    telemetry.activate("info:peer.chaincode.other=debug")
    echo.line("hidden", "stdout", None)
    assert [one["line"] for one in lines(log)] == ["shown"]


def test_a_gigabyte_costs_the_log_little_and_is_owned_up_to(log: io.StringIO) -> None:
    now = [0.0]
    echo = Echo(CCID, "a1", "info", lambda: now[0])
    count = 200_000
    for _ in range(count):  # over 200 s
        now[0] += 0.001
        echo.line("x" * 5000, "stdout", None)
    echo.close()
    written = lines(log)
    said = [one for one in written if one["event"] == "chaincode output"]
    missing = [one["lines"] for one in written if "lines" in one]
    assert len(said) + sum(missing) == count
    assert len(missing) < 50
    assert len(log.getvalue()) < (WINDOW_S + 200) * 2 * 16 * 1024


def test_a_quiet_chaincode_loses_nothing(log: io.StringIO) -> None:
    now = [0.0]
    echo = Echo(CCID, "a1", "info", lambda: now[0])
    for _ in range(1000):
        now[0] += 1 / LINES_PER_S
        echo.line("short", "stdout", None)
    echo.close()
    assert len(lines(log)) == 1000
