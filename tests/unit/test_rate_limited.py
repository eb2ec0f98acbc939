"""Who causes lines without end costs the log a bounded amount."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from chaindock.telemetry import RateLimitedLog, get_logger, logs
from support.eventually import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator, MutableMapping
    from typing import Any

MISSING = "lines not logged: over the rate limit"
_log = get_logger("test")


@pytest.fixture
def lines() -> Iterator[list[MutableMapping[str, Any]]]:
    with capture_logs() as lines:
        yield lines


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> RateLimitedLog:
    monkeypatch.setattr(logs, "EACH_S", 0.05)
    return RateLimitedLog(_log)


def of(lines: list[MutableMapping[str, Any]], event: str) -> int:
    return sum(line["event"] == event for line in lines)


async def test_few_lines_are_all_there(lines: list[Any], short: RateLimitedLog):
    for number in range(logs.MOST):
        short.say("a", _log.info, "said", number=number)
    assert [line["number"] for line in lines] == list(range(logs.MOST))
    await eventually(lambda: not short._counts)
    assert of(lines, MISSING) == 0


async def test_of_many_lines_it_is_told_how_many_are_missing(
    lines: list[Any], short: RateLimitedLog
):
    for _ in range(logs.MOST + 1000):
        short.say("a", _log.info, "said")
    assert of(lines, "said") == logs.MOST
    await eventually(lambda: of(lines, MISSING))
    assert (lines[-1]["lines"], lines[-1]["about"]) == (1000, "a")


async def test_one_takes_nothing_from_another(lines: list[Any]):
    spares = RateLimitedLog(_log)
    for _ in range(1000):
        spares.say("greedy", _log.info, "said")
        spares.say(None, _log.info, "said")
    spares.say("modest", _log.info, "modestly")
    assert of(lines, "modestly") == 1
    assert of(lines, "said") == 2 * logs.MOST


async def test_after_a_while_it_is_told_again(lines: list[Any], short: RateLimitedLog):
    for _ in range(logs.MOST + 1):
        short.say("a", _log.info, "said")
    await eventually(lambda: of(lines, MISSING))
    short.say("a", _log.info, "again")
    assert of(lines, "again") == 1


async def test_names_without_end_share_one_bound(
    lines: list[Any], short: RateLimitedLog
):
    for number in range(1000):
        short.say(f"name {number}", _log.info, "said")
    assert len(short._counts) <= 101
    assert of(lines, "said") <= 100 + logs.MOST
    await eventually(lambda: of(lines, MISSING))
    told = next(line for line in lines if line["event"] == MISSING)
    assert told["about"] == "others"
