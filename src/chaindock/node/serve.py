"""Put the node together and keep it up until somebody asks it to end.

Parts are left in the opposite order of entering, also after an error half-way. What a
killed node left is removed before the first launch.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING

from chaindock.chaincode.launcher import RuntimeLauncher
from chaindock.chaincode.registry import HandlerRegistry
from chaindock.chaincode.runtime import ContainerRuntime
from chaindock.chaincode.server import ChaincodeListener
from chaindock.chaincode.support import ChaincodeSupport
from chaindock.container.contracts import ClientTls, NodeLabels, PeerConnection
from chaindock.container.output import OutputStore
from chaindock.container.router import Router
from chaindock.endorser.caller import Caller, DefinitionWriter
from chaindock.endorser.checks import TransactionChecks
from chaindock.endorser.endorser import Endorser
from chaindock.endorser.genesis import genesis_envelope
from chaindock.endorser.orderer import Orderer
from chaindock.identity.ca import TlsAuthority
from chaindock.identity.organization import Organization
from chaindock.ids import Ccid, require_channel
from chaindock.ledger.ledger import Ledger
from chaindock.lifecycle.custodian import Custodian
from chaindock.lifecycle.definitions import NAMESPACE, Definitions, LifecycleContract
from chaindock.lifecycle.deploy import BY_HAND, Deployer
from chaindock.lifecycle.targets import TargetState
from chaindock.node.backends import Backends
from chaindock.node.facade import Node
from chaindock.node.home import Home, HomeLock
from chaindock.node.open_files import proposals_at_once
from chaindock.node.programs import programs_admitted
from chaindock.node.watched import NodeWatch, WatchedParts
from chaindock.operations.admin import AdminServer
from chaindock.packaging.store import PackageStore
from chaindock.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from chaindock.config.sections import Config
    from chaindock.container.attempt import Attempt
    from chaindock.operations.facade import NodeStatus
    from chaindock.packaging.store import StoredPackage

_log = get_logger("node")


async def serve(config: Config, ready: Callable[[NodeStatus], None]) -> None:
    """Run the node of `config.home` until its admin API is told to stop.

    Args:
        config: everything that was set.
        ready: called once with how the node is, when the admin API answers; quick.

    Raises:
        NodeAlreadyRunning, NodeError, LedgerError and others when it cannot start.
    Cancelled: it goes down in order, then the cancellation goes on.
    """
    home = Home(config.home)
    home.prepare()
    async with AsyncExitStack() as stack:
        stack.enter_context(HomeLock(home))
        watch = await stack.enter_async_context(
            NodeWatch(config.operations, config.output)
        )
        node = await _compose(config, home, stack, watch)
        await stack.enter_async_context(AdminServer(home.root, node, config.admin))
        for problem in config.chaincodes.problems():
            _log.warning("settings ignored", problem=problem.message)
        _log.info("node ready", home=str(home.root), height=node.height())
        ready(node.status())
        try:
            await node.stopping()
        finally:
            watch.going_down()
            _log.info("node stopping")


async def _compose(
    config: Config, home: Home, stack: AsyncExitStack, watch: NodeWatch
) -> Node:
    channel = require_channel(config.node.channel)
    node_id = home.node_id()
    # Two nodes on one engine must not take each other's container names (W64).
    peer_id = config.node.peer_id or f"peer0-{node_id}"
    labels = NodeLabels(node_id, peer_id, config.node.network_id)
    organization = await asyncio.to_thread(
        Organization.open, home.organizations, config.node.msp_id, config.node.domain
    )
    ledger = await stack.enter_async_context(
        Ledger(
            home.ledger(channel),
            channel,
            organization.orderer,
            partial(genesis_envelope, channel, organization.msp, config.orderer),
        )
    )
    packages = PackageStore(home.packages, config.packages)
    output = OutputStore(home.output, config.output)
    targets = stack.enter_context(TargetState(home.desired))
    output.drop_former(targets.ccids())
    home.sync()

    registry = HandlerRegistry(admit_unlaunched=config.stream.admit_unlaunched)
    authority = TlsAuthority() if config.listen.tls else None
    listener = await stack.enter_async_context(
        ChaincodeListener(registry, config.stream, config.listen, authority)
    )
    if config.stream.admit_unlaunched:
        await stack.enter_async_context(programs_admitted(listener, home.programs))
    backends = await Backends.enter(config, labels, stack, targets)
    router = Router(backends)

    def new_attempt(ccid: Ccid) -> Attempt:
        return watch.attempt(ccid, output.open(ccid))

    def peer_for(attempt: Attempt) -> PeerConnection:
        names = targets.names_of(attempt.ccid)
        return PeerConnection(
            listener,
            organization.mspid,
            tls=None if authority is None else _client_tls(authority),
            logging=config.node.chaincode_logging,
            settings=config.chaincodes.of(attempt.ccid, names).run,
        )

    launcher = RuntimeLauncher(
        registry,
        ContainerRuntime(_Packages(packages), router, config.launch),
        peer_for,
        options=config.launch,
        stream=config.stream,
    )
    custodian = await stack.enter_async_context(
        Custodian(
            launcher,
            config.custodian,
            new_attempt=new_attempt,
            name_of=lambda ccid: next(iter(targets.users_of(ccid)), ccid),
            by_hand=lambda ccid: targets.placement(ccid).given == BY_HAND,
        )
    )

    endorser = Endorser(
        msp=organization.msp,
        signer=organization.peer,
        ledger=ledger,
        definitions=Definitions(targets),
        executor=ChaincodeSupport(
            registry,
            custodian.ready,
            config.calls,
            timeout_of=config.chaincodes.timeout_of,
        ),
        system={NAMESPACE: LifecycleContract(targets, organization.mspid)},
        concurrency=proposals_at_once(config.endorser.concurrency),
    )
    orderer = await stack.enter_async_context(
        Orderer(
            ledger,
            TransactionChecks(channel, organization.msp),
            config.orderer,
        )
    )
    caller = Caller(channel, endorser, orderer)
    deployer = await stack.enter_async_context(
        Deployer(
            packages=packages,
            targets=targets,
            custodian=custodian,
            committer=DefinitionWriter(caller, ledger, organization.admin),
            attempts=new_attempt,
            purge=router.purge,
        )
    )
    await deployer.restore()
    node = Node(
        config=config,
        labels=labels,
        organization=organization,
        ledger=ledger,
        targets=targets,
        custodian=custodian,
        deployer=deployer,
        caller=caller,
        backends=backends,
        listener=listener,
        output=output,
        watch=watch,
    )
    watch.look_at(
        WatchedParts(
            ledger=ledger,
            targets=targets,
            custodian=custodian,
            backends=backends,
            ready=lambda: not watch.health.missing(),
            rows=node.chaincodes,
        )
    )
    return node


def _client_tls(authority: TlsAuthority) -> ClientTls:
    pair = authority.issue_client()
    return ClientTls(pair.key_pem, pair.cert_pem, authority.root_pem)


class _Packages:
    """The package store for the launcher; reading and hashing is done in a thread."""

    def __init__(self, store: PackageStore) -> None:
        self._store = store

    async def get(self, ccid: Ccid) -> StoredPackage:
        """Return the package, verified. Raises: NotFound, PackageInvalid."""
        return await asyncio.to_thread(self._store.get, ccid)
