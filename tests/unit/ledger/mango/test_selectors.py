"""What matches a selector, against the model; and what is refused."""

from __future__ import annotations

import json
import time
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaindock.errors import InvalidInput
from chaindock.ledger.mango import order
from chaindock.ledger.mango.order import _levels, collator, sort_key
from chaindock.ledger.mango.query import parse_query
from chaindock.ledger.mango.selector import parse_selector
from chaindock.ledger.mango.values import parse_document
from support.holds import cpu_of
from support.mango import evaluator
from support.mango.strategies import DOCUMENTS, SELECTORS, TEXTS, VALUES


@settings(max_examples=500, deadline=None)
@given(DOCUMENTS, SELECTORS, st.sampled_from(["plain", "$not", "$nor", "$or"]))
def test_matches_as_the_model(document, selector, wrapped):
    if wrapped == "$not":
        selector = {"$not": selector}
    elif wrapped != "plain":
        selector = {wrapped: [selector, {"a": 1}]}
    document = {**document, "_id": "k"}
    expected = evaluator.holds(selector, document)
    assert parse_selector(selector).matches(document) == expected


@settings(max_examples=500, deadline=None)
@given(DOCUMENTS, SELECTORS, st.booleans())
def test_no_value_that_matches_is_passed_over(document, selector, ascii_only):
    value = json.dumps(document, ensure_ascii=ascii_only).encode(errors="replace")
    parsed = parse_selector({"$and": [selector, {"a": {"$exists": True}}]})
    if parsed.matches({**(parse_document(value) or {}), "_id": "k"}):
        assert parsed.may_match(value)


@pytest.mark.parametrize(
    "text", ["red", "r\\u0065d", "r\u00aded", "re\x7fd", "re\\u0000d", "r\u200ded"]
)
def test_a_text_is_found_however_it_is_written(text):
    value = f'{{"colour":\n "{text}"}}'.encode()
    for condition in ("red", "re\x01d", {"$gte": "red", "$lte": "red"}):
        parsed = parse_selector({"colour": condition})
        assert parsed.matches({**(parse_document(value) or {}), "_id": "k"})
        assert parsed.may_match(value)


@pytest.mark.parametrize(
    "selector",
    [
        {"colour": "red"},
        {"colour": {"$beginsWith": "re"}},
        {"size": {"$gt": 1}},
        {"size": {"$not": {"$mod": [2, 0]}}},
        {"$and": [{"colour": {"$ne": 1}}, {"size": 2}]},
    ],
)
def test_a_value_without_the_texts_of_the_selector_is_passed_over(selector):
    assert not parse_selector(selector).may_match(b'{"colour":"blue","owner":"1red"}')
    assert parse_selector({"$or": [selector]}).may_match(b"{}")
    assert parse_selector({"size": {"$exists": False}}).may_match(b"{}")


@settings(max_examples=300, deadline=None)
@given(VALUES, VALUES)
def test_sort_keys_are_in_the_order_of_the_values(left, right):
    found = (sort_key(left) > sort_key(right)) - (sort_key(left) < sort_key(right))
    assert found == evaluator.compare(left, right)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=6) | TEXTS, max_size=3).map(sorted))
def test_text_of_any_kind_is_in_the_order_of_the_collation(texts):
    for left in texts:
        for right in texts:
            found = (sort_key(left) > sort_key(right)) - (
                sort_key(left) < sort_key(right)
            )
            assert found == evaluator.compare(left, right), (left, right)


@pytest.mark.parametrize(
    ("left", "right"),
    [(2**53, 2**53 + 1), (10**400, 10**401), (-(10**400), -5), (1, 1.5), (-0.0, 0)],
)
def test_large_integers_are_in_order(left, right):
    if max(left, right) < 10**300:
        assert (sort_key(left) < sort_key(right)) == (left < right)
    assert sort_key(left) <= sort_key(right)


def test_strings_are_in_the_order_of_couchdb():
    words = ["`", "^", "_", "-", ",", "a", "A", "aa", "á", "Aa", "b", "B", "ba", "z"]
    found = sorted(words, key=sort_key)
    assert found == [
        "_",
        "-",
        ",",
        "`",
        "^",
        "a",
        "A",
        "á",
        "aa",
        "Aa",
        "b",
        "B",
        "ba",
        "z",
    ]


