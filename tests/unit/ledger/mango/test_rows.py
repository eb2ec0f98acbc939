"""What rows and pages hold, and which requests are refused."""

from __future__ import annotations

import json
from contextlib import closing

import pytest

from chaindock.errors import InvalidInput
from chaindock.ledger.mango.indexes import parse_index
from chaindock.ledger.mango.query import parse_query
from support.mango.documents import Documents

# --- rows -----------------------------------------------------------------------------


def value_of(document: bytes, query: dict[str, object] | None = None) -> str | None:
    with closing(Documents({"k": document})) as documents:
        documents.keys(query or {"selector": {}})
        value = documents.rows[0][1]
        return value if isinstance(value, str) else None


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (b' {"b" : 1, "a":\t[1, 2] } ', '{"a":[1,2],"b":1}'),
        (b'{"a":1.0,"b":1e2,"c":-0.0}', '{"a":1,"b":100,"c":0}'),
        (b'{"a":9007199254740993}', '{"a":9007199254740992}'),
        (b'{"a":1e20,"b":1e21,"c":1.5e-7}', '{"a":100000000000000000000,"b":1e+21,"c":1.5e-7}'),
        (b'{"a":0.00001,"b":123456789012345678901}', '{"a":0.00001,"b":123456789012345680000}'),
        ("{\"a\":\"<é>&\u2028\"}".encode(), '{"a":"\\u003cé\\u003e\\u0026\\u2028"}'),
        (b'{"a":"\\u003c\\ud83d\\ude00\\ud83d"}', '{"a":"\\u003c\U0001f600\ufffd"}'),
        (b'{"a":"\xff\xfe"}', '{"a":"\ufffd\ufffd"}'),
        (b'{"a":1,"a":2,"_id":"x","_rev":"y","~version":1}', '{"a":2}'),
        (b'{"a":1e400}', None),
        (b'{"a":NaN}', None),
        (b'{"a":1} x', None),
        (b"[1]", None),
        (b"null", None),
        (b'"text"', None),
        (b"", None),
        (b"[" * 100_000, None),
    ],
)  # fmt: skip
@pytest.mark.statement(75, of="client")
def test_a_value_is_returned_as_peer_and_couchdb_write_it(stored, expected):
    assert value_of(stored) == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (["b.c", "missing", "t.1", "_id"], '{"b":{"c":1},"t":{"1":2}}'),
        ([], "{}"),
        (["x\\.y"], '{"x.y":3}'),
        (["b", "b.d"], '{"b":{"c":1,"d":"\\u003c"}}'),
    ],
)
@pytest.mark.statement(71, of="client")
def test_only_the_fields_asked_for_are_returned(fields, expected):
    document = json.dumps({"b": {"c": 1, "d": "<"}, "t": [1, 2], "x.y": 3}).encode()
    assert value_of(document, {"selector": {}, "fields": fields}) == expected


@pytest.mark.statement(74, of="client")
def test_what_is_no_object_matches_only_without_conditions_on_fields(colours):
    assert {"raw", "list"} < set(colours.keys({"selector": {}}))
    assert colours.keys({"selector": {"n": {"$exists": False}}}) == ["list", "raw"]
    assert colours.keys({"selector": {"_id": {"$gt": "l"}, "n": {"$ne": 5}}}) == []


# --- pages ----------------------------------------------------------------------------


def test_bookmarks_are_those_of_couchdb(colours):
    query = {"selector": {"colour": "red"}}
    keys, bookmark = colours.page(query, size=10)
    assert len(keys) == 10
    assert bookmark not in {"", "nil"}
    assert colours.page(query, bookmark) == ([], bookmark)
    assert colours.page({"selector": {"colour": "none"}}) == ([], "nil")


def test_a_bookmark_stays_good_while_documents_change(colours):
    query = {"selector": {"n": {"$gte": 0}}}
    keys, bookmark = colours.page(query, size=3)
    colours.put({keys[-1]: None})
    colours.put({"k0a": {"n": 1}})
    rest, _ = colours.page(query, bookmark)
    assert sorted(keys + rest) == sorted({f"k{n}" for n in range(30)} | set())


@pytest.mark.parametrize(
    "bookmark", ["x", "nil", "WzFd", "WyJhIiwgImIiXQ", "e30", "é", "W" * 1000, " "]
)
def test_a_foreign_bookmark_is_refused(colours, bookmark):
    with pytest.raises(InvalidInput, match="Error:invalid_bookmark,  Status Code:400,"):
        colours.page({"selector": {}}, bookmark)


def test_skip_holds_for_each_internal_page():
    with closing(Documents({f"{n:05d}": {"n": n} for n in range(2500)})) as documents:
        found = documents.keys({"selector": {}, "skip": 10})
    assert len(found) == 2500 - 30
    assert found[0] == "00010"
    assert found[1000] == "01020"


# --- the request ----------------------------------------------------------------------

