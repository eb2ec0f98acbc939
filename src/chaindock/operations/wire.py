"""The JSON of the admin API, written and read on both sides.

Imports nothing that is slow to import: the CLI uses it in every command.
Source: docs/admin-api.md
"""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any, Final

from chaindock import errors
from chaindock.errors import ChaindockError, Code

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chaindock.endorser.caller import Answer
    from chaindock.operations.facade import Call

EVENT_RESULT = "result"
EVENT_ERROR = "error"
NDJSON = "application/x-ndjson"
_PIECE: Final = 3 << 16
"""Bytes or characters that are encoded at a time; base64 takes multiples of 3."""


def encode(data: bytes) -> str:
    """Return `data` as base64 text."""
    return base64.b64encode(data).decode("ascii")


def pieces(value: Any) -> Iterator[bytes]:
    """Yield `value` as JSON, bytes in it as base64 text.

    What a contract answers may be large: encoding a piece takes a fraction of a
    millisecond, encoding all of it at once would stop the event loop.
    """
    if isinstance(value, dict):
        before = b"{"
        for key, one in value.items():
            yield before + json.dumps(key).encode() + b": "
            yield from pieces(one)
            before = b", "
        yield b"}" if value else b"{}"
    elif isinstance(value, str | bytes):
        yield b'"'
        for start in range(0, len(value), _PIECE):
            part = value[start : start + _PIECE]
            yield (
                base64.b64encode(part)
                if isinstance(part, bytes)
                else json.dumps(part)[1:-1].encode()
            )
        yield b'"'
    else:
        yield json.dumps(value).encode()


def answer_json(answer: Answer) -> dict[str, Any]:
    """Return the body of an answered call; `pieces` encodes the bytes in it."""
    event = answer.event
    return {
        "status": answer.status,
        "message": answer.message,
        "payload": answer.payload,
        "tx_id": answer.tx_id,
        "block": answer.block,
        "code": answer.code,
        "code_name": answer.code_name,
        "refusals": list(answer.refusals),
        "conflict": answer.conflict,
        "unmet": answer.unmet,
        "event": event and {"name": event.event_name, "payload": bytes(event.payload)},
    }


def call_json(call: Call) -> dict[str, Any]:
    """Return the request body of `call`; its name and channel are in the address."""
    told = vars(call) | {
        "args": [encode(arg) for arg in call.args],
        "transient": {key: encode(value) for key, value in call.transient.items()},
    }
    return {key: one for key, one in told.items() if key not in {"name", "channel"}}


def internal_error(error: BaseException) -> dict[str, Any]:
    """Return the body for an unexpected error; its traceback is in the node's log."""
    return ChaindockError(
        f"unexpected {type(error).__name__} in the node: {error}",
        hint="this is a defect of Chaindock; the node's log holds the trace",
    ).as_dict()


def rebuild_error(body: Any) -> ChaindockError:
    """Return the error whose `as_dict()` arrived, with its class where known."""
    if not isinstance(body, dict) or "message" not in body:
        return ChaindockError(f"the node answered something unknown: {body!r:.200}")
    slug = body.get("error")
    known = (kind for kind in vars(errors).values() if isinstance(kind, type))
    kind = next(
        (k for k in known if issubclass(k, ChaindockError) and k.slug == slug),
        ChaindockError,
    )
    facts = body.get("facts")
    facts = facts if isinstance(facts, dict) else {}
    error = kind(
        str(body["message"]),
        hint=body.get("hint"),
        **{k: v for k, v in facts.items() if k not in {"message", "hint"}},
    )
    if kind is ChaindockError and body.get("code") in set(Code):
        error.__dict__["code"] = Code(body["code"])
        error.__dict__["slug"] = str(slug)
    return error
