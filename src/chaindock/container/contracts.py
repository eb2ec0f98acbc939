"""The contracts between callers that launch chaincode and controllers that run it.

A controller does not know its caller, and a caller does not know the controller.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Protocol

from chaindock.container.attempt import Attempt
from chaindock.errors import LaunchFailed
from chaindock.ids import Ccid
from chaindock.options import declared_in, option, setting
from chaindock.packaging.store import StoredPackage
from chaindock.values import (
    Bytes,
    Count,
    Hosts,
    Memory,
    Network,
    Number,
    User,
    Variables,
    Whole,
)


class CallbackListener(Protocol):
    """Where chaincode can dial the node."""

    async def address_on(self, host: str, *names: str) -> str:
        """Listen where this machine is reached as `host`; return host:port to dial.

        Later calls return the same. With TLS, the certificate holds for the returned host, and for `names`, under
        which chaincode may dial the same address.

        Raises: StartFailed when the address cannot be bound.
        """

    async def serve(self, listener: socket.socket, most: int, *names: str) -> None:
        """Take the connections to a listening socket until cancelled, and close it.

        For programs with a network of their own. `most`: connections at once; further
        ones wait. `names`: as in `address_on`.
        """


@dataclass(frozen=True)
class ClientTls:
    """TLS material of one attempt, PEM; its key is never shown."""

    key_pem: str = field(repr=False)
    cert_pem: str
    root_pem: str


@dataclass(frozen=True)
class RunSettings:
    """What a section of `chaindock.chaincodes` can set; None = the default."""

    memory_bytes: Memory | None = option(None, "memory")
    """Memory of the chaincode; 0 = unlimited."""
    cpus: Number | None = option(None, "cpus")
    """Processors of the chaincode; 0 = unlimited."""
    pids: Whole | None = option(None, "pids")
    """Processes and threads of the chaincode; 0 = unlimited."""
    tmp_bytes: Bytes | None = option(None, "tmp")
    """Size of its temporary directory."""
    open_files: Count | None = option(None, "openFiles")
    """Open files of each of its processes."""
    file_bytes: Bytes | None = option(None, "fileSize")
    """Largest file that the chaincode may write."""
    env: Variables = field(default_factory=dict, repr=False, metadata=setting("env"))
    """Environment variables of the chaincode; their values are never shown."""
    network: Network | None = option(None, "network")
    """A network of the engine that the container joins besides the node's own."""
    extra_hosts: Hosts = option((), "extraHosts")
    """Additional lines of /etc/hosts, as host:IP."""
    user: User | None = option(None, "user")
    """uid:gid of the chaincode in its container."""

    @property
    def words(self) -> str:
        """Name the keys that are set, for `ps`; "" = none."""
        return ", ".join(
            one.option.key
            for one in declared_in(RunSettings)
            if getattr(self, one.path) not in (None, (), {})
        )


@dataclass(frozen=True)
class PeerConnection:
    """What a starting chaincode is told about the node, and what it may use."""

    listener: CallbackListener
    msp_id: str
    tls: ClientTls | None = None
    logging: Mapping[str, str] = field(default_factory=dict)
    """CORE_CHAINCODE_LOGGING_LEVEL, _SHIM, _FORMAT as they are to be set."""
    settings: RunSettings = field(default_factory=RunSettings)


@dataclass(frozen=True)
class NodeLabels:
    """Who owns what is started: on every container, network and process."""

    node_id: str
    """Random, made once per home."""
    peer_id: str
    network_id: str
    """As `peer_id`, a part of container and image names (docs/fabric/docker.md)."""


@dataclass(frozen=True)
class BuildEnvironment:
    """What builds need to reach package registries; never given to a running chaincode.

    The defaults are the proxies, registries and CA certificates of the user's own
    environment.
    """

    variables: Mapping[str, str] = field(
        default_factory=dict, metadata=setting("chaindock.build.variables")
    )
    """Additional environment variables of builds, as KEY=VALUE."""
    ca_bundle: Path | None = option(None, "chaindock.ca")
    """File with additional CA certificates for builds, PEM."""


@dataclass(frozen=True)
class DialTls:
    """How the node and a chaincode that serves prove to each other who they are.

    `root_pem` signed the chaincode's certificate; the node shows `cert_pem`, if any.
    `server_name` is the name in the chaincode's certificate; None = the host dialled.
    """

    root_pem: str
    key_pem: str | None = field(default=None, repr=False)
    cert_pem: str | None = None
    server_name: str | None = None


@dataclass(frozen=True)
class Dial:
    """The started chaincode serves on `address`; it may still be booting.

    `address` is host:port, or unix: and the path of a socket. Without `tls` nobody else
    may reach, or take, the address.
    """

    address: str
    tls: DialTls | None = None


