"""Many proposals at once: what the limit of open files allows, and what is told above."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from chaindock.errors import LedgerError
from chaindock.ids import TxId
from chaindock.node.serve import proposals_at_once, raise_limit
from support.ledgers.envelopes import rwset
from support.ledgers.ledger import commit, ledger_at


async def hold(folder: Path, count: int) -> str | None:
    """Hold `count` simulations, with a commit between each two; return the hint."""
    async with ledger_at(folder) as ledger:
        db = ledger._committer._db
        assert db is not None
        await ledger._write(lambda: db.execute("PRAGMA synchronous=OFF"))
        with ExitStack() as stack:
            try:
                for number in range(count):
                    simulator = stack.enter_context(ledger.new_simulator(TxId("t")))
                    await commit(ledger, rwset(writes={"k": b"%d" % number}))
                    simulator.get_state("cc", "k")
            except LedgerError as error:
                return error.hint or "no hint"
    return None


def with_files(files: int, script: str, *args: str) -> Any:
    """Run a function of this module in a process that may open `files` at first."""

    # Not by a preexec_fn: threads of gRPC that other tests began may abort its process.
    limited = ("sh", "-c", f'ulimit -S -n {files}; exec "$@"', "sh")
    done = subprocess.run(
        [*limited, sys.executable, __file__, script, *args],
        capture_output=True,
        check=True,
        text=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    return json.loads(done.stdout)


@pytest.mark.timeout(120)
def test_a_thousand_simulations_can_be_held_over_a_thousand_commits(
    tmp_path: Path,
) -> None:
    """Where a shell allows 1024 open files, the node raises that limit by itself."""
    assert with_files(1024, "raised", str(tmp_path), "1000") is None


def test_open_simulations_take_no_files(tmp_path: Path) -> None:
    assert with_files(64, "as it is", str(tmp_path), "1000") is None


def test_proposals_are_bounded_by_what_can_be_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A node where few files may be open works on fewer proposals, not on broken ones."""
    monkeypatch.setattr("chaindock.node.serve.raise_limit", lambda: 1024)
    assert proposals_at_once(2500) == proposals_at_once(0) == 174
    assert proposals_at_once(100) == 100
    monkeypatch.setattr("chaindock.node.serve.raise_limit", lambda: 10_240)
    assert proposals_at_once(2500) == 2500


if __name__ == "__main__":
    if sys.argv[1] == "raised":
        raise_limit()
    print(json.dumps(asyncio.run(hold(Path(sys.argv[2]), int(sys.argv[3])))))
