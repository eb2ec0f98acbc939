"""Copies of ledgers: taken beside a running node, checked before they replace anything."""

import io
import json
import sqlite3
import tarfile
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fabric_protos.peer import transaction_pb2

from chaindock.endorser.cutting import OrdererOptions
from chaindock.endorser.genesis import genesis_envelope
from chaindock.errors import InvalidInput, LedgerError, NodeAlreadyRunning, NotFound
from chaindock.identity.organization import Organization
from chaindock.ledger.ledger import Ledger
from chaindock.ledger.reader import LedgerReader
from chaindock.lifecycle.targets import TargetState
from chaindock.node.copies import dump, load, reset, verify
from chaindock.node.home import Home
from support.ledgers.envelopes import CHANNEL, rwset, transaction
from support.ledgers.ledger import commit, history, judged, state
from support.ledgers.private import T, digest, put, simulated, value

REFUSED = transaction_pb2.ENDORSEMENT_POLICY_FAILURE
INDEX = {
    "META-INF/statedb/couchdb/indexes/size.json": b'{"index":{"fields":["size"]},'
    b'"ddoc":"d","name":"size"}'
}


class World:
    """A home with a ledger, which is open only while it is used."""

    def __init__(self, root: Path) -> None:
        self.home = Home(root)
        self.home.prepare()
        self.org = Organization.open(
            self.home.organizations, "Org1MSP", "org1.example.com"
        )

    def ledger(self) -> Ledger:
        options = OrdererOptions()
        return Ledger(
            self.home.ledgers / f"{CHANNEL}.db",
            CHANNEL,
            self.org.orderer,
            lambda: genesis_envelope(CHANNEL, self.org.msp, options),
            marker=self.home.organizations / f"{CHANNEL}.ledger",
        )

    async def put(self, **keys: bytes) -> None:
        async with self.ledger() as ledger:
            await commit(ledger, rwset(writes=keys))

    async def state(self) -> dict[str, bytes]:
        async with self.ledger() as ledger:
            return state(ledger)


@pytest.fixture
async def world(tmp_path: Path) -> World:
    made = World(tmp_path / "home")
    await made.put(k=b"1")
    return made


async def test_a_copy_brings_the_state_back(world, tmp_path):
    copy = tmp_path / "copy"
    told = dump(world.home, copy)
    assert told["ledgers"] == {CHANNEL: 2}
    await world.put(k=b"2", more=b"3")
    assert load(world.home, copy)["ledgers"] == {CHANNEL: 2}
    assert await world.state() == {"k": b"1"}
    await world.put(k=b"4")
    assert await world.state() == {"k": b"4"}
    assert copy.stat().st_mode & 0o077 == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "home"]


async def test_a_copy_has_the_indexes_of_rich_queries(world, tmp_path):
    """SQLite calls functions of ours for them, also while it checks the file."""
    await world.put(k=b'{"size": 1}')
    async with world.ledger() as ledger:
        await ledger.put_indexes("cc", INDEX)
        await commit(ledger, rwset(writes={"more": b'{"size": 2}'}))
    dump(world.home, tmp_path / "copy")
    load(world.home, tmp_path / "copy")
    async with world.ledger() as ledger:
        await commit(ledger, rwset(writes={"last": b'{"size": 3}'}))
    assert len(await world.state()) == 3


async def test_a_copy_is_taken_while_the_node_commits(world, tmp_path):
    async with world.ledger() as ledger:
        await commit(ledger, rwset(writes={"k": b"2"}))
        dump(world.home, tmp_path / "copy")
        await commit(ledger, rwset(writes={"k": b"3"}))
    load(world.home, tmp_path / "copy")
    assert await world.state() == {"k": b"2"}


async def test_a_log_of_the_former_ledger_is_not_played_into_the_new_one(
    world, tmp_path
):
    """As a killed node leaves it: the last commits are in the log alone."""
    dump(world.home, tmp_path / "copy")
    path = world.home.ledgers / f"{CHANNEL}.db"
    async with world.ledger() as ledger:
        await commit(ledger, rwset(writes={"k": b"lost"}))
        left = {
            end: path.with_name(path.name + end).read_bytes() for end in ("", "-wal")
        }
    for end, data in left.items():
        path.with_name(path.name + end).write_bytes(data)
    load(world.home, tmp_path / "copy")
    assert await world.state() == {"k": b"1"}


