"""What the admin API takes and returns.

Apart from wire.py, because most commands do without these classes, which take 4 ms.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True)
class Call:
    """One transaction or query as a user asks for it, of the chaincode `name`.

    Args:
        args: function name and arguments, as bytes.
        transient: values that the chaincode sees and the ledger does not.
        user: name of the client identity that signs; made on first use.
        org: MSP id of its organisation; None = the node's first one.
        attributes: put into the certificate of that identity.
        is_init: the call is the chaincode's Init.
        timeout_s: limit for the chaincode's answer; None = chaincode.executetimeout.
        endorsers: MSP ids of the organisations whose peers endorse; none = those that
            the policies need. The first one's peer answers a query; none = the caller's.
        channel: None = the node's first one.
    """

    name: str
    args: Sequence[bytes]
    transient: Mapping[str, bytes] = field(default_factory=dict)
    user: str = "User1"
    attributes: Mapping[str, str] = field(default_factory=dict)
    is_init: bool = False
    timeout_s: float | None = None
    org: str | None = None
    endorsers: Sequence[str] = ()
    channel: str | None = None


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
        policy: the endorsement policy of the definition, as text or path of the channel.
        collections: names of its private data collections.
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
    policy: str = ""
    collections: Sequence[str] = ()


@dataclass(frozen=True)
class Running:
    """One line of `ps`.

    Args:
        state: down, starting, running, stopping, failed, stopped (by the user), back-off
            (it failed and is started again at `next_try`), crash-loop (it failed too
            often, restarts were given up), waiting (for a user's program) or
            not-installed (its definition names no package that is here).
        since: when that state began, ISO 8601 UTC; None when unknown.
        details: `Instance.describe()`: where it is, isolation.
        error: `ChaindockError.as_dict()` of the last failure, if the state is one.
        failures: in a row, without retryable ones.
        last_end: how the last run ended by itself, and when (ISO 8601 UTC), in words;
            None = none did.
        next_try: when it is tried again, ISO 8601 UTC; None = nothing is planned.
        calls: those that are open, oldest first. Each has `tx_id`, `function`, `since`
            (ISO 8601 UTC), `sent` (False: waits for its turn) and `caller_left`.
        policy, collections: of its definition, as in Deployment.
        channel: where it is deployed.
        others: what serves the peers of other organisations, once each was asked: `name`
            is NAME@MSPID, and there is neither `policy` nor `collections`.
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
    policy: str = ""
    collections: Sequence[str] = ()
    channel: str = ""
    others: Sequence[Running] = ()


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
        gateway: where client applications reach the peer of the first organisation:
            `address` (host:port), `tls_name`, `ca` (a file); None = no TLS.
        gateways: the same of each organisation, the first one first, and its `mspid`.
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
    gateway: Mapping[str, str | None] = field(default_factory=dict)
    gateways: Sequence[Mapping[str, str | None]] = ()
    identities: Mapping[str, str] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    pending: Sequence[Mapping[str, str]] = ()
    limits: Mapping[str, int] = field(default_factory=dict)
