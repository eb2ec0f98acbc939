"""What the admin API takes and returns, and its JSON, written and read on both sides.

Imports nothing that is slow to import: the CLI uses it in every command. The routes are
listed in node/admin.py.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from chaindock import errors
from chaindock.errors import ChaindockError, Code

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from chaindock.container.attempt import Event
    from chaindock.endorser.caller import Answer

    Watch = Callable[[Event], None]
    """Takes the events of an attempt; quick, never raises."""

EVENT_RESULT = "result"
EVENT_ERROR = "error"
NDJSON = "application/x-ndjson"


@dataclass(frozen=True)
class Call:
    """One transaction or query as a user asks for it, of the chaincode `name`.

    Args:
        args: function name and arguments, as bytes.
        transient: values that the chaincode sees and the ledger does not.
        user: name of the client identity that signs; made on first use.
        attributes: put into the certificate of that identity.
        is_init: the call is the chaincode's Init.
        timeout_s: limit for the chaincode's answer; None = chaincode.executetimeout.
    """

    name: str
    args: Sequence[bytes]
    transient: Mapping[str, bytes] = field(default_factory=dict)
    user: str = "User1"
    attributes: Mapping[str, str] = field(default_factory=dict)
    is_init: bool = False
    timeout_s: float | None = None


@dataclass(frozen=True)
class Deployment:
    """A chaincode that is up after `deploy` or `start`.

    Args:
        name, version, sequence: its definition.
        package_id: what runs.
        backend: which builder runs it.
        changed: False = the same was deployed already.
        reason: why that builder, in one phrase.
        details: `Instance.describe()`.
        reused: notes of the attempt about earlier builds that were used again.
        phases: [(phase, seconds)] in order.
        seconds: from the request to READY.
    """

    name: str
    version: str
    sequence: int
    package_id: str
    backend: str
    changed: bool = True
    reason: str = ""
    details: Mapping[str, str] = field(default_factory=dict)
    reused: Sequence[str] = ()
    phases: Sequence[tuple[str, float]] = ()
    seconds: float = 0.0


@dataclass(frozen=True)
class Running:
    """One line of `ps`.

    Args:
        state: down, starting, running, stopping, failed, stopped (by the user), back-off
            (it failed and is started again at `next_try`), crash-loop (it failed too
            often, restarts were given up) or waiting (for a user's program).
        since: when that state began, ISO 8601 UTC; None when unknown.
        details: `Instance.describe()`: where it is, isolation.
        error: `ChaindockError.as_dict()` of the last failure, if the state is one.
        failures: in a row, without retryable ones.
        last_end: how the last run ended by itself, and when (ISO 8601 UTC), in words;
            None = none did.
        next_try: when it is tried again, ISO 8601 UTC; None = nothing is planned.
        calls: those that are open, oldest first. Each has `tx_id`, `function`, `since`
            (ISO 8601 UTC) and `caller_left`: whether its caller no longer waits.
    """

    name: str
    version: str
    sequence: int
    package_id: str
    state: str
    backend: str
    since: str | None = None
    details: Mapping[str, str] = field(default_factory=dict)
    error: Mapping[str, Any] | None = None
    failures: int = 0
    last_end: str | None = None
    next_try: str | None = None
    calls: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class NodeStatus:
    """The node itself.

    Args:
        state: starting (until every chaincode that should run was ready once or the node
            gave up), ready or stopping.
        backend: what `auto` chose; `reason` says why.
        endpoints: purpose → address, e.g. {"admin": "unix://…", "chaincode": "…"}.
        identities: name → directory of its MSP, for clients.
        height: blocks on the channel.
        warnings: sentences the user should see.
        pending: what the node waits for while it is starting: {component, reason}.
        limits: of packages, as packaging.Limits names them; a client that packages
            checks them, too, and can name the files that are too large.
    """

    state: str
    version: str
    home: str
    node_id: str
    pid: int
    started: str
    channel: str
    msp_id: str
    height: int
    backend: str
    reason: str = ""
    endpoints: Mapping[str, str] = field(default_factory=dict)
    identities: Mapping[str, str] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    pending: Sequence[Mapping[str, str]] = ()
    limits: Mapping[str, int] = field(default_factory=dict)


def encode(data: bytes) -> str:
    """Return `data` as base64 text."""
    return base64.b64encode(data).decode("ascii")


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
