"""Chaincode output in the node's log: marked, and bounded."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from chaindock import telemetry
from chaindock.container.attempt import Attempt
from chaindock.container.output import Echo
from chaindock.ids import Ccid
from chaindock.telemetry import logs
from support.eventually import eventually

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


async def test_a_line_tells_whose_it_is(log: io.StringIO) -> None:
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


async def test_at_debug_it_is_there_when_asked_for(log: io.StringIO) -> None:
    echo = Echo(CCID, "a1", "debug")
    echo.line("hidden", "stdout", None)
    telemetry.activate("info:peer.chaincode=debug")
    echo.line("shown", "stdout", None)
    telemetry.activate("info:peer.chaincode.other=debug")
    echo.line("hidden", "stdout", None)
    assert [one["line"] for one in lines(log)] == ["shown"]


async def test_a_flood_costs_the_log_little_and_is_owned_up_to(
    log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "EACH_S", 0.05)
    echo = Echo(CCID, "a1", "info")
    for _ in range(10_000):
        echo.line("x" * 5000, "stdout", None)
    written = lines(log)
    assert len(written) == 3000
    assert {len(one["line"]) for one in written} == {2000}
    await eventually(lambda: lines(log)[-1].get("lines") == 7000)
    assert lines(log)[-1]["ccid"] == CCID
