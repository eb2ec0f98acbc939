"""The contracts between whoever wants a chaincode run and whoever can run it.

Owns:    Builder, Instance, CallbackListener; the values that pass between them.
Not:     choosing a builder (router.py), remembering builds (build_registry.py).
Entry:   Builder, Instance
Holds:   a controller never learns who asked; the asker never learns which controller.
Source:  launch.md §3, §4, §5
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from chaindock.container.attempt import Attempt
    from chaindock.errors import ChaindockError
    from chaindock.ids import Ccid
    from chaindock.packaging.store import StoredPackage


class CallbackListener(Protocol):
    """Where chaincode can dial the node."""

    async def address_on(self, host: str) -> str:
        """Listen on `host` (once; later calls return the same) and return host:port.

        Raises: StartFailed when the address cannot be bound.
        """


@dataclass(frozen=True)
class ClientTls:
    """TLS material of one attempt, PEM (launch.md §3.7)."""

    key_pem: str
    cert_pem: str
    root_pem: str


@dataclass(frozen=True)
class PeerConnection:
    """What a starting chaincode is told about the node."""

    listener: CallbackListener
    msp_id: str
    tls: ClientTls | None = None
    logging: Mapping[str, str] = field(default_factory=dict)
    """CORE_CHAINCODE_LOGGING_LEVEL, _SHIM, _FORMAT as they are to be set."""


@dataclass(frozen=True)
class NodeLabels:
    """Who owns what is started: on every container, network, volume and process.

    Args:
        node_id: random, made once per home.
        peer_id, network_id: parts of container and image names (launch.md §3.1).
    """

    node_id: str
    peer_id: str
    network_id: str


@dataclass(frozen=True)
class BuildEnvironment:
    """What builds need to reach package registries; never given to a running chaincode.

    Args:
        variables: proxy and registry settings as the user has them.
        ca_bundle: PEM file with extra CA certificates (a corporate proxy's).
    """

    variables: Mapping[str, str] = field(default_factory=dict)
    ca_bundle: Path | None = None


@dataclass(frozen=True)
class CallsBack:
    """The started chaincode dials the node."""


@dataclass(frozen=True)
class Dial:
    """The started chaincode serves at `address` (host:port); it may still be booting."""

    address: str


@dataclass(frozen=True)
class Exit:
    """How a run ended.

    Args:
        code: exit code; None when a signal or the engine ended it.
        signal: number of the signal; None when it exited by itself.
        oom: the memory limit ended it.
        reason: one phrase for people.
    """

    code: int | None
    signal: int | None = None
    oom: bool = False
    reason: str = ""


@dataclass(frozen=True)
class Declined:
    """A builder's answer that it cannot take a package here, and why.

    Args:
        reason: one phrase.
        error: what to raise when nobody else may be asked; None = it is not its kind of
            package.
    """

    reason: str
    error: ChaindockError | None = None


class Instance(Protocol):
    """One built chaincode of one ccid: at most one run at a time."""

    @property
    def concurrency(self) -> int | None:
        """Transactions at a time on its stream; None = unlimited."""

    async def start(self, peer: PeerConnection, attempt: Attempt) -> CallsBack | Dial:
        """Start a run: phases create, upload, start of `attempt`.

        Whatever an earlier run of this ccid and node left behind is removed first.
        Output of the run goes to `attempt.output` until it ends.

        Raises: StartFailed, EngineError, ContainerExists (a foreign one), and
            ImageNotFound, after which the owner builds again.
        Cancelled, or any error: nothing of the run is left.
        """

    async def wait(self) -> Exit:
        """Wait until the current run has ended. Any number of waiters.

        Before the first start, and after `stop`, it returns the last Exit at once.
        """

    async def stop(self, grace_s: float) -> None:
        """End the run: SIGTERM, `grace_s`, SIGKILL, removal, verified.

        Idempotent; harmless before start. After it nothing of the run exists.
        """

    def describe(self) -> Mapping[str, str]:
        """Return facts for `ps`: backend, and e.g. container, image, pid, isolation."""


class Builder(Protocol):
    """A way to run chaincode: `docker`, `process` and others to come."""

    @property
    def name(self) -> str:
        """The word users choose it by (`--backend`)."""

    async def build(
        self, package: StoredPackage, attempt: Attempt
    ) -> Instance | Declined:
        """Make the package ready to start, or reuse what an equal build left.

        Phases package, pull, dependencies, compile, image of `attempt`; build output
        goes to `attempt.output`.

        Raises: BuildFailed, PackageInvalid, SourceInvalid, ToolMissing, EngineError.
        Cancelled, or any error: no process, container or half-made result is left.
        """

    async def discard(self, ccid: Ccid) -> int:
        """Remove what was built for `ccid` alone; it is not running. Idempotent.

        What equal packages would use again may be kept, in bounded number.

        Returns: how many objects were removed.
        Raises: EngineError.
        """

    async def reap(self) -> int:
        """Remove everything that an earlier process of this node left running.

        Only objects that carry this node's id. Returns how many. Called once, before
        the first build.
        """
