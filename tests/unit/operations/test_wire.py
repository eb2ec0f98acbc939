"""Errors and answers cross the socket without losing anything."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest

from chaindock import errors
from chaindock.errors import BuildFailed, ChaindockError, Code
from chaindock.operations.wire import pieces, rebuild_error


def tree(kind: type[ChaindockError] = ChaindockError) -> Iterator[type[ChaindockError]]:
    yield kind
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from tree(child)


@pytest.mark.parametrize("kind", list(tree()), ids=lambda kind: kind.slug)
def test_error_comes_back_with_its_class(kind):
    error = kind("what", hint="do", ccid="a", phases=[{"phase": "x", "seconds": 1.5}])
    again = rebuild_error(error.as_dict())
    assert type(again) is kind
    assert again.as_dict() == error.as_dict()


def test_error_of_a_newer_node_keeps_its_code():
    body = BuildFailed("m").as_dict() | {"error": "brand-new", "code": "aborted"}
    again = rebuild_error(body)
    assert (again.code, again.slug) == (Code.ABORTED, "brand-new")
    assert again.as_dict() == body


@pytest.mark.parametrize("body", [None, [], "x", {}, {"message": 1, "facts": 3}])
def test_other_bodies_are_errors_too(body):
    assert isinstance(rebuild_error(body), ChaindockError)


def test_facts_that_are_named_as_arguments_do_no_harm():
    body = {"message": "m", "facts": {"message": "x", "hint": "y", "a": 1}}
    assert rebuild_error(body).facts == {"a": 1}


@pytest.mark.parametrize("size", [0, 1, 3, 196_608, 196_609, 2_000_001])
def test_an_answer_is_encoded_piece_by_piece(size):
    text = 'a"\\é\U0001f600\ud800'
    body = {"status": 200, "payload": bytes(size), "message": text * (size // 6)}
    event: dict[str, Any] = {
        "name": text,
        "payload": b"\xff",
        "none": None,
        "list": [1],
        "empty": {},
    }
    found = list(pieces({**body, "event": event}))
    assert len(found) > size // 200_000
    told = json.loads(b"".join(found))
    assert base64.b64decode(told["payload"]) == body["payload"]
    assert told["message"] == body["message"]
    assert told["event"] == {**event, "payload": "/w=="}
