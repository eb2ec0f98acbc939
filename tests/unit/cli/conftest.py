"""A node in memory, served by a thread, and a command line to use on it."""

import asyncio
import os
import subprocess
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from chaindock.cli.main import root
from chaindock.cli.node import find_process
from chaindock.endorser.caller import Answer
from chaindock.ids import TxId
from chaindock.ledger.committer import CommittedBlock
from chaindock.ledger.ledger import Ledger
from chaindock.ledger.reader import LedgerReader
from chaindock.ledger.simulator import Simulator
from chaindock.ledger.transaction import parse_transaction
from chaindock.node.admin import AdminServer
from chaindock.node.explorer import Explorer
from chaindock.processes.table import is_alive
from support.doubles.fake_explorer import members_of
from support.doubles.fake_node import FakeNode
from support.ledgers.envelopes import CHANNEL, Transaction, transaction
from support.ledgers.ledger import ledger_at
from support.program import command, wait_for

TESTS = Path(__file__).parents[2]
FAKE = Path(__file__).parent / "fake_serve"


class Served:
    """A FakeNode while its API is up."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.node = FakeNode(self.home)
        async with AdminServer(self.home, self.node):  # type: ignore[arg-type]  # a double
            self._ready.set()
            await self.node.stopping.wait()
        self.node.close()

    def __enter__(self):
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_):
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.node.stopping.set)
        self._thread.join(10)
        assert not self._thread.is_alive()


UNMET = {
    "namespace": "cc",
    "collection": "",
    "key": "refused",
    "key_hash": None,
    "policy": "OR('Org2MSP.peer')",
    "reason": None,
    "endorsers": ["Org1MSP.peer"],
    "stopped": ["Org2MSP"],
}


class Writes:
    """Commits writes at once; a key `refused` makes the transaction invalid."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.orgs: list[str | None] = []
        self.clock_s = 0.0
        self.waiting = 2

    async def write(
        self,
        name: str,
        writes: list[tuple[str, bytes]],
        collection: str = "",
        org: str | None = None,
    ) -> Answer:
        self.orgs.append(org)
        with self.ledger.new_simulator(TxId("t")) as simulator:
            for key, value in writes:
                if collection:
                    simulator.put_private(name, collection, key, value)
                else:
                    simulator.put_state(name, key, value)
            tx = transaction(simulator.results(), chaincode=name)
            if data := simulator.private_results():
                await self.ledger.keep_private(tx.tx_id, data)
        parsed = parse_transaction(tx.envelope, CHANNEL)
        if any(key == "refused" for key, _ in writes):
            parsed.code = 10
        block = await self.ledger.commit([parsed])
        code = block.codes[0]
        answer = Answer(200, "", b"", tx.tx_id, block=block.number, code=code)
        return replace(answer, unmet=UNMET) if code else answer

    async def cut(self) -> int:
        waiting, self.waiting = self.waiting, 0
        return waiting

    async def revert(self, name: str) -> dict[str, object]:
        height = self.ledger.height
        mark = await self.ledger.revert(name or "base")
        return {**vars(mark), "removed": height - mark.height}

    def time(self) -> dict[str, object]:
        return {"now": "2027-01-01T00:00:00+00:00", "offset_s": self.clock_s}

    def set_time(
        self, *, at_s: float | None, advance_s: float | None
    ) -> dict[str, object]:
        self.clock_s = at_s or (self.clock_s + advance_s if advance_s else 0.0)
        return self.time()


class ServedLedger(Served):
    """A FakeNode whose blocks and state are those of a real ledger, while its API is up."""

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.node = FakeNode(self.home)
        database = self.home / "ledger.db"
        async with (
            ledger_at(self.home) as self.ledger,
            LedgerReader(database) as reader,
        ):
            self.node.explorer = Explorer(self.ledger, reader, members_of(self.ledger))
            self.node.ledger = self.ledger
            self.node.controls = self.node.orderer = Writes(self.ledger)
            async with AdminServer(self.home, self.node):  # type: ignore[arg-type]
                self._ready.set()
                await self.node.stopping.wait()
        self.node.close()

    def simulate(
        self, act: Callable[[Simulator], object], *, commits: bool = True
    ) -> Transaction:
        """Make a transaction and keep its private data; commit it in a block."""

        async def work() -> Transaction:
            with self.ledger.new_simulator(TxId("t")) as simulator:
                act(simulator)
                tx = transaction(simulator.results())
                data = simulator.private_results()
            if data:
                await self.ledger.keep_private(tx.tx_id, data)
            if commits:
                await self.ledger.commit([parse_transaction(tx.envelope, CHANNEL)])
            return tx

        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(work(), self._loop).result(10)

    def commit(self, *txs: Transaction) -> CommittedBlock:
        """Commit a block of these transactions."""
        assert self._loop is not None
        parsed = [parse_transaction(tx.envelope, CHANNEL) for tx in txs]
        done = asyncio.run_coroutine_threadsafe(self.ledger.commit(parsed), self._loop)
        return done.result(10)


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    folder: Path = tmp_path / "home"
    folder.mkdir()
    for name in ("CHAINDOCK_HOME", "FABRIC_CFG_PATH", "DOCKER_HOST"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def node(home):
    with Served(home) as served:
        yield served.node


@pytest.fixture
def ledger(home):
    with ServedLedger(home) as served:
        yield served


@pytest.fixture
def run(home):
    """Return a function that runs a command line on the home."""

    def call(*args: str, **options) -> Result:
        result = CliRunner().invoke(root, ["--home", str(home), *args], **options)
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result

    return call


@pytest.fixture
def source(tmp_path) -> Path:
    folder: Path = tmp_path / "basic"
    folder.mkdir()
    (folder / "requirements.txt").write_text("")
    (folder / "main.py").write_text("print()\n")
    return folder


@pytest.fixture
def basic(run, node, source):
    result = run("deploy", str(source), "--name", "basic")
    assert result.exit_code == 0, result.output
    return node


@pytest.fixture
def env(home):
    plain = {"PATH": os.defpath, "HOME": str(home.parent)}
    plain |= {k: v for k, v in os.environ.items() if k.startswith("COVERAGE")}  # noqa: TID251
    return plain | {
        "CHAINDOCK_HOME": str(home),
        "PYTHONPATH": os.pathsep.join((str(FAKE), str(TESTS))),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


@pytest.fixture
def chaindock(env, home):
    """Return a function that runs the program; what it left running is ended."""

    def call(*args: str, **options) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*args),
            check=False,
            env=env,
            capture_output=True,
            text=True,
            timeout=30,
            **options,
        )

    yield call
    process = find_process(home)
    if process is not None:
        process.kill()
        wait_for(lambda: not is_alive(process))
