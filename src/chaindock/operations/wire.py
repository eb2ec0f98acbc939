"""The JSON of the admin API, written and read on both sides.

Imports nothing that is slow to import: the CLI uses it in every command. The routes are
listed in admin.py.
"""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Any

from chaindock.errors import ChaindockError, Code, InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from chaindock.operations.facade import Answer, Call

EVENT_RESULT = "result"
EVENT_ERROR = "error"
NDJSON = "application/x-ndjson"


def encode(data: bytes) -> str:
    """Return `data` as base64 text."""
    return base64.b64encode(data).decode("ascii")


def decode(text: Any, what: str) -> bytes:
    """Return the bytes of base64 `text`, else raise InvalidInput."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise InvalidInput(f"{what} is not base64: found {text!r:.60}") from error


def answer_json(answer: Answer) -> dict[str, Any]:
    """Return the body of an answered call."""
    event = answer.event
    return {
        "status": answer.status,
        "message": answer.message,
        "payload": encode(answer.payload),
        "tx_id": answer.tx_id,
        "block": answer.block,
        "code": answer.code,
        "code_name": answer.code_name,
        "refusals": list(answer.refusals),
        "event": event
        and {"name": event.event_name, "payload": encode(bytes(event.payload))},
    }


def call_json(call: Call) -> dict[str, Any]:
    """Return the request body of `call` (its name is in the path)."""
    return {
        "args": [encode(arg) for arg in call.args],
        "transient": {key: encode(value) for key, value in call.transient.items()},
        "user": call.user,
        "attributes": dict(call.attributes),
        "is_init": call.is_init,
        "timeout_s": call.timeout_s,
    }


def read_call(name: str, body: Any) -> Call:
    """Return the Call of a request body, else raise InvalidInput."""
    from chaindock.operations.facade import Call  # noqa: PLC0415  # start-up time

    if not isinstance(body, dict):
        raise InvalidInput("a call is a JSON object with `args`")
    unknown = sorted(set(body) - _CALL_KEYS)
    if unknown:
        raise InvalidInput(f"unknown key {unknown[0]!r} in a call")
    args = _typed(body, "args", list, [])
    transient = _typed(body, "transient", dict, {})
    timeout_s = body.get("timeout_s")
    if timeout_s is not None and not (
        type(timeout_s) in {int, float} and 0 < timeout_s < _LONGEST_S
    ):
        raise InvalidInput(f"timeout_s is {timeout_s!r}: expected seconds above 0")
    return Call(
        name=name,
        args=[decode(arg, f"argument {at}") for at, arg in enumerate(args)],
        transient={k: decode(v, f"transient {k!r}") for k, v in transient.items()},
        user=_typed(body, "user", str, "User1"),
        attributes={
            key: value if isinstance(value, str) else str(value)
            for key, value in _typed(body, "attributes", dict, {}).items()
        },
        is_init=_typed(body, "is_init", bool, default=False),
        timeout_s=timeout_s,
    )


def dev_json(name: str, version: str | None, *, init_required: bool) -> dict[str, Any]:
    """Return the request body that defines a program started by hand."""
    return {
        "name": name,
        "version": version,
        "init_required": init_required,
        "dev": True,
    }


def read_dev(body: Any) -> dict[str, Any]:
    """Return the checked body of `dev_json`, else raise InvalidInput."""
    from chaindock.ids import (  # noqa: PLC0415  # start-up time
        require_chaincode_name,
        require_version,
    )

    if not isinstance(body, dict) or body.get("dev") is not True:
        raise InvalidInput("expected a JSON object with `dev` true and a `name`")
    version = body.get("version")
    return {
        "name": require_chaincode_name(_typed(body, "name", str, "")),
        "version": None if version is None else require_version(str(version)),
        "init_required": _typed(body, "init_required", bool, default=False),
    }


_CALL_KEYS = {"args", "transient", "user", "attributes", "is_init", "timeout_s"}
_LONGEST_S = 86_400.0


def _typed(body: Mapping[str, Any], key: str, kind: type, default: Any) -> Any:
    value = body.get(key, default)
    if not isinstance(value, kind):
        raise InvalidInput(
            f"{key} of a call is {value!r:.60}: expected {kind.__name__}"
        )
    return value


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
    kind = next((k for k in _tree(ChaindockError) if k.slug == slug), ChaindockError)
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


def _tree(kind: type[ChaindockError]) -> Iterator[type[ChaindockError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _tree(child)
