"""The errors of CouchDB that a query can meet, with Fabric's text around them.

Source: docs/fabric/rich-queries.md#errors
"""

from __future__ import annotations

from typing import Any

from chaindock.errors import InvalidInput


def refused(error: str, reason: str, status: int = 400) -> InvalidInput:
    """Return the error for an answer of CouchDB other than 200."""
    return InvalidInput(
        f"error handling CouchDB request. Error:{error},  Status Code:{status},  "
        f"Reason:{reason}"
    )


def bad_argument(operator: str, argument: Any) -> InvalidInput:
    """Return the error for an argument of another type than the operator's."""
    return refused(
        "bad_arg", f"Bad argument for operator {operator}: {erlang(argument)}"
    )


def erlang(value: Any) -> str:
    """Return JSON as Erlang prints it (`~w`): text is a list of its bytes."""
    if isinstance(value, str):
        return "<<" + ",".join(map(str, value.encode(errors="replace"))) + ">>"
    if isinstance(value, list):
        return "[" + ",".join(map(erlang, value)) + "]"
    if isinstance(value, dict):
        pairs = (f"{{{erlang(name)},{erlang(value[name])}}}" for name in sorted(value))
        return "{[" + ",".join(pairs) + "]}"
    if isinstance(value, float):
        digits, _, exponent = repr(value).partition("e")
        digits += "" if "." in digits else ".0"
        return f"{digits}e{int(exponent)}" if exponent else digits
    return "null" if value is None else str(value).lower()
