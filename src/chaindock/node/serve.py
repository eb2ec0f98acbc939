"""Put the node together and keep it up until somebody asks it to end.

Parts are left in the opposite order of entering, also after an error half-way. What a
killed node left is removed before the first launch.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import resource
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final

from chaindock.chaincode.launcher import RuntimeLauncher
from chaindock.chaincode.registry import HandlerRegistry
from chaindock.chaincode.server import ChaincodeListener
from chaindock.chaincode.support import ChaincodeSupport
from chaindock.config.sections import Config
from chaindock.container.attempt import Attempt
from chaindock.container.contracts import ClientTls, NodeLabels, PeerConnection
from chaindock.container.output import Echo, OutputStore
from chaindock.container.router import Router
from chaindock.durable import sync_folder
from chaindock.gateway import broadcast, deliver, discovery, gateway, peer, probes
from chaindock.gateway.blocks import Feeds
from chaindock.gateway.calls import Service
from chaindock.gateway.listener import ClientListener
from chaindock.gateway.seat import Seat, named
from chaindock.identity.ca import TlsAuthority
from chaindock.identity.organization import Organization, Organizations
from chaindock.ids import Ccid, split_peer
from chaindock.lifecycle.custodian import Custodian
from chaindock.lifecycle.deploy import Deployer
from chaindock.lifecycle.deployments import Fleet
from chaindock.lifecycle.packages import Packages
from chaindock.lifecycle.states import BY_HAND
from chaindock.lifecycle.targets import TargetState
from chaindock.node.admin import AdminServer
from chaindock.node.backends import Backends
from chaindock.node.channels import Channels
from chaindock.node.connections import Connections
from chaindock.node.elsewhere import Elsewhere
from chaindock.node.facade import Node
from chaindock.node.home import Home
from chaindock.operations.facade import NodeStatus
from chaindock.operations.health import Health, Parts
from chaindock.operations.http import OperationsServer
from chaindock.packaging.store import PackageStore
from chaindock.processes.folders import write_tls
from chaindock.telemetry import get_logger
from chaindock.values import MIB

_log = get_logger("node")
WANTED: Final = 12_288
"""Open files: 2500 proposals, or as many connections as `chaincode/crowd.py` allows."""
_MOST_ON_MACOS: Final = 10_240
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_RESERVED: Final = 500
"""Open files that proposals leave to listeners, streams with chaincode and output."""
_PER_PROPOSAL: Final = 3
"""A client's socket, and the database and its log when no other proposal reads them."""


async def serve(config: Config, ready: Callable[[NodeStatus], None]) -> None:
    """Run the node of `config.home` until its admin API is told to stop.

    `ready` is called once with how the node is, when the admin API answers; it is quick.

    Raises: NodeAlreadyRunning, NodeError, LedgerError and others when it cannot start.
    Cancelled: the node goes down in order, then the cancellation is raised.
    """
    map_large_blocks()
    raise_limit()  # a listener asks for it when it starts
    home = Home(config.home)
    home.prepare()
    async with AsyncExitStack() as stack:
        stack.enter_context(home.locked())
        health = Health()
        operations = await stack.enter_async_context(
            OperationsServer(config.operations, health)
        )
        node = await _compose(config, home, stack, health, operations)
        await stack.enter_async_context(AdminServer(home.root, node, config.admin))
        for problem in config.chaincodes.problems():
            _log.warning("settings ignored", problem=problem.message)
        status = node.status()
        _log.info("node ready", home=status.home, height=status.height)
        ready(status)
        # Collections of garbage leave out what is there now, mostly modules: a full one
        # held the event loop for 50 ms, and was a twentieth of the work of a submit.
        gc.collect()
        gc.freeze()
        try:
            await node.stopping.wait()
        finally:
            health.going_down = True
            _log.info("node stopping")


