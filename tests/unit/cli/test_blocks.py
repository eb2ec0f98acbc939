"""`block`, `tx`, `events`: what was committed, and why something was not."""

import json
import time

import pytest
from fabric_protos.ledger.rwset.kvrwset import kv_rwset_pb2

from chaindock.cli.client import AdminClient
from support.ledgers.envelopes import read, rwset, transaction


def test_block_ls_is_newest_first_and_pages(run, ledger):
    for number in range(4):
        ledger.commit(transaction(rwset(writes={"k": b"%d" % number})))
    rows = json.loads(run("block", "ls", "--json").stdout)
    assert [row["number"] for row in rows] == [4, 3, 2, 1, 0]
    assert (rows[0]["transactions"], rows[0]["valid"]) == (1, 1)
    rows = json.loads(
        run("block", "ls", "--before", "3", "--limit", "2", "--json").stdout
    )
    assert [row["number"] for row in rows] == [2, 1]
    assert run("block", "ls").stdout.splitlines()[1].startswith("4 ")


def test_block_show_has_hashes_transactions_and_codes(run, ledger):
    good = transaction(rwset(writes={"k": b"v"}), args=[b"put", b"k"])
    stale = transaction(rwset(reads={"k": None}, writes={"k": b"w"}))
    ledger.commit(good, stale)
    text = run("block", "show", "1").stdout
    assert "VALID" in text
    assert "MVCC_READ_CONFLICT" in text
    assert " put " in text
    body = json.loads(run("block", "show", "1", "--json").stdout)
    assert (
        body["previous_hash"]
        == json.loads(run("block", "show", "0", "--json").stdout)["hash"]
    )
    assert [tx["code"] for tx in body["transactions"]] == [0, 11]
    assert body["transactions"][0]["writes"][0]["value"] == "dg=="
    assert len(body["commit_hash"]) == 64


def test_block_that_is_not_there(run, ledger):
    result = run("block", "show", "9")
    assert result.exit_code == 5
    assert "there is no block 9; the newest is 0" in result.stderr
    assert "chaindock block ls" in result.stderr


def test_tx_show_has_what_was_asked_read_written_and_answered(run, ledger):
    tx = transaction(
        rwset(reads={"gone": None}, writes={"k": b"v", "old": None}),
        args=[b"put", b"k", b"\x1b[2J"],
        event=("done", b"payload"),
    )
    ledger.commit(tx)
    text = run("tx", "show", tx.tx_id[:10]).stdout
    for told in (
        tx.tx_id,
        "block 1, position 0".removeprefix("block "),
        "VALID (0)",
        "function",
        r"\x1b[2J",
        "gone  as absent",
        "cc  k  v",
        "cc  old  (deleted)",
        "done payload",
    ):
        assert told in text
    assert "\x1b" not in text
    body = json.loads(run("tx", "show", tx.tx_id, "--json").stdout)
    assert (body["function"], body["block"], body["conflict"]) == ("put", 1, None)
    assert body["response"]["status"] == 200


@pytest.mark.parametrize("words", ["ffff", "zz", "%2e%2e", "g" * 64])
def test_tx_that_is_not_there(run, ledger, words):
    result = run("tx", "show", words)
    assert result.exit_code == 5
    assert "transaction" in result.stderr


def test_conflict_names_key_versions_and_writer(run, ledger):
    ledger.commit(transaction(rwset(writes={"k": b"1"})))
    writer = transaction(rwset(writes={"k": b"2"}))
    stale = transaction(rwset(reads={"a": None, "k": (1, 0)}, writes={"x": b"3"}))
    ledger.commit(writer)
    ledger.commit(stale)
    conflict = json.loads(run("tx", "show", stale.tx_id, "--json").stdout)["conflict"]
    assert conflict == {
        "namespace": "cc",
        "collection": "",
        "key": "k",
        "key_hash": None,
        "range": None,
        "read": [1, 0],
        "known": True,
        "found": [2, 0],
        "writer": writer.tx_id,
        "writer_version": [2, 0],
    }
    text = run("tx", "show", stale.tx_id).stdout
    assert "key k of cc was read at block 1, transaction 0" in text
    assert f"found: block 2, transaction 0, by transaction {writer.tx_id[:12]}" in text


@pytest.mark.parametrize("last", [b"2", b""])
def test_conflict_inside_a_block(run, ledger, last):
    """The writer stands before the reader in one block; a delete counts, too."""
    ledger.commit(transaction(rwset(writes={"k": b"1"})))
    writer = transaction(rwset(writes={"k": last}))
    stale = transaction(rwset(reads={"k": (1, 0)}, writes={"k": b"3"}))
    later = transaction(rwset(writes={"k": b"4"}))
    ledger.commit(writer, stale, later)
    conflict = json.loads(run("tx", "show", stale.tx_id, "--json").stdout)["conflict"]
    assert conflict["writer"] == writer.tx_id
    assert conflict["found"] == ([2, 0] if last else None)