def test_long_strings_end_in_bytes():
    base = "é" * 5000
    texts = [base + end for end in ("", "\0", "\1", "a", "b")]
    assert sorted(texts, key=sort_key) == texts
    assert len({sort_key(text) for text in texts}) == 5


def test_texts_of_an_array_are_collated_up_to_a_limit_for_all_of_them():
    """A document of 10 MB held the writer for 17 s, and with it each commit."""
    texts = [
        "".join(chr(0xAC00 + (7 * n + at) % 11_000) for at in range(4096))
        for n in range(300)
    ]
    sort_key("é")
    began = time.thread_time()
    sort_key({"a": texts, "é": {"b": [texts[::-1]]}})
    assert time.thread_time() - began < 1
    assert sort_key(["é", "z"]) < sort_key(["é", "ź"]) < sort_key(["ê", "a"])
    arrays = [[*texts[:1], each] for each in ("a", "é", "é" * 100, "한")]
    assert sorted(arrays, key=sort_key) == arrays  # bytewise


def test_many_accents_on_a_letter_are_sorted_in_linear_time():
    """One text had held the event loop for 25 ms."""
    accents = sorted(map(chr, range(0x300, 0x36F)), key=unicodedata.combining)
    text = "a" + "".join(each * 37 for each in reversed(accents))
    sort_key("é")
    spent_s = cpu_of(lambda: sort_key(text[:4096]))
    assert spent_s < 10 * cpu_of(lambda: sort_key("é" * 4096))
    few = "a" + "".join(accents[::-3])
    assert sort_key(few) == sort_key(unicodedata.normalize("NFD", few))


def test_the_table_of_the_collation_is_read_at_once(monkeypatch):
    """Else the first rich query stops the event loop: piece by piece, the thread that reads
    the table takes the interpreter's lock again before the loop can, for 0.1 s."""

    def reads() -> int:
        return int(Path("/proc/self/io").read_text().split()[5])

    monkeypatch.setattr(order, "_collator", None)
    before = reads()
    collator()
    assert reads() - before < 20


HARD = st.text(
    st.sampled_from(
        "aéل\u0e40\u0e01\u0e33\u0eb2\u0ec0ß\u0301\u0327\u0334\u0654\u0653\u0627\u0413\u0438\u0306\u0301한\u1100\u1161\u4e00L\u00b7l\u0387\u0fb2\u0f71\u0f80\u0f72\u0f73\U0001e000\U00010a0f\u0cc6\u0cc2\u0cd5\ud7ff\u0378\u1dfa\u1df6"
    ),
    max_size=12,
)


@settings(max_examples=300, deadline=None)
@given(HARD)
def test_contractions_are_collated_as_by_the_table(text):
    elements = collator().collation_elements(unicodedata.normalize("NFD", text))
    primary, secondary, _ = _levels(text)
    assert primary == b"".join(
        each[0].to_bytes(2, "big") for each in elements if each[0]
    )
    whole = b"".join(each[1].to_bytes(2, "big") for each in elements if each[1])
    assert whole.startswith(secondary)
    assert set(whole[len(secondary) :]) <= {0, 0x20}


