"""The running node as the admin API sees it.

Owns:    translation between operations.NodeFacade and the parts of the node.
Not:     putting the parts together (serve.py), HTTP (operations).
Entry:   Node
Holds:   every method may be called at any time between ready and the end.
Source:  operations/facade.py
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from typing_extensions import override

import chaindock
from chaindock.chaincode.registry import LaunchState
from chaindock.errors import InvalidInput, LaunchFailed, Unsupported
from chaindock.ids import Ccid, name_from_label, require_ccid
from chaindock.lifecycle.desired import Wish
from chaindock.lifecycle.supervision import Care
from chaindock.node.backends import AUTO
from chaindock.operations.address import find_socket
from chaindock.operations.facade import (
    Deployment,
    NodeFacade,
    NodeStatus,
    Running,
)
from chaindock.packaging.format import read_package

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from chaindock.chaincode.launcher import RuntimeLauncher
    from chaindock.chaincode.server import ChaincodeListener
    from chaindock.config.sections import Config
    from chaindock.container.contracts import NodeLabels
    from chaindock.container.output import OutputStore
    from chaindock.container.router import Router
    from chaindock.endorser.caller import Answer, Caller
    from chaindock.identity.organization import Organization
    from chaindock.identity.signing import SigningIdentity
    from chaindock.ledger.ledger import Ledger
    from chaindock.lifecycle.custodian import Custodian
    from chaindock.lifecycle.deploy import Deployed, Deployer
    from chaindock.lifecycle.desired import Desired, DesiredState
    from chaindock.node.backends import Backends
    from chaindock.node.watched import NodeWatch
    from chaindock.operations.facade import Call, Watch

_STATES = {
    LaunchState.ABSENT: "down",
    LaunchState.LAUNCHING: "starting",
    LaunchState.READY: "running",
    LaunchState.STOPPING: "stopping",
    LaunchState.FAILED: "failed",
}


_REMEMBERED = 100
"""Signers, and names that did not come up: more of them are forgotten."""


class Node(NodeFacade):
    """Answers what the admin API asks."""

    def __init__(
        self,
        *,
        config: Config,
        labels: NodeLabels,
        organization: Organization,
        ledger: Ledger,
        desired: DesiredState,
        launcher: RuntimeLauncher,
        custodian: Custodian,
        deployer: Deployer,
        caller: Caller,
        backends: Backends,
        router: Router,
        listener: ChaincodeListener,
        output: OutputStore,
        watch: NodeWatch,
    ) -> None:
        self._config, self._labels = config, labels
        self._organization, self._ledger = organization, ledger
        self._desired, self._launcher = desired, launcher
        self._custodian = custodian
        self._deployer, self._caller = deployer, caller
        self._backends, self._output = backends, output
        self._router, self._listener = router, listener
        self._watch = watch
        self._started = time.time()
        self._stop = asyncio.Event()
        self._signers: dict[tuple[str, tuple[tuple[str, str], ...]], SigningIdentity]
        self._signers = {}
        self._failed: dict[str, Ccid] = {}
        """What was last tried under a name and did not come up."""

    async def stopping(self) -> None:
        """Wait until somebody asks the node to end."""
        await self._stop.wait()

    @override
    def shutdown(self) -> None:
        self._stop.set()

    @override
    def status(self) -> NodeStatus:
        organization, config = self._organization, self._config
        missing = self._watch.health.missing()
        state = "starting" if missing else "ready"
        return NodeStatus(
            state="stopping" if self._stop.is_set() else state,
            version=chaindock.__version__,
            home=str(config.home),
            node_id=self._labels.node_id,
            pid=os.getpid(),
            started=_iso(self._started),
            channel=self._ledger.channel,
            msp_id=organization.mspid,
            height=self._ledger.height,
            backend=self._backends.first,
            reason=self._backends.reason,
            endpoints={
                "admin": f"unix://{find_socket(config.home)}",
                "chaincode": ", ".join(self._listener.addresses) or "when needed",
                "operations": self._watch.url or "off",
            },
            identities={
                name: str(organization.user_msp(name)) for name in ("Admin", "User1")
            },
            warnings=[
                *config.warnings,
                *(one.message for one in config.chaincodes.problems()),
                *self._left_alone(),
            ],
            limits=dataclasses.asdict(config.packages),
            pending=[one.as_dict() for one in missing],
        )

    # ---- chaincodes

    @override
    async def deploy(
        self,
        package: Path,
        *,
        name: str | None,
        version: str | None,
        backend: str,
        init_required: bool,
        watch: Watch,
    ) -> Deployment:
        self._require_backend(backend)
        began = time.monotonic()
        if name is None:
            limits = self._config.packages
            info = await asyncio.to_thread(read_package, package, limits)
            name = name_from_label(info.label)
        try:
            deployed = await self._deployer.deploy(
                package,
                name,
                version,
                backend,
                init_required=init_required,
                watch=watch,
            )
        except LaunchFailed as error:
            if "ccid" in error.facts:
                self._failed.pop(name, None)
                self._failed[name] = error.ccid
                for oldest in list(self._failed)[:-_REMEMBERED]:
                    del self._failed[oldest]
            raise
        self._failed.pop(name, None)
        return self._deployment(deployed, began)

    @override
    async def deploy_dev(
        self, name: str, version: str | None, *, init_required: bool
    ) -> Deployment:
        raise Unsupported(
            "a program that is started by hand is not served yet",
            hint="deploy its directory or package",
        )

    @override
    async def start(self, name: str, *, watch: Watch) -> Deployment:
        began = time.monotonic()
        deployed = await self._deployer.start(name, watch=watch)
        return self._deployment(deployed, began)

    @override
    async def stop(self, name: str) -> None:
        await self._deployer.stop(name)

    @override
    async def remove(self, name: str) -> None:
        await self._deployer.remove(name)

    @override
    async def ps(self) -> Sequence[Running]:
        return self.chaincodes()

    def chaincodes(self) -> Sequence[Running]:
        """Return what `ps` shows. Quick, never raises."""
        return [self._running(desired) for desired in self._desired.all()]

    @override
    def log_files(self, name: str) -> Sequence[Path]:
        if ":" in name and (files := self._output.files(require_ccid(name))):
            return files
        if self._desired.find(name) is None and name in self._failed:
            return self._output.files(self._failed[name])
        return self._output.files(self._desired.get(name).ccid)

    # ---- calls

    @override
    async def invoke(self, call: Call) -> Answer:
        return await self._caller.invoke(
            call.name,
            call.args,
            signer=await self._signer(call),
            transient=call.transient,
            timeout_s=call.timeout_s,
            is_init=call.is_init,
        )

    @override
    async def query(self, call: Call) -> Answer:
        return await self._caller.query(
            call.name,
            call.args,
            signer=await self._signer(call),
            transient=call.transient,
            timeout_s=call.timeout_s,
        )

    # ---- blocks

    @override
    def height(self) -> int:
        return self._ledger.height

    @override
    async def block(self, number: int) -> bytes:
        return self._ledger.get_block(number)

    # ---- pieces

    async def _signer(self, call: Call) -> SigningIdentity:
        """Return the identity; one that was used before costs no disk access."""
        key = (call.user, tuple(sorted(call.attributes.items())))
        if key not in self._signers:
            signer = await asyncio.to_thread(
                self._organization.user, call.user, call.attributes or None
            )
            # With attributes it may have a new certificate now.
            if call.attributes or len(self._signers) >= _REMEMBERED:
                self._signers.clear()
            self._signers[key] = signer
        return self._signers[key]

    def _require_backend(self, backend: str) -> None:
        names = [builder.name for builder in self._backends.builders]
        if backend != AUTO and backend not in names:
            raise InvalidInput(
                f"backend {backend!r} is not there; expected auto or one of: "
                f"{', '.join(names)}",
                hint=self._backends.reason,
            )

    def _deployment(self, deployed: Deployed, began: float) -> Deployment:
        facts = self._launcher.status(deployed.ccid).facts
        backend = facts.get("backend", deployed.backend)
        reason = self._router.declined(deployed.ccid) or self._backends.reason
        asked = deployed.backend != AUTO or self._backends.default != AUTO
        return Deployment(
            name=deployed.name,
            version=deployed.version,
            sequence=deployed.sequence,
            package_id=deployed.ccid,
            backend=backend,
            changed=deployed.changed,
            reason="as asked" if asked else reason,
            details=facts,
            reused=tuple(deployed.attempt.reused),
            phases=[(str(p.phase), p.seconds) for p in deployed.attempt.phases],
            seconds=time.monotonic() - began,
        )

    def _left_alone(self) -> list[str]:
        """Say of each chaincode that nobody tries to bring up any more, and why."""
        said = []
        for ccid in self._custodian.left_alone():
            standing = self._custodian.standing(ccid)
            why = standing.error.message if standing.error else "?"
            said += [
                f"chaincode {name} is left alone ({standing.care}, failures in a row: "
                f"{standing.failures}): {why}; see chaindock logs {name}"
                for name in self._desired.users_of(ccid)
            ]
        return said

    def _running(self, desired: Desired) -> Running:
        status = self._launcher.status(desired.ccid)
        standing = self._custodian.standing(desired.ccid)
        state = _STATES[status.state]
        if state in {"down", "failed"}:
            if desired.wish is Wish.STOPPED:
                state = "stopped"
            elif standing.care is not Care.NONE:
                state = str(standing.care)
        error = status.error or standing.error
        since = status.since if status.since is not None else desired.since
        names = self._desired.names_of(desired.ccid)
        wrong = self._config.chaincodes.problem_of(desired.ccid, names)
        return Running(
            name=desired.name,
            version=desired.approval.version,
            sequence=desired.approval.sequence,
            package_id=desired.ccid,
            state=state,
            backend=status.facts.get("backend", desired.backend),
            since=_iso(since),
            details={**status.facts, **({"warning": wrong.message} if wrong else {})},
            error=error.as_dict() if error else None,
            failures=standing.failures,
            next_try=_iso(standing.next_try) if standing.next_try else None,
        )


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
