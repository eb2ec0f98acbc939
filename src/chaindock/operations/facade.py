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
    """One transaction or query as a user asks for it, of the chaincode `name`."""

    name: str
    args: Sequence[bytes]
    """Function name and arguments, as bytes."""
    transient: Mapping[str, bytes] = field(default_factory=dict)
    """Values that the chaincode sees and the ledger does not."""
    user: str = "User1"
    """Name of the client identity that signs; made on first use."""
    attributes: Mapping[str, str] = field(default_factory=dict)
    """Put into the certificate of that user."""
    is_init: bool = False
    """The call is the chaincode's Init."""
    timeout_s: float | None = None
    """Limit for the chaincode's answer; None = chaincode.executetimeout."""
    org: str | None = None
    """MSP id of the user's organisation; None = the node's first one."""
    endorsers: Sequence[str] = ()
    """MSP ids of the organisations whose peers endorse; none = those that the policies
    need. The first one's peer answers a query; none = the caller's."""
    channel: str | None = None
    """None = the node's first one."""


@dataclass(frozen=True)
class Deployment:
    """A chaincode that is up after `deploy` or `start`."""

    name: str
    version: str
    sequence: int
    """That of the definition, as name and version."""
    package_id: str
    """What runs."""
    backend: str
    """Which builder runs it."""
    changed: bool = True
    """False = the same was deployed already."""
    reason: str = ""
    """Why that builder, in one phrase."""
    details: Mapping[str, str] = field(default_factory=dict)
    """`Instance.describe()`."""
    reused: Sequence[str] = ()
    """Notes of the attempt about earlier builds that were used again."""
    phases: Sequence[tuple[str, float]] = ()
    """[(phase, seconds)] in order."""
    seconds: float = 0.0
    """From the request to READY."""
    policy: str = ""
    """The endorsement policy of the definition, as text or path of the channel."""
    collections: Sequence[str] = ()
    """Names of its private data collections."""


@dataclass(frozen=True)
class Running:
    """One line of `ps`."""

    name: str
    version: str
    sequence: int
    package_id: str
    state: str
    """One of down, starting, running, stopping, failed, stopped (by the user), back-off
    (it failed and is started again at `next_try`), crash-loop (it failed too often,
    restarts were given up), waiting (for a user's program) and not-installed (its
    definition names no package that is here)."""
    backend: str
    since: str | None = None
    """When that state began, ISO 8601 UTC; None when unknown."""
    details: Mapping[str, str] = field(default_factory=dict)
    """`Instance.describe()`: where it is, isolation."""
    error: Mapping[str, Any] | None = None
    """`ChaindockError.as_dict()` of the last failure, if the state is one."""
    failures: int = 0
    """Failures in a row, without retryable ones."""
    last_end: str | None = None
    """How the last run ended by itself, and when (ISO 8601 UTC), in words; None = none
    did."""
    next_try: str | None = None
    """When it is tried again, ISO 8601 UTC; None = nothing is planned."""
    calls: Sequence[Mapping[str, Any]] = ()
    """Open calls, oldest first. Each has `tx_id`, `function`, `since` (ISO
    8601 UTC), `sent` (False: waits for its turn) and `caller_left`."""
    policy: str = ""
    """Of the definition, as in Deployment."""
    collections: Sequence[str] = ()
    """Of the definition, as in Deployment."""
    channel: str = ""
    """Where it is deployed."""
    others: Sequence[Running] = ()
    """What serves the peers of other organisations, once each was asked: `name` is
    NAME@MSPID, and there is neither `policy` nor `collections`."""


@dataclass(frozen=True)
class NodeStatus:
    """The node itself."""

    state: str
    """`starting` until every chaincode that should run was ready once or the node gave
    it up, then `ready`; at the end `stopping`."""
    version: str
    home: str
    node_id: str
    pid: int
    started: str
    channel: str
    msp_id: str
    height: int
    """Blocks on the channel."""
    backend: str
    """What `auto` chose; `reason` says why."""
    reason: str = ""
    endpoints: Mapping[str, str] = field(default_factory=dict)
    """Purpose → address, e.g. {"admin": "unix://…", "chaincode": "…"}."""
    gateway: Mapping[str, str | None] = field(default_factory=dict)
    """Where client applications reach the peer of the first organisation: `address`
    (host:port), `tls_name`, `ca` (a file); None = no TLS."""
    gateways: Sequence[Mapping[str, str | None]] = ()
    """The same of each organisation, the first one first, and its `mspid`."""
    identities: Mapping[str, str] = field(default_factory=dict)
    """Name → directory of its MSP, for clients."""
    warnings: Sequence[str] = ()
    """Sentences the user should see."""
    pending: Sequence[Mapping[str, str]] = ()
    """What the node waits for while it is starting: {component, reason}."""
    limits: Mapping[str, int] = field(default_factory=dict)
    """Of packages, as packaging.Limits names them; a client that packages checks these
    limits, too, and can name the files that are too large."""
