"""`state`: what a user sees of keys, values and histories that a contract wrote."""

import base64
import json

import pytest

from chaindock.cli.keys import (
    PREVIEW_BYTES,
    composite,
    escaped,
    parts_of,
    preview,
    shown,
)
from support.ledgers.envelopes import rwset, transaction

READING = "\0reading\0P1\0007\0"
HOSTILE = "k\x1b[2J\u202e\u200b"


def put(ledger, **keys: bytes):
    return ledger.commit(transaction(rwset(writes=keys)))


def test_ls_names_the_chaincodes_that_have_state(run, ledger):
    defined = {"namespaces/metadata/cc": b"x", "namespaces/metadata/other": b"x"}
    ledger.commit(transaction(rwset(writes=defined, ns="_lifecycle")))
    put(ledger, a=b"1", b=b"2")
    found = json.loads(run("state", "ls", "--json").stdout)
    assert [(one["name"], one["keys"]) for one in found] == [
        ("cc", 2),
        ("other", 0),
        ("_lifecycle", 2),
    ]
    assert "cc" in run("state", "ls").stdout


def test_ls_shows_keys_versions_and_values(run, ledger):
    put(ledger, P1=b'{"state": "intact"}', P2=b"\xff\0")
    lines = run("state", "ls", "cc").stdout.splitlines()
    assert lines[0].split() == ["KEY", "BLOCK", "TX", "BYTES", "VALUE"]
    assert lines[1].split(maxsplit=4) == ["P1", "1", "0", "19", '{"state": "intact"}']
    assert lines[2].split() == ["P2", "1", "0", "2", "0xff00"]


def test_ls_shows_composite_keys_as_the_commands_take_them(run, ledger):
    ledger.commit(transaction(rwset(writes={READING: b"-4", "plain": b"x"})))
    assert "--composite reading P1 7 " in run("state", "ls", "cc").stdout
    listed = run("state", "ls", "cc", "--composite", "reading", "P1", "--json")
    (row,) = json.loads(listed.stdout)["rows"]
    assert row["composite"] == ["reading", "P1", "7"]
    value = run("state", "get", "cc", "--composite", "reading", "P1", "7")
    assert value.stdout == "-4"
    assert "reading" not in run("state", "ls", "cc", "--prefix", "pl").stdout


def test_ls_goes_on_beyond_one_page_and_says_when_there_is_more(run, ledger):
    keys = {f"k{number:05}": b"v" for number in range(2500)}
    ledger.commit(transaction(rwset(writes=keys)))
    listed = json.loads(run("state", "ls", "cc", "--limit", "2400", "--json").stdout)
    assert [row["key"] for row in listed["rows"]] == sorted(keys)[:2400]
    assert listed["next"] is not None
    assert "there are more keys" in run("state", "ls", "cc", "--limit", "2").stderr
    assert run("state", "ls", "cc", "--limit", "2500").stderr == ""


def test_a_hostile_contract_writes_nothing_that_a_terminal_obeys(run, ledger):
    ledger.commit(transaction(rwset(writes={HOSTILE: b"\x1b]0;owned\x07\xc2\x9b31m"})))
    for words in (("ls", "cc"), ("history", "cc", HOSTILE)):
        text = run("state", *words).stdout
        assert not {"\x1b", "\x07", "\x9b", "\u202e", "\u200b"} & set(text)
    assert r"k\x1b[2J\u202e\u200b" in run("state", "ls", "cc").stdout


def test_get_prints_the_value_and_nothing_else(run, ledger):
    put(ledger, k=bytes(range(256)))
    result = run("state", "get", "cc", "k")
    assert result.stdout_bytes == bytes(range(256))
    assert "256 bytes, written by transaction" in result.stderr
    body = json.loads(run("state", "get", "cc", "k", "--json").stdout)
    assert base64.b64decode(body["value"]) == bytes(range(256))
    assert (body["version"], len(body["tx_id"])) == ([1, 0], 64)


def test_get_of_an_absent_key_says_whether_it_was_deleted(run, ledger):
    put(ledger, other=b"v")
    result = run("state", "get", "cc", "k")
    assert result.exit_code == 5
    assert "'cc' has no key 'k'" in result.stderr
    assert "hint: list the keys: chaindock state ls cc\n" in result.stderr
    there = run("state", "get", "cc", "k", "-C", "mychannel", "--json")
    assert json.loads(there.stdout)["hint"].endswith("ls cc --channel mychannel")
    put(ledger, k=b"1")
    put(ledger, k=b"")
    assert "was deleted by transaction" in run("state", "get", "cc", "k").stderr
    told = run("state", "get", "cc", "--composite", "reading", "P1").stderr
    assert "'cc' has no composite key 'reading P1'" in told


