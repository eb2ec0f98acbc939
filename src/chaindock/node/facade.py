"""The running node as the admin API sees it.

Every method may be called at any time between ready and the end, several at once, and
raises only errors of chaindock.errors. A cancelled `deploy`, `start`, `invoke` or `query`
leaves nothing half done.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import chaindock
from chaindock.aio import finish
from chaindock.chaincode.server import ChaincodeListener
from chaindock.config.sections import Config
from chaindock.container.attempt import Event, Watch
from chaindock.container.contracts import NodeLabels
from chaindock.container.output import OutputStore
from chaindock.endorser.caller import Answer, compare
from chaindock.endorser.determinism import Difference
from chaindock.errors import InvalidInput, LaunchFailed, Unsupported
from chaindock.gateway.listener import ClientListener
from chaindock.identity.msp import SigningIdentity
from chaindock.ids import Ccid, at_peer, name_from_label, require_ccid, split_peer
from chaindock.lifecycle.custodian import Custodian
from chaindock.lifecycle.deployments import Fleet
from chaindock.lifecycle.packages import Packages
from chaindock.lifecycle.states import Target
from chaindock.lifecycle.terms import Terms, unsatisfiable
from chaindock.node.backends import Backends
from chaindock.node.channels import Channels, NodeChannel
from chaindock.node.connections import USERS, Connections
from chaindock.node.elsewhere import Elsewhere
from chaindock.node.rows import gave_up, iso_time, result, row
from chaindock.operations.address import find_socket
from chaindock.operations.facade import Call, Deployment, NodeStatus, Running
from chaindock.operations.health import Health
from chaindock.operations.http import OperationsServer
from chaindock.packaging.format import read_package

_REMEMBERED = 100
"""Signers, and names that did not come up, beyond which the oldest are forgotten."""


@dataclass(kw_only=True)
class Node:
    """Answers what the admin API asks."""

    config: Config
    labels: NodeLabels
    channels: Channels
    connections: Connections
    fleet: Fleet
    packages: Packages
    custodian: Custodian
    elsewhere: Elsewhere
    backends: Backends
    listener: ChaincodeListener
    clients: ClientListener
    output: OutputStore
    health: Health
    operations: OperationsServer

    def __post_init__(self) -> None:
        self._started = time.time()
        self.stopping = asyncio.Event()
        """Set when somebody asks the node to end."""
        self._signers: dict[object, SigningIdentity] = {}
        self._failed: dict[tuple[str, str], Ccid] = {}
        """What was last tried under a name of a channel and did not come up."""
        self.channels.followers.append(self.follow)

    def channel(self, name: str | None = None) -> NodeChannel:
        """Return an open channel; None = the first one. Raises: NotFound."""
        return self.channels.require(name)

    def status(self) -> NodeStatus:
        """Describe the node. Never raises."""
        channel, config = self.channel(), self.config
        organization = channel.members.get(None)
        missing = self.health.missing()
        backend, reason = self.backends.outlook
        state = "starting" if missing else "ready"
        return NodeStatus(
            state="stopping" if self.stopping.is_set() else state,
            version=chaindock.__version__,
            home=str(config.home),
            node_id=self.labels.node_id,
            pid=os.getpid(),
            started=iso_time(self._started),
            channel=channel.id,
            msp_id=organization.mspid,
            height=channel.ledger.height,
            gateway=self.clients.connection(organization.mspid),
            gateways=self.clients.connections(),
            backend=backend,
            reason=reason,
            endpoints={
                "admin": f"unix://{find_socket(config.home)}",
                "chaincode": ", ".join(self.listener.addresses) or "no port yet",
                "operations": self.operations.url or "off",
            },
            identities={name: str(organization.user_msp(name)) for name in USERS},
            warnings=[
                *config.warnings,
                *self.clients.warnings,
                *(one.message for one in config.chaincodes.problems()),
                *gave_up(self.fleet, self.custodian),
                *(
                    text
                    for one in self.channels.values()
                    for text in one.controls.warnings("" if one is channel else one.id)
                ),
            ],
            limits=dataclasses.asdict(config.packages),
            pending=[vars(one) for one in missing],
        )

    # ---- chaincodes

    async def deploy(
        self,
        package: Path,
        *,
        name: str | None,
        terms: Terms,
        backend: str,
        watch: Watch,
        channel: str | None = None,
    ) -> Deployment:
        """Install the package file, define it as `name` on a channel and bring it up.

        `package` is read before this returns; the caller removes it. `name`: None =
        from the label. `backend`: `auto` or the name of a builder. `watch` is called
        with every event of the attempt.

        Raises: PackageInvalid, InvalidInput, LaunchFailed.
        """
        self.backends.require(backend)
        wanted = self.channel(channel)
        began = time.monotonic()
        if name is None:
            limits = self.config.packages
            info = await asyncio.to_thread(read_package, package, limits)
            name = name_from_label(info.label)
        now = wanted.members.configuration
        if why := terms.policy and unsatisfiable(
            terms.policy, wanted.id, now.peers, now.policies.has
        ):
            text = f"warning: nobody can satisfy the endorsement policy: {why}"
            watch(Event("note", {"text": text}))
        try:
            deployed = await wanted.deployer.deploy(
                package, name, terms, backend, watch=watch
            )
        except LaunchFailed as error:
            if "ccid" in error.facts:
                self._failed.pop((wanted.id, name), None)
                self._failed[wanted.id, name] = error.ccid
                for oldest in list(self._failed)[:-_REMEMBERED]:
                    del self._failed[oldest]
            raise
        self._failed.pop((wanted.id, name), None)
        return result(deployed, self.custodian, began)

    async def deploy_dev(
        self, name: str, terms: Terms, channel: str | None = None
    ) -> Deployment:
        """Define `name` for a program that a user starts by hand.

        The program registers as NAME:VERSION, by default 1.0. Returns as soon as the
        definition is committed, whether or not the program runs already.

        Raises: Unsupported unless chaincode.mode is `dev`. InvalidInput.
        """
        if self.config.stream.mode != "dev":
            raise Unsupported(
                "this node does not accept programs that a user starts",
                hint="start it in development mode: chaincode.mode: dev in core.yaml, or "
                "CORE_CHAINCODE_MODE=dev chaindock up",
            )
        began = time.monotonic()
        deployed = await self.channel(channel).deployer.deploy_by_hand(name, terms)
        return result(deployed, self.custodian, began)

    async def start(
        self, name: str, *, watch: Watch, channel: str | None = None
    ) -> Deployment:
        """Bring a stopped or failed chaincode up. Raises NotFound, LaunchFailed."""
        began = time.monotonic()
        deployed = await self.channel(channel).deployer.start(name, watch=watch)
        return result(deployed, self.custodian, began)

    async def stop(self, name: str, channel: str | None = None) -> None:
        """Stop a chaincode; it stays deployed. Raises NotFound."""
        await self.channel(channel).deployer.stop(name)

    async def remove(self, name: str, channel: str | None = None) -> None:
        """Stop a chaincode and remove it; the ledger keeps its state. Raises NotFound."""
        await self.channel(channel).deployer.remove(name)

    def ps(self, channel: str | None = None) -> Sequence[Running]:
        """Return what is deployed on a channel, None = on all, by name. Quick.

        Raises: NotFound. LedgerError, when the node ends.
        """
        wanted = self.channels if channel is None else {self.channel(channel).id}
        about = self.fleet, self.custodian, self.config.chaincodes
        of = self.fleet.channels
        return [
            row(one, of[one.channel].definition(one.name), *about)
            for one in self.fleet.all()
            if one.channel in wanted
        ]

    def log_files(self, name: str, channel: str | None = None) -> Sequence[Path]:
        """Return the output files of the attempts, oldest first. Raises NotFound.

        `name` is that of a chaincode, also of one that never came up, or a package id;
        NAME@MSPID means the run that serves the peer of that organisation.
        """
        wanted = self.channel(channel)
        name, mspid = split_peer(Ccid(name))
        if mspid:
            found = wanted.members.get(mspid).mspid
            mspid = "" if found == wanted.members.get(None).mspid else found
        if ":" in name and (
            files := self.output.files(at_peer(require_ccid(name), mspid))
        ):
            return files
        deployments = wanted.deployer.deployments
        ccid = self._failed.get((wanted.id, str(name)))
        if ccid is None or deployments.find(name) is not None:
            ccid = deployments.get(name).ccid
        return self.output.files(at_peer(ccid, mspid))

    # ---- calls

    async def invoke(self, call: Call) -> Answer:
        """Endorse, order and commit. Raises NotFound, LaunchFailed, ExecuteFailed."""
        channel = self.channel(call.channel)
        return await channel.caller.invoke(
            call.name,
            call.args,
            is_init=call.is_init,
            endorsers=call.endorsers,
            **await self._told(channel, call),
        )

    async def query(self, call: Call) -> Answer:
        """Have the first of the endorsers simulate. Raises as `invoke`."""
        channel = self.channel(call.channel)
        told = await self._told(channel, call) | {"endorsers": call.endorsers}
        return await channel.caller.query(call.name, call.args, **told)

    async def compare(self, call: Call) -> list[Difference]:
        """Run the proposal several times; return what differed. As `invoke`."""
        channel = self.channel(call.channel)
        told = await self._told(channel, call)
        async with self.elsewhere.turn:
            where = self.elsewhere.of(channel.id, call.name, self.custodian)
            told |= {"elsewhere": where, "is_init": call.is_init}
            return await compare(channel.caller, call.name, call.args, **told)

    async def _told(self, channel: NodeChannel, call: Call) -> dict[str, Any]:
        return {
            "signer": await self._signer(channel, call),
            "transient": call.transient,
            "timeout_s": call.timeout_s,
        }

    # ---- organisations and blocks

    def channel_list(self) -> list[dict[str, Any]]:
        """Return `name`, `height`, `organizations` and `capability` of each channel."""
        return [_described(one) for one in self.channels.values()]

    async def create_channel(self, *about: Any) -> dict[str, Any]:
        """Make a channel; return it as in `channel_list`. As `Channels.create`."""
        return _described(await self.channels.create(*about))

    async def follow(self) -> None:
        """Have the peers of all members serve clients, and what served others end.

        Raises: NodeError, StorageError: as `ClientListener.serve`.
        """
        members = [one.members for one in self.channels.values()]
        found = {mspid: one.get(mspid) for one in members for mspid in one.peers}
        first = self.channels.organizations.first
        # As they were made, so each keeps its port when another one joins.
        for one in sorted(
            found.values(), key=lambda one: (one is not first, one.made_at)
        ):
            await self.clients.serve(one)
        await asyncio.to_thread(self.connections.write)
        for ccid in self._unneeded():
            _ = self.packages.retire(ccid)

    def _unneeded(self) -> list[Ccid]:
        found = (one.ccid for one in self.custodian.all())
        return [ccid for ccid in found if not self.fleet.serves(ccid)]

    async def remove_channel(self, name: str) -> None:
        """Remove a channel and its ledger; as `Channels.remove`."""
        await self.channels.remove(name)

    def organizations(self, channel: str | None = None) -> list[dict[str, Any]]:
        """As `Members.list`, with what `ClientListener.connection` says."""
        found = self.channel(channel).members.list()
        return [{**one, **self.clients.connection(one["mspid"])} for one in found]

    async def add_organization(
        self, name: str, channel: str | None = None
    ) -> dict[str, Any]:
        """Make an organisation a member of a channel; as `Members.add`."""
        wanted = self.channel(channel)
        return await wanted.members.add(name, wanted.orderer)

    async def run_peer(
        self, name: str, channel: str | None = None, *, running: bool
    ) -> dict[str, Any]:
        """Start or stop the peer of an organisation, on all channels; as `organizations`.

        A stopped one serves no clients and endorses nothing until it, or the node, starts.

        Raises: NotFound. InvalidInput: of the first organisation. Cancelled: it goes on.
        """
        members = self.channel(channel).members
        mspid = members.get(name).mspid
        if mspid == members.get(None).mspid:
            raise InvalidInput(
                f"the peer of {mspid} cannot be stopped: the node itself needs it",
                hint="stop the peer of another organisation, or the node: chaindock down",
            )
        if running is (mspid in self.channels.organizations.stopped):
            await finish(self._run_peer(mspid, running=running))
        return next(one for one in self.organizations(channel) if one["mspid"] == mspid)

    async def _run_peer(self, mspid: str, *, running: bool) -> None:
        stopped = self.channels.organizations.stopped
        if running:
            await self.clients.reopen(mspid)
        (stopped.discard if running else stopped.add)(mspid)
        for one in self.channels.values():
            one.members.refresh()
        if not running:
            await self.clients.close(mspid)
            stop = self.custodian.stop
            ends = (stop(ccid, Target.REMOVED) for ccid in self._unneeded())
            await asyncio.gather(*ends)

    # ---- pieces

    async def _signer(self, channel: NodeChannel, call: Call) -> SigningIdentity:
        """Return the identity; one that was used before costs no disk access."""
        organization = channel.members.get(call.org)
        key = (call.org, call.user, tuple(sorted(call.attributes.items())))
        if key not in self._signers:
            signer = await asyncio.to_thread(
                organization.user, call.user, call.attributes or None
            )
            # With attributes it may have a new certificate now.
            if call.attributes or len(self._signers) >= _REMEMBERED:
                self._signers.clear()
            self._signers[key] = signer
        return self._signers[key]


def _described(channel: NodeChannel) -> dict[str, Any]:
    return {
        "name": channel.id,
        "height": channel.ledger.height,
        "organizations": channel.members.configuration.peers,
        "capability": channel.members.configuration.capability,
    }