async def test_a_home_that_is_served_is_not_changed(world, tmp_path):
    dump(world.home, tmp_path / "copy")
    with world.home.locked():
        for act in (
            lambda: load(world.home, tmp_path / "copy"),
            lambda: reset(world.home),
        ):
            with pytest.raises(NodeAlreadyRunning):
                act()


async def test_the_copy_of_another_home_is_refused(world, tmp_path):
    other = World(tmp_path / "other")
    await other.put(k=b"theirs")
    dump(other.home, tmp_path / "copy")
    with pytest.raises(InvalidInput, match="belongs to another home"):
        load(world.home, tmp_path / "copy")
    assert await world.state() == {"k": b"1"}


def changed(copy: Path, statement: str, name: str = f"ledgers/{CHANNEL}.db") -> None:
    """Change a database inside of a copy, by default the ledger."""
    with tarfile.open(copy) as tar:
        files = {one.name: tar.extractfile(one) for one in tar}
        members = {name: file.read() for name, file in files.items() if file}
    file = copy.with_name("inside.db")
    file.write_bytes(members[name])
    with closing(sqlite3.connect(file)) as db:
        db.execute(statement)
        db.commit()
    write(copy, {**members, name: file.read_bytes()})


def write(copy: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(copy, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE versions SET value=x'00'",
        "UPDATE versions SET superseded=1",
        "DELETE FROM versions WHERE key=x'6b'",
        "DELETE FROM transactions",
        "UPDATE private SET plain=NULL, name=NULL, value=x'00'",
    ],
)
async def test_of_a_copy_the_blocks_count_and_not_a_state_that_was_changed(
    world, tmp_path, statement
):
    async with world.ledger() as ledger:
        await simulated(ledger, put("p", b"secret"))
        before = state(ledger), history(ledger, "k"), digest(ledger, "p")
    dump(world.home, tmp_path / "copy")
    changed(tmp_path / "copy", statement)
    load(world.home, tmp_path / "copy")
    async with world.ledger() as ledger:
        assert (state(ledger), history(ledger, "k"), digest(ledger, "p")) == before


@pytest.mark.parametrize(
    "change", ["name='q'", "name=x'ff'", "tx=7", "tx='x'", "plain='p'", "value=x'00'"]
)
async def test_private_data_of_a_refused_transaction_is_that_of_its_block(
    world, tmp_path, change
):
    """Streams of blocks with private data look for the transaction of each row."""
    async with world.ledger() as ledger:
        with ledger.new_simulator(T) as simulator:
            put("p", b"secret")(simulator)
            tx = transaction(simulator.results())
            await ledger.keep_private(tx.tx_id, simulator.private_results())
        await ledger.commit(judged([(tx.envelope, REFUSED)]))
    dump(world.home, tmp_path / "copy")
    changed(tmp_path / "copy", f"UPDATE private SET {change}")
    load(world.home, tmp_path / "copy")
    async with world.ledger() as ledger, LedgerReader(ledger._path) as reader:
        assert await reader.run(lambda view: view.private_of(2)) == []


@pytest.mark.parametrize(
    "change", ["plain=x'00'", "plain='other'", "name='other'", "value=x'00'", "block=1"]
)
async def test_private_data_that_has_another_hash_than_in_its_block_is_refused(
    world, tmp_path, change
):
    async with world.ledger() as ledger:
        await simulated(ledger, put("p", b"secret"))
    dump(world.home, tmp_path / "copy")
    changed(tmp_path / "copy", f"UPDATE private SET {change}")
    with pytest.raises(
        InvalidInput, match="private values that fit no hash in a block: 1"
    ):
        load(world.home, tmp_path / "copy")
    async with world.ledger() as ledger:
        assert value(ledger, "p") == b"secret"


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("DELETE FROM blocks WHERE number=1", "block 1 is missing"),
        ("DELETE FROM blocks WHERE number=2", "has 2 blocks, expected 3"),
        ("UPDATE blocks SET number=5 WHERE number=1", "block 1 is missing"),
        ("UPDATE blocks SET hash=x'00' WHERE number=0", "does not have the hash"),
        ("UPDATE blocks SET block=x'ff' WHERE number=1", "cannot be decoded"),
        ("UPDATE blocks SET block='a text' WHERE number=1", "cannot be decoded"),
        ("UPDATE contents SET bytes='a text'", "cannot be decoded"),
        ("DELETE FROM blocks", "it has no block"),
        ("UPDATE document_indexes SET columns='[1]'", "Invalid sort field: 1"),
        ("UPDATE document_indexes SET columns='no JSON'", "index is not valid JSON"),
        ("UPDATE document_indexes SET partial=x'ff'", "index is not valid JSON"),
        ("PRAGMA user_version=77", "schema version 77"),
        ("UPDATE meta SET value='else' WHERE name='channel'", "belongs to channel"),
    ],
)
async def test_a_copy_that_was_changed_is_refused(world, tmp_path, statement, told):
    copy = tmp_path / "copy"
    await world.put(a=b"1")
    async with world.ledger() as ledger:
        await ledger.put_indexes("cc", INDEX)
    dump(world.home, copy)
    changed(copy, statement)
    with pytest.raises(InvalidInput, match=told):
        load(world.home, copy)
    assert await world.state() == {"k": b"1", "a": b"1"}