def test_history_is_newest_first_with_deletes(run, ledger):
    for value in (b"1", b"", b"2"):
        put(ledger, k=value)
    rows = json.loads(run("state", "history", "cc", "k", "--json").stdout)
    found = [(row["version"][0], row["is_delete"], row["value"]) for row in rows]
    assert found == [(3, False, "Mg=="), (2, True, ""), (1, False, "MQ==")]
    assert rows[0]["time"].startswith("2023-")
    assert "(deleted)" in run("state", "history", "cc", "k").stdout
    short = run("state", "history", "cc", "k", "--limit", "1", "--json").stdout
    assert len(json.loads(short)) == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("get", "cc", "a", "b"), "expected one KEY, found 2"),
        (("get", "cc", ""), "the key is empty"),
        (("get", "cc", "--composite", "a\0b"), "cannot contain U+0000"),
        (("get", "cc", "\udcff"), "not UTF-8"),
        (("ls", "cc", "reading"), "--composite belong together"),
        (("ls", "cc", "--limit", "0"), "x>=1"),
    ],
)
def test_wrong_keys_are_usage_errors(run, ledger, words, told):
    result = run("state", *words)
    assert result.exit_code == 2
    assert told in result.stderr


def test_a_name_that_no_chaincode_can_have_is_refused(run, ledger):
    assert run("state", "ls", "../x").exit_code == 5


@pytest.mark.parametrize("key", ["a", "\0", "\0\0", "\0a\0\U0010ffff\0", "a\0", "\\"])
def test_only_composite_keys_are_taken_for_some(key):
    assert parts_of(key) is None
    assert shown(key) == escaped(key)


@pytest.mark.parametrize("parts", [["t"], ["t", "a", "b c"], ["t", ""]])
def test_composite_keys_come_apart_again(parts):
    assert parts_of(composite(parts[0], parts[1:])) == parts


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (b"", ""),
        (b"text", "text"),
        (b"a\nb", r"a\nb"),
        (b"x" * 61, "x" * 60 + "…"),
        ("€".encode() * 100, "€" * 60 + "…"),
        (b"\xff" + b"a" * 10, "0xff" + "61" * 10),
        (b"a" * 100 + b"\xff" * 300, "0x" + "61" * 24 + "…"),
    ],
)
def test_values_are_shown_in_one_line(value, told):
    for most in (PREVIEW_BYTES, PREVIEW_BYTES - 1):
        data = base64.b64encode(value[:most]).decode()
        assert preview(data, len(value)) == told


@pytest.mark.parametrize(
    "words",
    [
        ("state", "ls", "coldchian"),
        ("state", "get", "coldchian", "k"),
        ("state", "history", "coldchian", "k"),
        ("state", "export", "coldchian"),
        ("events", "coldchian"),
    ],
)
def test_a_misspelt_chaincode_is_an_error_and_no_empty_answer(run, ledger, words):
    defined = {"namespaces/metadata/coldchain": b"x"}
    ledger.commit(transaction(rwset(writes=defined, ns="_lifecycle")))
    result = run(*words)
    assert (result.exit_code, result.stdout) == (5, "")
    told = "there is no chaincode 'coldchian' on the ledger; it has coldchain\n"
    assert result.stderr.startswith(f"error: {told}")
    assert run("state", "ls", "_lifecycle").exit_code == 0


def test_a_defined_chaincode_without_state_has_an_empty_answer(run, ledger):
    defined = {"namespaces/metadata/cc": b"x"}
    ledger.commit(transaction(rwset(writes=defined, ns="_lifecycle")))
    for words in (("state", "ls", "cc"), ("state", "export", "cc"), ("events", "cc")):
        result = run(*words)
        assert (result.exit_code, result.stdout) == (0, "")


def test_events_from_a_block_that_is_not_there_yet_need_follow(run, ledger):
    result = run("events", "--from", "999")
    assert result.exit_code == 5
    assert "there is no block 999; the newest is 0" in result.stderr
