"""Routes that look into the ledger: what they refuse, how large an answer gets."""

import json
from typing import Any

import pytest

from chaindock.ledger.reader import LedgerReader
from chaindock.node.explorer import MOST, Explorer
from support.doubles.fake_explorer import members_of
from support.holds import cpu_of, watched
from support.ledgers.envelopes import rwset, transaction
from support.ledgers.ledger import commit, judged, ledger_at


@pytest.fixture
async def ledger(tmp_path, node):
    async with (
        ledger_at(tmp_path) as opened,
        LedgerReader(tmp_path / "ledger.db") as reader,
    ):
        node.explorer = Explorer(opened, reader, members_of(opened))
        yield opened


@pytest.fixture
async def asked(ledger, api):
    return api


@pytest.mark.parametrize(
    "path",
    [
        "/state/..%2Fx",
        "/state/cc?limit=0",
        f"/state/cc?limit={MOST + 1}",
        "/state/cc?limit=ten",
        "/state/cc?cut=-1",
        "/state/cc/value",
        "/state/cc/history?key=k&before=7",
        "/state/cc/history?key=k&before=1,x",
        "/blocks?limit=1&below=%F0%9F%98%80",
        "/blocks/9999999999999999999",
        "/blocks/0?brief=yes",
        "/transactions/%20",
        "/transactions/%27%20OR%201",
        "/events?from=-1",
        "/events?follow=maybe",
    ],
)
async def test_wrong_questions_are_refused(asked, path):
    status, body = await asked.ask("GET", path)
    assert (status, body["error"]) == (400, "invalid-input")


@pytest.mark.parametrize(
    "path", ["/blocks/7", "/transactions/ffff", "/state/cc/value?key=k", "/blocks/cut"]
)
async def test_what_is_not_there_is_not_found(asked, path):
    assert (await asked.ask("GET", path))[0] in {400, 404}


async def test_another_site_gets_no_state(asked):
    headers = {"Origin": "https://elsewhere.example"}
    for path in ("/state/cc", "/blocks?limit=1", "/events"):
        assert (await asked.ask("GET", path, headers=headers))[0] == 403


async def test_keys_of_any_characters_are_found(ledger, asked):
    keys = ["\0t\0a\0", "a b&c=d#e", "%00", "é", "\U0010ffff", "/", "+", "\n"]
    await commit(ledger, rwset(writes={key: key.encode() for key in keys}))
    for key in keys:
        path = "/state/cc/value"
        status, body = await asked.ask("GET", path, params={"key": key})
        assert (status, body["key"]) == (200, key)
    status, body = await asked.ask("GET", "/state/cc", params={"prefix": "\0t\0"})
    assert [row["key"] for row in body["rows"]] == ["\0t\0a\0"]


async def test_a_page_ends_at_its_size(ledger, asked):
    large = {f"k{number}": bytes(400_000) for number in range(5)}
    await commit(ledger, rwset(writes=large))
    seen = []
    body: dict[str, Any] = {"next": ""}
    while body["next"] is not None:
        params = {"start": body["next"], "limit": "1000", "cut": "10"}
        _, body = await asked.ask("GET", "/state/cc", params=params)
        assert len(body["rows"]) <= 3
        seen += [row["key"] for row in body["rows"]]
    assert seen == sorted(large)


async def test_pages_of_a_history_have_no_gap(ledger, asked):
    for number in range(5):
        await commit(ledger, rwset(writes={"k": b"%d" % number}))
    seen, before = [], None
    while True:
        params = {"key": "k", "limit": "2"} | ({"before": before} if before else {})
        _, body = await asked.ask("GET", "/state/cc/history", params=params)
        seen += [row["version"][0] for row in body["rows"]]
        if body["next"] is None:
            break
        before = ",".join(map(str, body["next"]))
    assert seen == [5, 4, 3, 2, 1]


async def test_a_large_transaction_is_told_beside_other_work(ledger, asked):
    keys = {f"k{number:06}": b"v" * 20 for number in range(30_000)}
    tx = transaction(rwset(reads=dict.fromkeys(keys), writes=keys))
    await ledger.commit(judged([(tx.envelope, 0)]))
    with watched() as held:
        found = await ledger_answer(asked, f"/transactions/{tx.tx_id}")
    assert found.count(b'"is_delete"') == 30_000
    assert held.cpu_s < cpu_of(lambda: json.loads(found)), held.what


async def ledger_answer(asked, path: str) -> bytes:
    async with asked.session.get(f"http://node{path}") as answer:
        return bytes(await answer.read())