async def _compose(
    config: Config,
    home: Home,
    stack: AsyncExitStack,
    health: Health,
    operations: OperationsServer,
) -> Node:
    node_id = home.node_id()
    # Two nodes on one engine must not take each other's container names (W64).
    peer_id = config.node.peer_id or f"peer0-{node_id}"
    labels = NodeLabels(node_id, peer_id, config.node.network_id)
    organizations = await asyncio.to_thread(_organizations, config, home)
    store = PackageStore(home.packages, config.packages)
    output = OutputStore(home.output, config.output)
    targets = stack.enter_context(TargetState(home.desired))
    fleet = Fleet(targets)
    sync_folder(home.root)

    registry = HandlerRegistry(admit_unlaunched=config.stream.mode == "dev")
    authority = TlsAuthority() if config.listen.tls else None
    listener = await stack.enter_async_context(
        ChaincodeListener(registry, config.stream, config.listen, authority)
    )
    if config.stream.mode == "dev":
        await stack.enter_async_context(programs_admitted(listener, home.programs))
    backends = await Backends.enter(config, labels, stack, targets)
    router = Router(backends)

    def new_attempt(ccid: Ccid) -> Attempt:
        attempt = Attempt(ccid, output.open(ccid))
        attempt.echo = Echo(ccid, attempt.id, "info" if config.output.echo else "debug")
        return attempt

    elsewhere = Elsewhere(fleet)

    def peer_for(attempt: Attempt) -> PeerConnection:
        ccid, mspid = split_peer(attempt.ccid)
        usual = config.chaincodes.of(ccid, fleet.names_of(ccid)).run
        return PeerConnection(
            listener,
            mspid or organizations.first.mspid,
            tls=_client_tls(authority),
            logging=config.node.chaincode_logging,
            settings=elsewhere.settings(ccid, usual),
        )

    launcher = RuntimeLauncher(
        registry,
        lambda ccid: asyncio.to_thread(store.get, ccid),
        router,
        peer_for,
        options=config.launch,
        stream=config.stream,
    )
    custodian = await stack.enter_async_context(
        Custodian(
            launcher,
            config.custodian,
            new_attempt=new_attempt,
            name_of=lambda ccid: next(iter(fleet.names_of(ccid)), ccid),
            by_hand=lambda ccid: targets.placement(ccid).given == BY_HAND,
            serves=lambda mspid: mspid not in organizations.stopped,
        )
    )
    packages = await stack.enter_async_context(
        Packages(store, fleet, custodian, partial(router.discard, purge=True))
    )

    executor = ChaincodeSupport(
        registry,
        custodian.ready,
        config.calls,
        timeout_of=config.chaincodes.timeout_of,
        process_of=partial(_process_of, config, organizations),
    )
    channels = await stack.enter_async_context(
        Channels(
            config,
            home,
            organizations,
            fleet=fleet,
            packages=packages,
            deployer=partial(
                Deployer,
                packages=packages,
                custodian=custodian,
                attempts=new_attempt,
                by_hand=config.stream.mode == "dev",
            ),
            executor=executor,
            concurrency=proposals_at_once(config.node.proposals),
        )
    )
    output.drop_former(fleet.ccids())
    await packages.restore()
    for channel in channels.values():
        await channel.deployer.restore()
    clients = await stack.enter_async_context(
        ClientListener(config.gateway, _services(config, channels, organizations))
    )
    connections = Connections(
        home.connections,
        organizations,
        channels,
        clients,
        client_auth=config.gateway.tls and config.gateway.client_auth,
    )
    node = Node(
        config=config,
        labels=labels,
        channels=channels,
        connections=connections,
        fleet=fleet,
        packages=packages,
        custodian=custodian,
        elsewhere=elsewhere,
        backends=backends,
        listener=listener,
        clients=clients,
        output=output,
        health=health,
        operations=operations,
    )
    await node.follow()  # who can change a channel finds one that follows
    first = clients.connection(organizations.first.mspid)
    channels.orderer = named(first["address"] or "")
    health.parts = Parts(channels, fleet, custodian, backends.check, node.ps)
    return node


