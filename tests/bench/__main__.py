"""Benchmarks: what we cost, beside what the same work costs without us.

Usage: python -m tests.bench [--json FILE] [NAME…]

Without names, all of them. The status is 1 when a benchmark breaks; a goal that is
missed is told and changes nothing: time depends on the machine (docs/performance.md).
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import os
import platform
import sys
import time
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import pytest

from bench.rows import HEADINGS, Row, Skipped, line
from chaindock import telemetry

NAMES = (
    "help",
    "memory",
    "calls",
    "invoke",
    "ledger",
    "queries",
    "spawn",
    "launch",
    "restart",
    "gateway",
    "blocks",
)
LONG = ("million",)
"""Run only when they are named."""
LIMIT_S = 900.0
"""For one benchmark, whose first run may have to build: a hang must not look like work."""
BUSY = 0.5
"""Load per CPU, before the start, from which on results are not to be trusted."""
Result = Row | Skipped


async def collect(name: str, into: list[Any]) -> None:
    """Run one benchmark, printing its rows as they come.

    A tool that is missing ends it: what it has not measured is told as skipped.
    """

    def take(result: Result) -> None:
        into.append((name, result))
        if isinstance(result, Row):
            print(line(result.cells()), flush=True)
        else:
            print(f"{result.what}: skipped, {result.reason}", flush=True)

    module = importlib.import_module(f"bench.bench_{name}")
    try:
        async with asyncio.timeout(LIMIT_S * (4 if name in LONG else 1)):
            async for result in module.run():
                take(result)
    except (pytest.skip.Exception, pytest.fail.Exception) as missing:
        take(Skipped(name, str(missing)))


def machine() -> dict[str, Any]:
    """Say what it runs on, in words that do not name anybody's machine."""
    return {
        "cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
        "system": platform.system(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "when": time.strftime("%Y-%m-%d"),
    }


def as_json(name: str, result: Result) -> dict[str, Any]:
    """Return a result as an object."""
    if isinstance(result, Row):
        return {"bench": name, **result.as_json()}
    return {"bench": name, "what": result.what, "skipped": result.reason}


def summary(results: list[Result]) -> str:
    """Return one line about the goals."""
    verdicts = [row.met for row in results if isinstance(row, Row)]
    goals = [verdict for verdict in verdicts if verdict is not None]
    skipped = sum(isinstance(result, Skipped) for result in results)
    return f"{sum(goals)} of {len(goals)} goals met, {skipped} skipped"


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=", ".join((*NAMES, *LONG))
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write results here")
    asked = parser.parse_args()
    if unknown := set(asked.names) - {*NAMES, *LONG}:
        parser.error(f"no benchmark {', '.join(sorted(unknown))}")
    telemetry.configure(spec="error")
    os.environ["GRPC_VERBOSITY"] = "ERROR"  # noqa: TID251  # ends of streams: no news
    began, here, broken = time.monotonic(), machine(), []
    found: list[tuple[str, Result]] = []
    if here["load"] > BUSY * here["cpus"]:
        print(f"other work runs here (load {here['load']:.1f}): ratios will scatter\n")
    print(line(HEADINGS))
    for name in asked.names or NAMES:
        print(f"\n{name}")
        try:
            asyncio.run(collect(name, found))
        except Exception:  # noqa: BLE001  # the others still run
            traceback.print_exc()
            broken.append(name)
    if asked.json:
        rows = [as_json(name, result) for name, result in found]
        told = {"machine": here, "results": rows, "broken": broken}
        asked.json.write_text(json.dumps(told, indent=1) + "\n")
    spent = time.monotonic() - began
    print(f"\n{summary([result for _, result in found])}, {spent:.0f} s")
    if broken:
        print(f"broken: {', '.join(broken)}")
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
