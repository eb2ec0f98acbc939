"""What a log line holds, and what becomes of one that cannot be written."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import logging
import os
from typing import TYPE_CHECKING

import pytest
import structlog

from chaindock import telemetry
from chaindock.errors import InvalidInput
from chaindock.telemetry import logs
from chaindock.telemetry.logs import LEVELS, LogSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = "-----BEGIN PRIVATE KEY-----\nMIGH\n-----END PRIVATE KEY-----"


class Full(io.StringIO):
    full = True

    def write(self, text: str) -> int:
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(text)


@pytest.fixture(autouse=True)
def _configured_as_before() -> Iterator[None]:
    before = structlog.get_config()
    yield
    structlog.configure(**before)


def logged(*, json: bool = False, **facts: object) -> str:
    """Return what a line with these facts looks like."""
    stream = io.StringIO()
    telemetry.configure(stream=stream, json=json)
    telemetry.get_logger("test").error("it happened", **facts)
    return stream.getvalue()


def test_a_full_disk_fails_nobody_who_logs() -> None:
    stream = Full()
    telemetry.configure(stream=stream)
    telemetry.get_logger("test").info("lost")
    stream.full = False
    telemetry.get_logger("test").info("kept")
    assert "kept" in stream.getvalue()
    assert "lost" not in stream.getvalue()


@pytest.mark.parametrize("as_json", [False, True])
def test_a_trace_does_not_tell_what_the_variables_hold(as_json: bool) -> None:
    def fails(transient: dict[str, bytes]) -> None:
        raise ValueError(f"{len(transient)} values, {KEY}")

    with pytest.raises(ValueError, match="1 values") as caught:
        fails({"price": b"f" * 9})
    line = logged(json=as_json, exc_info=caught.value)
    assert "in fails" in line
    assert "ValueError: 1 values, [private key]" in line
    assert "f" * 9 not in line


@pytest.mark.parametrize("as_json", [False, True])
def test_secrets_are_scrubbed_wherever_they_are(as_json: bool) -> None:
    line = logged(json=as_json, token="t0p", inner={"password": "t0p", "x": [KEY]})
    assert "t0p" not in line
    assert "MIGH" not in line
    objects = [KEY.encode(), ValueError(KEY), {KEY}]
    line = logged(json=as_json, data=KEY.encode(), error=ValueError(KEY), more=objects)
    assert "MIGH" not in line
    assert line.count("[private key]") == 5


def test_what_chaincode_made_up_cannot_move_the_cursor() -> None:
    line = logged(ccid="a\x1b[2Jb\x9b31mc\rd", reason="x\ny")
    assert not {"\x1b", "\x9b", "\r"} & set(line)
    assert line.count("\n") == 1


def test_what_chaincode_made_up_is_cut() -> None:
    line = json.loads(logged(json=True, reason="begin" + "x" * 10_000_000 + "end"))
    assert len(line["reason"]) < 10_000
    assert line["reason"].startswith("begin")
    assert line["reason"].endswith("end")


@pytest.mark.parametrize(
    ("spec", "means"),
    [
        ("", "info"),
        ("debug", "debug"),
        ("WARNING", "warn"),
        ("debug:error", "error"),
        ("notice", "info"),
        ("critical", "error"),
        ("chaincode,endorser=debug:warn", "chaincode=debug:endorser=debug:warn"),
        ("info:a.b.=error:c=FATAL", "a.b.=error:c=fatal:info"),
    ],
)
def test_specification_is_read_as_fabric_reads_it(spec: str, means: str) -> None:
    assert str(LogSpec.parse(spec)) == means
    assert str(LogSpec.parse(means)) == means


@pytest.mark.parametrize(
    "spec",
    ["loud", "Info", "=debug", "a=b=c", "a=loud", "a b=info", ".a=info", "a,=info"],
)
def test_wrong_specification_changes_nothing_and_says_what_is_expected(
    spec: str,
) -> None:
    before = telemetry.active()
    with pytest.raises(InvalidInput, match="invalid logging specification") as caught:
        telemetry.activate(spec)
    assert "LOGGER" in (caught.value.hint or "")
    assert telemetry.active() == before


@pytest.mark.parametrize(
    ("component", "level"),
    [
        ("chaincode", "debug"),
        ("chaincode.handler", "debug"),
        ("chaincode.registry", "error"),
        ("chaincodes", "info"),
        ("endorser", "warning"),
        ("endorser.caller", "info"),
        ("docker.network", "debug"),
        ("custodian", "error"),
    ],
)
def test_most_exact_term_counts(component: str, level: str) -> None:
    spec = LogSpec.parse(
        "chaincode=debug:chaincode.registry=error:endorser.=warning:info:"
        "dockercontroller=debug:lifecycle=error"
    )
    assert spec.level_of(component) == LEVELS[level]


def test_levels_change_while_it_runs_and_lines_are_counted() -> None:
    stream = io.StringIO()
    telemetry.configure(stream=stream)
    checked, written = dict(logs.lines_checked), dict(logs.lines_written)
    log = telemetry.get_logger("docker")
    log.debug("first")
    telemetry.activate("info:dockercontroller=debug")
    log.debug("second")
    telemetry.get_logger("ledger").debug("third")
    telemetry.activate("error")
    log.warning("fourth")
    telemetry.activate("")
    assert "second" in stream.getvalue()
    assert not {"first", "third", "fourth"} & set(stream.getvalue().split())
    assert logs.lines_checked["debug"] - checked["debug"] == 3
    assert logs.lines_written["debug"] - written["debug"] == 1
    assert logs.lines_checked["warning"] - checked["warning"] == 1
    assert logs.lines_written["warning"] == written["warning"]


async def test_lines_of_a_task_carry_what_was_bound_where_it_began() -> None:
    stream = io.StringIO()
    telemetry.configure(stream=stream, json=True)

    async def work() -> None:
        telemetry.get_logger("process").info("works")

    with telemetry.bound(ccid="a:1", attempt="x"):
        task = asyncio.ensure_future(work())
    await task
    telemetry.get_logger("process").info("after")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert (first["ccid"], first["attempt"]) == ("a:1", "x")
    assert "attempt" not in second


@pytest.mark.parametrize("as_json", [False, True])
def test_lines_of_other_libraries_take_the_same_way(as_json: bool) -> None:
    stream = io.StringIO()
    telemetry.configure(stream=stream, json=as_json, spec="warning:asyncio=error")
    written = dict(logs.lines_written)
    with telemetry.bound(ccid="a:1"):
        logging.getLogger("aiohttp.server").warning("bad %s \x1b[2J", "request")
    logging.getLogger("aiohttp.server").info("chatter")
    logging.getLogger("asyncio").warning("slow")
    error = ValueError(KEY)
    logging.getLogger("asyncio").error("never retrieved", exc_info=error)
    text = stream.getvalue()
    assert "aiohttp.server" in text
    assert "bad request" in text
    assert "a:1" in text
    assert "ValueError: [private key]" in text
    assert not {"chatter", "slow", "\x1b"} & set(text.split())
    assert "\x1b" not in text
    assert logs.lines_written["error"] - written["error"] == 1