@pytest.mark.parametrize("hashed", [False, True])
@pytest.mark.parametrize(("key", "value"), [("b", b"new"), ("a", b"2"), ("a", b"")])
def test_phantom_names_the_key_that_changed_the_range(run, ledger, key, value, hashed):
    ledger.commit(transaction(rwset(writes={"a": b"1", "z": b"1"})))
    info = kv_rwset_pb2.RangeQueryInfo(start_key="a", end_key="c", itr_exhausted=True)
    info.raw_reads.kv_reads.append(read("a", (1, 0)))
    if hashed:
        info.reads_merkle_hashes.max_degree = 50
        info.reads_merkle_hashes.max_level = 1
    writer = transaction(rwset(writes={key: value}))
    ledger.commit(writer)
    ledger.commit(transaction(rwset(writes={"z": b"2"})))
    stale = transaction(rwset(ranges=[info], writes={"x": b"1"}))
    assert ledger.commit(stale).codes == bytes([12])
    conflict = json.loads(run("tx", "show", stale.tx_id, "--json").stdout)["conflict"]
    assert (conflict["key"], conflict["writer"]) == (key, writer.tx_id)
    assert conflict["range"] == ["a", "c"]
    assert conflict["read"] == ([1, 0] if key == "a" and not hashed else None)
    assert conflict["known"] is not hashed


def test_events_are_those_of_valid_transactions(run, ledger):
    good = transaction(rwset(writes={"k": b"1"}), event=("made\x1b", b'{"a": 1}'))
    stale = transaction(rwset(reads={"k": None}), event=("never", b""))
    other = transaction(rwset(), chaincode="other", event=("else", b""))
    ledger.commit(good, stale, other)
    lines = run("events").stdout.splitlines()
    assert [line.split()[2:4] for line in lines] == [
        ["cc", r"made\x1b"],
        ["other", "else"],
    ]
    (line,) = run("events", "cc", "--json").stdout.splitlines()
    body = json.loads(line)
    assert (body["block"], body["tx_id"], body["result"]) == (1, good.tx_id, {"a": 1})
    none = run("events", "--from", "2")
    assert (none.stdout, none.exit_code) == ("", 0)
    assert "no valid transaction has set an event" in none.stderr


def test_events_follow_what_is_committed_until_the_node_ends(home, ledger):
    ledger.commit(transaction(rwset(), event=("before", b"")))
    events = AdminClient(home).events(None, 2, follow=True)
    for name in ("one", "two"):
        ledger.commit(transaction(rwset(), event=(name, b"")))
        assert next(events)["name"] == name
    ledger.__exit__()
    assert list(events) == []


def test_a_slow_reader_of_events_costs_the_memory_of_few_blocks(home, ledger):
    """The node reads the next block when the client has room for the last one."""
    blocks, payload = 60, bytes(300_000)
    for _ in range(blocks):
        ledger.commit(transaction(rwset(), event=("big", payload)))
    explorer, made = ledger.node.explorer, []
    plain = explorer.events

    async def counted(*args, **options):
        async for batch in plain(*args, **options):
            made.append(len(batch))
            yield batch

    explorer.events = counted
    events = AdminClient(home).events(None, 0, follow=True)
    next(events)
    time.sleep(0.5)
    assert len(made) < 20
    assert [next(events)["block"] for _ in range(blocks - 1)] == list(range(2, 61))
    del events  # ends the request


def test_requests_of_the_last_transactions_are_remembered(run, ledger):
    explorer = ledger.node.explorer
    tx = transaction(rwset())
    ledger.commit(tx)
    assert json.loads(run("tx", "show", tx.tx_id, "--json").stdout)["requests"] is None
    each = {"GET_STATE": [3, 0.00125, 0.001, 0.0002], "PUT_STATE": [1, 0.002, 0.002]}
    explorer.remember(tx.tx_id, each)
    told = run("tx", "show", tx.tx_id).stdout
    assert "GET_STATE: 3, 1.25 ms in the node (1.00, 0.20, …)\n" in told
    assert "PUT_STATE: 1, 2.00 ms in the node\n" in told
    for number in range(1000):
        explorer.remember(str(number), {})
    assert json.loads(run("tx", "show", tx.tx_id, "--json").stdout)["requests"] is None


def test_wrong_numbers_and_empty_ids_are_usage_errors(run, ledger):
    result = run("block", "show", "seven")
    assert result.exit_code == 2
    assert "'seven' is not a valid number" in result.stderr
    for empty in ("", " "):
        result = run("tx", "show", empty)
        assert result.exit_code == 2
        assert "the id is empty: expected an id, or its first digits" in result.stderr