class Cause(StrEnum):
    """What ended a run."""

    EXITED = "exited"
    SIGNAL = "signal"
    OOM = "oom"
    NOT_EXECUTABLE = "not-executable"
    NOT_FOUND = "not-found"
    STOPPED = "stopped"
    REMOVED = "removed"
    ENGINE_GONE = "engine-gone"
    NOT_STARTED = "not-started"
    OVERRUN = "overrun"


_SHELL_CODES: Final = {126: Cause.NOT_EXECUTABLE, 127: Cause.NOT_FOUND}
_SHELL_TEXTS: Final[dict[Cause | None, str]] = {
    Cause.NOT_EXECUTABLE: "its program is not executable",
    Cause.NOT_FOUND: "its program was not found",
}


@dataclass(frozen=True)
class Exit:
    """How a run ended."""

    code: int | None
    """Exit code; None when a signal or the engine ended it."""
    signal: int | None = None
    """Number of the signal; None when it exited by itself."""
    oom: bool = False
    """The memory limit ended it."""
    reason: str = ""
    """What the others do not say, one phrase for people."""
    cause: Cause | None = None
    """None = as the others say; without any of them the engine lost it."""

    def __post_init__(self) -> None:
        if self.cause is not None:
            return
        if self.oom:
            cause = Cause.OOM
        elif self.signal is not None:
            cause = Cause.SIGNAL
        elif self.code is None:
            cause = Cause.ENGINE_GONE
        else:
            cause = _SHELL_CODES.get(self.code, Cause.EXITED)
        object.__setattr__(self, "cause", cause)

    @property
    def facts(self) -> dict[str, Any]:
        """`cause`, `exit_code`, `signal`, `oom` as errors carry them."""
        return {
            "cause": str(self.cause),
            "exit_code": self.code,
            "signal": self.signal,
            "oom": self.oom,
        }

    @property
    def text(self) -> str:
        """E.g. `exited with 2`, `was ended by SIGKILL`, `ran out of memory`."""
        text = f"exited with {self.code}"
        if self.oom:
            text = "ran out of memory"
        elif self.signal is not None:
            # A real-time signal has no name.
            names = [one.name for one in signal.Signals if one == self.signal]
            text = f"was ended by {names[0] if names else f'signal {self.signal}'}"
        elif self.code is None:
            text = "ended"
        if self.cause is Cause.OVERRUN:
            return f"was ended: {self.reason}"
        why = _SHELL_TEXTS.get(self.cause, self.reason)
        return f"{text} ({why})" if why else text


class Instance(Protocol):
    """One built chaincode of one ccid: at most one run at a time."""

    @property
    def concurrency(self) -> int | None:
        """Transactions at a time on its stream; None = unlimited."""

    async def start(self, peer: PeerConnection, attempt: Attempt) -> Dial | None:
        """Start a run: phases create, upload, start of `attempt`.

        Whatever an earlier run of this ccid and node left behind is removed first.
        Output of the run goes to `attempt.output`; the last of it may arrive after
        `wait` has returned, and has arrived when `stop` returns.

        Returns: where the node is to dial it; None = it dials the node.
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

    async def probe(self) -> LaunchFailed | None:
        """Try from where the running chaincode is what keeps it from the node.

        Returns None when nothing does, or nothing can be tried. Cancelled, or any error:
        nothing of the trying is left. Raises: EngineError, NotFound.
        """

    def describe(self) -> Mapping[str, str]:
        """Return facts for `ps`: backend, and e.g. container, image, pid, isolation."""


class Builder(Protocol):
    """A way to run chaincode: `docker`, `process` and others to come."""

    @property
    def name(self) -> str:
        """The word users choose it by (`--backend`)."""

    @property
    def keeps_builds(self) -> bool:
        """Whether builds stay for equal packages, in bounded number, until an uninstall."""

    async def build(self, package: StoredPackage, attempt: Attempt) -> Instance:
        """Make the package ready to start, or reuse what an equal build left.

        Phases package, pull, dependencies, compile, image of `attempt`; build output
        goes to `attempt.output`.

        Raises: Unsupported: nobody builds packages of this type. BuildFailed,
            PackageInvalid, SourceInvalid, ToolMissing, EngineError.
        Cancelled, or any error: no process, container or half-made result is left.
        """

    async def discard(self, ccid: Ccid) -> None:
        """Remove what was built for `ccid` alone; it is not running. Idempotent.

        Raises: EngineError.
        """

    async def reap(self) -> int:
        """Remove everything that an earlier process of this node left running.

        Only objects that carry this node's id. Returns how many. Called once, before
        the first build.
        """