@pytest.mark.parametrize(
    ("selector", "document", "expected"),
    [
        ({"a": {"b": 1}}, {"a": {"b": 1, "c": 2}}, True),
        ({"a": {"$eq": {"b": 1}}}, {"a": {"b": 1, "c": 2}}, False),
        ({"a": {"$eq": {"b": 1}}}, {"a": {"b": 1.0}}, True),
        ({"a\\.b": 1}, {"a.b": 1}, True),
        ({"\\$x": 1}, {"$x": 1}, True),
        ({"tags.0": "x"}, {"tags": ["x"]}, True),
        ({"tags.-0": "x"}, {"tags": ["x"]}, True),
        ({"a": {"$ne": 1}}, {}, False),
        ({"a": {"$not": {"$eq": 1}}}, {}, False),
        ({"$not": {"a": 1}}, {}, False),
        ({"a": {"$exists": False}}, {}, True),
        ({"a.b": {"$exists": False}}, {"a": 5}, False),
        ({"a": {"$gt": None}}, {"a": False}, True),
        ({"a": {"$gt": None}}, {"a": None}, False),
        ({"a": {"$mod": [4, -1]}}, {"a": -5}, True),
        ({"a": {"$mod": [4, 3]}}, {"a": -5}, False),
        ({"a": {"$all": [1]}}, {"a": [1.5, 1]}, True),
        ({"a": {"$all": [1.0]}}, {"a": [1]}, False),
        ({"a": {"$all": [[1, 2]]}}, {"a": [1, 2]}, True),
        ({"a": {"$in": [[1, 2]]}}, {"a": [1, 2]}, False),
        ({"a": {"$in": [1.0]}}, {"a": [5, 1]}, True),
        ({"a": {"$keyMapMatch": {"$eq": "k"}}}, {"a": {"k": 1}}, True),
        ({"a": {"$elemMatch": {"$nor": [{"$eq": 1}]}}}, {"a": [2]}, False),
        ({"a": {"$elemMatch": {"$not": {"b": 1}}}}, {"a": [{}]}, True),
        ({"a": {"$regex": "^é.$"}}, {"a": "é1"}, True),
        ({"a": {"$or": []}}, {}, True),
        ({"_id": {"$gt": "Z"}}, {"_id": "a"}, True),
        ({"_id": {"$gt": "a"}}, {"_id": "Z"}, False),
        ({"_id": {"$gt": [1]}}, {"_id": "Z"}, True),
    ],
)
@pytest.mark.statement(73, of="client")
def test_single_rules(selector, document, expected):
    document = {"_id": "k", **document}
    assert parse_selector(selector).matches(document) is expected


HEAD = "error handling CouchDB request. Error:"


@pytest.mark.parametrize(
    ("selector", "text"),
    [
        (5, "invalid_selector_json,  Status Code:400,  Reason:Selector must be a JSON object, not: 5"),
        ({"$gt": 1}, "invalid_selector,  Status Code:400,  Reason:One or more conditions is missing a field name."),
        ({"a": {"$foo": 1}}, "invalid_operator,  Status Code:400,  Reason:Invalid operator: $foo"),
        ({"a": {"$in": "abc"}}, "bad_arg,  Status Code:400,  Reason:Bad argument for operator $in: <<97,98,99>>"),
        ({"a": {"$exists": 1}}, "bad_arg,  Status Code:400,  Reason:Bad argument for operator $exists: 1"),
        ({"a": {"$size": -1}}, "bad_arg,  Status Code:400,  Reason:Bad argument for operator $size: -1"),
        ({"a": {"$size": True}}, "bad_arg,  Status Code:400,  Reason:Bad argument for operator $size: true"),
        ({"a": {"$mod": [1.5, 0]}}, "bad_arg,  Status Code:400,  Reason:Bad argument for operator $mod: [1.5,0]"),
        ({"a": {"$regex": "("}}, "bad_arg,  Status Code:400,  Reason:Bad argument for operator $regex: <<40>>"),
        ({"$and": {"a": None}}, "bad_arg,  Status Code:400,  Reason:Bad argument for operator $and: {[{<<97>>,null}]}"),
        ({"$not": [1]}, "bad_arg,  Status Code:400,  Reason:Bad argument for operator $not: [1]"),
        ({"a": {"$where": "1"}}, "not_supported,  Status Code:400,  Reason:Unsupported operator: $where"),
        ({"a..b": 1}, "invalid_field_name,  Status Code:400,  Reason:Invalid field name: a..b"),
    ],
)  # fmt: skip
def test_errors_are_those_of_couchdb(selector, text):
    with pytest.raises(InvalidInput) as error:
        parse_selector(selector)
    assert error.value.message == HEAD + text


# --- hostile queries ------------------------------------------------------------------


def test_a_selector_has_few_conditions():
    with pytest.raises(InvalidInput, match="more than 1000 conditions"):
        parse_selector({"$or": [{"a": n} for n in range(1001)]})