HEAD = "error handling CouchDB request. Error:"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "EOF"),
        ("{", "unexpected EOF"),
        ("x", "invalid character 'x' looking for beginning of value"),
        ("[]", "json: cannot unmarshal array into Go value of type map[string]interface {}"),
        ('{"fields":"a"}', "fields definition must be an array"),
        ("{}", f"{HEAD}missing_required_key,  Status Code:400,  Reason:Missing required key: selector"),
        ('{"a":1,"selector":{}}', f"{HEAD}invalid_key,  Status Code:400,  Reason:Invalid key a for this request."),
        ('{"selector":{},"skip":-1}', f"{HEAD}invalid_non_neg_integer,  Status Code:400,  Reason:-1 is not an integer greater than or equal to zero"),
        ('{"selector":{},"sort":["a",{"b":"desc"}]}', f"{HEAD}unsupported_mixed_sort,  Status Code:400,  Reason:Sorts currently only support a single direction for all fields."),
        ('{"selector":{},"sort":"a"}', f"{HEAD}invalid_sort_json,  Status Code:400,  Reason:Sort must be an array of sort specs, not: <<97>>"),
        ('{"selector":{},"sort":[5]}', f"{HEAD}invalid_sort_field,  Status Code:400,  Reason:Invalid sort field: 5"),
        ('{"selector":{},"bookmark":3}', f"{HEAD}invalid_bookmark,  Status Code:400,  Reason:Invalid bookmark value: 3"),
        ('{"selector":{},"use_index":{"a":1}}', f"{HEAD}invalid_index_name,  Status Code:400,  Reason:Invalid index name: {{[{{<<97>>,1}}]}}"),
        ('{"selector":{},"fields":[5]}', f"{HEAD}invalid_field,  Status Code:400,  Reason:Invalid JSON for field spec: 5"),
        ('{"selector":{"a":1e999}}', f"{HEAD}bad_request,  Status Code:400,  Reason:invalid UTF-8 JSON"),
    ],
)  # fmt: skip
def test_errors_of_the_request(text, message):
    with pytest.raises(InvalidInput) as error:
        parse_query(text)
    assert error.value.message == message


@pytest.mark.statement(71, of="client")
def test_a_limit_is_ignored_and_so_is_what_follows_the_object(colours):
    query = parse_query('{"selector":{},"limit":"x","skip":2} trailing')
    assert query.skip == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"x", "not valid JSON"),
        (b"[]", "not a JSON object"),
        (b"{}", 'must include a "fields"'),
        (b'{"index":5}', '"index" must be a JSON'),
        (b'{"index":{"fields":"a"}}', "Expecting a JSON array"),
        (b'{"index":{"fields":[]}}', "1 to 16 fields"),
        (b'{"index":{"fields":["a"],"x":1}}', "Invalid Entry.  Entry x"),
        (b'{"index":{"fields":["a"]},"y":1}', "Invalid Entry.  Entry y"),
        (b'{"index":{"fields":["a"]},"ddoc":1}', '"ddoc" must be a string'),
        (b'{"index":{"fields":["a"]},"type":"text"}', "Index type must be json"),
        (b'{"index":{"fields":["a..b"]}}', "Invalid field name: a..b"),
        (b'{"index":{"fields":["a"],"partial_filter_selector":' + b'{"a":' * 400 + b"1" + b"}" * 402, "more than 64 levels"),
        (b'{"index":{"fields":["a"]},"name":"' + b"x" * 262_144 + b'"}', "more than the limit of 262144"),
    ],
)  # fmt: skip
def test_a_bad_index_is_refused(text, message):
    with pytest.raises(InvalidInput) as error:
        parse_index(text)
    assert message in error.value.message


def test_half_of_a_surrogate_pair_in_an_index_is_no_text():
    index = parse_index(
        b'{"index":{"fields":["\\ud800"],"partial_filter_selector":{"_id":"\\udfff"}},'
        b'"ddoc":"\\udc00","name":"\\ud83d"}'
    )
    assert index.columns == ("\ufffd",)
    assert (index.ddoc, index.name) == ("\ufffd", "\ufffd")
    assert json.loads(index.partial) == {"_id": "\ufffd"}


HOSTILE = (
    "'",
    '"',
    "\\\\'",
    "'; DROP TABLE documents; --",
    "\0",
    "]",
    "$a",
    "X''",
    "é<",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_of_a_query_or_an_index_reaches_sql(text):
    name = text.replace("\\", "").replace("$", "\\$")
    stored: dict[str, object] = {"k": {name.replace("\\", ""): text}, text: {"a": text}}
    with closing(Documents(stored)) as documents:
        documents.index(name, name=text, partial={"a": {"$exists": False}})
        documents.index(name, name=f"{text}2")
        for query in ({name: text}, {name: {"$gte": text}}):
            assert documents.keys({"selector": query, "use_index": f"d{text}"}) == ["k"]
            assert documents.keys({"selector": query, "sort": [name]}) == ["k"]
        assert documents.keys({"selector": {"_id": text}}) == [text]