async def test_a_copy_of_a_newer_release_is_refused_for_what_is_deployed_too(
    world, tmp_path
):
    with TargetState(world.home.desired):
        pass
    copy = tmp_path / "copy"
    dump(world.home, copy)
    changed(copy, "PRAGMA user_version=99", "desired.db")
    with pytest.raises(InvalidInput, match="used: 'desired' has schema version 99"):
        load(world.home, copy)
    assert await world.state() == {"k": b"1"}


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"manifest.json": b"no json"},
        {"manifest.json": b"[]"},
        {"manifest.json": b"[" * 100_000},
        {"manifest.json": b'{"format": 1, "ledgers": ["dev"]}'},
        {"manifest.json": b'{"format": 1, "ledgers": {}}'},
        {"manifest.json": json.dumps({"format": 2, "ledgers": {}}).encode()},
        {"manifest.json": json.dumps({"format": 1, "ledgers": {"../x": 1}}).encode()},
        {"manifest.json": json.dumps({"format": 1, "ledgers": {"dev": 1}}).encode()},
    ],
)
async def test_a_file_that_is_no_copy_is_refused(world, tmp_path, members: Any):
    write(tmp_path / "copy", members)
    with pytest.raises(InvalidInput):
        load(world.home, tmp_path / "copy")
    (tmp_path / "copy").write_bytes(b"no archive")
    with pytest.raises(InvalidInput, match="not a copy of a ledger"):
        load(world.home, tmp_path / "copy")
    assert await world.state() == {"k": b"1"}


async def test_what_a_killed_load_or_rebuild_left_goes_with_the_next_start(world):
    """It has private data, also what is purged later, and may be large."""
    left = world.home.root / ".load-1234abcd"
    left.mkdir()
    (left / f"{CHANNEL}.db").write_bytes(b"secret")
    rebuilt = world.home.ledgers / f"{CHANNEL}.db.rebuilt"
    for path in (rebuilt, rebuilt.with_name(f"{rebuilt.name}-wal")):
        path.write_bytes(b"secret")
    others = {f"a.rebuilt.db{more}" for more in ("", "-wal", "-shm")}
    for name in others:  # of a channel that may be called like that
        (world.home.ledgers / name).touch()
    with world.home.locked():
        assert not left.exists()
        names = {path.name for path in world.home.ledgers.iterdir()}
        assert names == {f"{CHANNEL}.db", *others}
    assert await world.state() == {"k": b"1"}


async def test_reset_removes_ledgers_and_keeps_identities(world):
    user = world.org.user("User1").creator
    assert reset(world.home) == [CHANNEL]
    assert not list(world.home.ledgers.iterdir())
    assert await world.state() == {}
    assert world.org.user("User1").creator == user
    assert reset(Home(world.home.root)) == [CHANNEL]


def test_a_home_without_a_ledger_has_nothing_to_copy(tmp_path):
    home = Home(tmp_path / "home")
    home.prepare()
    with pytest.raises(NotFound):
        dump(home, tmp_path / "copy")
    assert reset(home) == []


async def test_what_is_missing_is_an_error(world, tmp_path):
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(InvalidInput, match="cannot be read"):
            load(world.home, path)


@pytest.mark.parametrize("act", [verify, lambda home: dump(home, home.root / "copy")])
async def test_a_ledger_of_a_newer_release_is_neither_checked_nor_copied(world, act):
    """The node refuses the file with the same words."""
    path = world.home.ledgers / f"{CHANNEL}.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version=77")
    with pytest.raises(LedgerError) as refused:
        await world.state()
    with pytest.raises(LedgerError) as found:
        act(world.home)
    assert str(found.value) == str(refused.value)
    assert found.value.hint == refused.value.hint
    path.write_bytes(b"")
    with pytest.raises(LedgerError, match="it is empty"):
        act(world.home)