@pytest.mark.parametrize("part", ['{"$not":', "[", '{"a":'])
def test_a_deep_query_is_refused(part):
    with pytest.raises(InvalidInput, match=r"levels|unexpected EOF|max depth"):
        parse_query('{"selector":' + part * 30_000)
    closing = {"[": "]"}.get(part, "}")
    with pytest.raises(InvalidInput, match=r"levels|bad_arg"):
        parse_query('{"selector":' + part * 100 + "1" + closing * 100 + "}")


@pytest.mark.parametrize(
    "pattern", ["(a+)+$", "(a|aa)+$", "(x+x+)+y", "^(([a-z])+.)+$"]
)
def test_a_hostile_pattern_takes_linear_time(pattern):
    selector = parse_selector({"a": {"$regex": pattern}})
    began = time.perf_counter()
    selector.matches({"a": "a" * 100_000 + "!"})
    assert time.perf_counter() - began < 1


@pytest.mark.parametrize(
    ("conditions", "told"),
    [
        ([{"a": {"$regex": ".{0,1000}" * 100}}], "Bad argument for operator"),
        ([{"a": {"$regex": ".?" * 100_000}}], "Bad argument for operator"),
        (
            [{"a": {"$regex": f"{n}" + ".?" * 1000}} for n in range(900)],
            "more than 1000",
        ),
    ],
)
def test_what_takes_long_to_compile_is_refused(conditions, told):
    """The interpreter's lock is held meanwhile: the first one took 26 s."""
    began = time.thread_time()
    with pytest.raises(InvalidInput, match=told):
        parse_selector({"$or": conditions})
    assert time.thread_time() - began < 0.5


def test_a_large_pattern_over_a_long_text_is_refused():
    selector = parse_selector({"a": {"$regex": "[ab]*a[ab]{300}c"}})
    with pytest.raises(InvalidInput, match="takes too long"):
        selector.matches({"a": "ab" * 500_000})


COSTLY = "[ab]*a[ab]{300}c"
LONG = "ab" * 10_000  # alone 0.1 s for this pattern


@pytest.mark.parametrize(
    ("selector", "document"),
    [
        ({"a": {"$elemMatch": {"$regex": COSTLY}}}, {"a": [LONG] * 100}),
        ({"$or": [{"a": {"$regex": f"{COSTLY}{n}"}} for n in range(100)]}, {"a": LONG}),
        ({"$or": [{"a": [n]} for n in range(1000)]}, {"a": list(range(100_000))}),
        ({"$or": [{"a": {"$in": [n]}} for n in range(-1000, 0)]}, {"a": list(range(100_000))}),
        ({"$or": [{"a": {"$all": [n]}} for n in range(-1000, 0)]}, {"a": list(range(100_000))}),
        ({"a": {"$elemMatch": {"$or": [{"$eq": n} for n in range(-900, 0)]}}}, {"a": list(range(100_000))}),
        ({"$or": [{"a": f"{n}"} for n in range(1000)]}, {"a": "é" * 4096 + "x" * 1_000_000}),
    ],
)  # fmt: skip
def test_all_conditions_together_take_bounded_time_for_one_document(selector, document):
    """They run on the event loop, where each step makes all other calls wait."""
    parsed = parse_selector(selector)
    began = time.thread_time()
    with pytest.raises(InvalidInput, match=r"takes? too long|conditions on elements"):
        parsed.matches(document)
    assert time.thread_time() - began < 4
    assert not parsed.matches({"a": 5})  # what was done counts for one document


def test_types_that_differ_decide_without_a_look_at_the_elements():
    selector = parse_selector({"$and": [{"a": {"$gt": None}}] * 900})
    assert selector.matches({"a": list(range(100_000))})
    assert not parse_selector({"a": {"$gte": {}}}).matches({"a": [1]})


def test_conditions_on_elements_of_elements_are_bounded():
    inner: dict[str, object] = {"$gt": 5}
    for _ in range(8):
        inner = {"$elemMatch": {"$or": [inner, inner]}} if _ else {"$elemMatch": inner}
    value: object = list(range(5))
    for _ in range(7):
        value = [value] * 5
    selector = parse_selector({"a": inner})
    with pytest.raises(InvalidInput, match="conditions on elements"):
        selector.matches({"a": value})