def _process_of(config: Config, organizations: Organizations, mspid: str) -> str:
    """Return whose processes serve the peer of an organisation: `ChaincodeSupport`."""
    apart = config.launch.per_organization and config.stream.mode != "dev"
    other = apart and mspid != organizations.first.mspid
    return mspid if other and organizations.find(mspid) else ""


def _client_tls(authority: TlsAuthority | None) -> ClientTls | None:
    """Return a new certificate for the chaincode of one attempt; None = without TLS."""
    if authority is None:
        return None
    pair = authority.issue_client()
    return ClientTls(pair.key_pem, pair.cert_pem, authority.root_pem)


def _services(
    config: Config, channels: Channels, organizations: Organizations
) -> Sequence[Callable[[Seat], Service]]:
    """Return what makes the services that clients find at each peer of the node."""
    options = config.gateway
    execute_s, feeds = config.calls.execute_timeout_s, Feeds()
    window_s, proposals = options.time_window_s, config.node.proposals
    return [
        partial(gateway.service, channels, options, execute_s, feeds),
        partial(peer.service, channels, organizations, window_s, proposals),
        partial(discovery.service, channels, organizations, options),
        probes.health,
        *(partial(probes.reflection, version) for version in ("v1", "v1alpha")),
        partial(deliver.service, channels, feeds, options),
        partial(broadcast.service, channels, feeds, options),
    ]


def _organizations(config: Config, home: Home) -> Organizations:
    """Load the organisations of a home; make the first one on first use. Blocks."""
    folder, node = home.organizations, config.node
    first = Organization.open(folder, node.msp_id, node.domain)
    return Organizations(folder, first)


def map_large_blocks() -> None:
    """Have glibc map blocks of 16 MiB and more, which then grow without being copied.

    With its own limit of 32 MiB, a message of 60 MiB held the loop for 15 to 30 ms
    instead of 8. With one below 10 MiB, many large values would be mapped anew.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(_M_MMAP_THRESHOLD, 16 * MIB)
        mallopt(_M_TRIM_THRESHOLD, 32 * MIB)


def raise_limit() -> int:
    """Raise the soft limit of open files as far as `WANTED`; return the soft limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED if hard == resource.RLIM_INFINITY else min(WANTED, hard)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return WANTED if soft == resource.RLIM_INFINITY else soft
    for files in (wanted, min(wanted, max(soft, _MOST_ON_MACOS))):
        with suppress(ValueError, OSError):  # a system may allow less than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
            break
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def proposals_at_once(concurrency: int) -> int:
    """Raise the limit of open files; return how many proposals to allow at once.

    `concurrency` is as configured; 0 = as many as the open files allow.
    """
    files = raise_limit()
    possible = max(1, (files - _RESERVED) // _PER_PROPOSAL)
    if concurrency > possible:
        _log.warning(
            "fewer proposals at once than configured: raise the limit of open files "
            "(ulimit -n)",
            configured=concurrency,
            allowed=possible,
            open_files=files,
        )
    return min(concurrency or possible, possible)


# --- programs that a user starts by hand (chaincode.mode: dev) ----------------------


@asynccontextmanager
async def programs_admitted(
    listener: ChaincodeListener, folder: Path
) -> AsyncIterator[None]:
    """Listen for programs; keep their TLS files in `folder` until this is left.

    The names of the files are those that launched chaincode gets.

    Raises: StartFailed when the address cannot be bound.
    """
    address, tls = await listener.listen_for_programs()
    try:
        await asyncio.to_thread(_fill, folder, tls)
        files = str(folder) if tls else None
        _log.info("programs started by hand dial here", address=address, tls=files)
        yield
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def _fill(folder: Path, tls: ClientTls | None) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # of a node that was killed
    if tls is not None:
        write_tls(tls, folder)
