"""One chaincode in its container: start, watch, stop.

Owns:    DockerInstance; the life of a container from create to verified gone.
Not:     its image (images.py), its body (body.py), its network (network.py).
Entry:   DockerInstance
Holds:   at most one container per instance; one that is not ours is never touched; an
         engine that restarts under us does not make anybody wait for ever.
Source:  launch.md §3.7, §3.9, §9 W15, W16, W64, W65; needs.md rows 3, 12, 24
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import math
import signal
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from chaindock.aio import Backoff, Latch, finish
from chaindock.container.attempt import Phase
from chaindock.container.contracts import CallsBack, Cause, Dial, Exit
from chaindock.controllers.docker import names
from chaindock.controllers.docker.archives import TLS_FOLDER, tls_archive
from chaindock.controllers.docker.body import run_body, stream_of
from chaindock.controllers.docker.kernel import ended_for_memory
from chaindock.controllers.docker.output import DRAIN_S, RunOutput
from chaindock.controllers.docker.streams import chunks_of
from chaindock.controllers.docker.walls import told
from chaindock.errors import (
    ContainerExists,
    EngineError,
    EngineUnavailable,
    ImageNotFound,
    NetworkMissing,
    NotFound,
    StartFailed,
)
from chaindock.platforms.base import Connection
from chaindock.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from chaindock.aio import Tasks
    from chaindock.container.attempt import Attempt
    from chaindock.container.contracts import NodeLabels, PeerConnection
    from chaindock.controllers.docker.attachment import Attachment
    from chaindock.controllers.docker.engine import Engine
    from chaindock.controllers.docker.images import BaseImage
    from chaindock.controllers.docker.network import Networks
    from chaindock.controllers.docker.options import DockerOptions
    from chaindock.controllers.docker.walls import Walls
    from chaindock.errors import LaunchFailed
    from chaindock.ids import Ccid
    from chaindock.platforms.base import LaunchCommand

_log = get_logger("docker")
FOUND_DEAD_S = 2.0
"""An engine that is back tells so soon of a container that ended while it was away."""
_SIGNALS = range(129, 129 + 64)


@dataclass(frozen=True)
class Parts:
    """What every instance of a controller uses."""

    engine: Engine
    node: NodeLabels
    options: DockerOptions
    networks: Networks
    tasks: Tasks
    walls: Walls


@dataclass(frozen=True)
class Built:
    """What is started.

    Args:
        output: where {output} lies in the image.
        base: the image below it, which stays when this one goes.
    """

    ccid: Ccid
    image: str
    output: str
    launch: LaunchCommand
    base: BaseImage


@dataclass
class _Run:
    container: str
    facts: Mapping[str, str]
    memory_bytes: int
    ended: Latch[Exit] = field(default_factory=Latch)
    watch: asyncio.Task[None] | None = None
    asked: bool = False


class DockerInstance:
    """One built chaincode; implements `container.contracts.Instance`."""

    def __init__(self, parts: Parts, built: Built) -> None:
        self._parts, self._built = parts, built
        self._name = names.container_name(parts.node, built.ccid)
        self._lock = asyncio.Lock()
        self._run: _Run | None = None
        self._last = Exit(None, reason="it was not started", cause=Cause.NOT_STARTED)

    @property
    def concurrency(self) -> int | None:
        """Transactions at a time on its stream; None = unlimited."""
        return self._built.launch.concurrency

    def describe(self) -> Mapping[str, str]:
        """Return backend, container, images and engine; while it runs its isolation.

        `weaker` names what of it is missing, `settings` what was set for it alone,
        `stream` what keeps others away from its stream.
        """
        facts = {
            "backend": "docker",
            "container": self._name,
            "image": self._built.image,
            "base": f"{self._built.base.reference} {self._built.base.id}",
            "engine": self._parts.engine.address,
        }
        return facts if self._run is None else {**facts, **self._run.facts}

    # --- start ---------------------------------------------------------------------

    async def start(self, peer: PeerConnection, attempt: Attempt) -> CallsBack | Dial:
        """Start a run (container.contracts.Instance.start)."""
        async with self._lock:
            await self._end(0)
            attempt.enter(Phase.CREATE)
            await self._parts.engine.tidy(f"{names.NODE}={self._parts.node.node_id}")
            try:
                return await self._start(peer, attempt)
            except (NotFound, EngineError) as error:
                if isinstance(error, ImageNotFound) and not await self._has_image():
                    raise
                # Podman answers 500 for a network that is gone, so it is looked at.
                if isinstance(error, EngineError) and (
                    error.retryable or not await self._parts.networks.vanished()
                ):
                    raise
                # A network without containers falls to `docker network prune`.
                _log.info("network is gone, making it again", reason=error.message)
                self._parts.networks.forget()
            try:
                return await self._start(peer, attempt)
            except NotFound as error:
                raise StartFailed(
                    f"container {self._name!r} cannot be started: {error.message}",
                    **attempt.facts(),
                ) from error

    async def _start(self, peer: PeerConnection, attempt: Attempt) -> CallsBack | Dial:
        engine, launch = self._parts.engine, self._built.launch
        if peer.settings.network is not None:
            await self._see_network(peer.settings.network)
        attachment = await self._parts.networks.attach(
            peer.listener,
            self._built.base.id,
            calls_back=launch.connection is Connection.CALLS_BACK,
        )
        body = run_body(
            self._parts.options,
            self._parts.node,
            self._built.image,
            self._built.output,
            launch,
            peer,
            attempt,
            attachment,
        )
        settings = peer.settings
        container = await self._create(body)
        try:
            if settings.network is not None:
                await self._join(container, settings.network)
            if "Volumes" in body and peer.tls is not None:
                attempt.enter(Phase.UPLOAD)
                files = io.BytesIO(tls_archive(peer.tls))
                await engine.put_archive(
                    container, TLS_FOLDER, lambda: chunks_of(files)
                )
            attempt.enter(Phase.START)
            await engine.start_container(container)
            found = await engine.inspect_container(container)
            answer = self._answer(found, attachment)
            lacks = await self._parts.walls.missing(body, found)
        except BaseException:
            await finish(engine.remove_container(container))
            raise
        facts = told(attachment, lacks, settings)
        facts["stream"] = stream_of(body, attachment, launch, settings)
        run = _Run(container, facts, body["HostConfig"].get("Memory", 0))
        run.watch = self._parts.tasks.start(self._watch(run, attempt), self._name)
        self._run = run
        return answer

    async def _create(self, body: dict[str, Any]) -> str:
        engine = self._parts.engine
        for last in (False, True):
            try:
                return await finish(
                    engine.create_container(self._name, body), engine.remove_container
                )
            except (ContainerExists, EngineError):
                # Podman answers a taken name with 500, so the name is looked at.
                if last or not await self._clear_name():
                    raise
        raise AssertionError("unreachable")

    async def _clear_name(self) -> bool:
        """Remove what an earlier process of this node left under our name.

        Returns: whether there was anything.
        Raises: ContainerExists when it belongs to somebody else.
        """
        try:
            found = await self._parts.engine.inspect_container(self._name)
        except NotFound:
            return False
        labels = (found.get("Config") or {}).get("Labels") or {}
        if labels.get(names.NODE) != self._parts.node.node_id:
            raise ContainerExists(
                f"container name {self._name!r} is taken by a container that is not "
                f"ours ({found['Id'][:12]}, image {found['Config'].get('Image')!r})",
                hint="remove that container, or give this node another peer.id or "
                "peer.networkId",
                container=self._name,
            )
        await self._parts.engine.remove_container(found["Id"])
        return True

    async def _see_network(self, network: str) -> None:
        """Raises: NetworkMissing."""
        try:
            await self._parts.engine.inspect_network(network)
        except NotFound as error:
            raise NetworkMissing(
                f"container {self._name!r} cannot join network {network!r}: the engine "
                f"at {self._parts.engine.address} has none of that name",
                hint="make it (docker network create), or correct "
                "chaindock.chaincodes.*.network",
                network=network,
            ) from error

    async def _join(self, container: str, network: str) -> None:
        try:
            await self._parts.engine.connect_network(network, container)
        except (NotFound, EngineError):
            await self._see_network(network)
            raise

    def _answer(
        self, inspected: Mapping[str, Any], attachment: Attachment
    ) -> CallsBack | Dial:
        found = inspected["NetworkSettings"]
        networks: Mapping[str, Any] = found.get("Networks") or {}
        first: Mapping[str, Any] = next(iter(networks.values()), {})
        ours = networks.get(attachment.network) or first
        inside = ours.get("IPAddress") or None
        if self._built.launch.connection is Connection.CALLS_BACK:
            return CallsBack(None if attachment.publishes else inside)
        port = self._parts.options.chaincode_port
        if attachment.publishes:
            bound = (found.get("Ports") or {}).get(f"{port}/tcp") or []
            if bound:
                return Dial(f"127.0.0.1:{bound[0]['HostPort']}")
        elif inside:
            return Dial(f"{inside}:{port}")
        raise StartFailed(
            f"container {self._name!r} has no address: it ended at once, or the engine "
            "gave it none",
            hint=f"read its output: chaindock logs {self._built.ccid}",
        )

    async def probe(self) -> LaunchFailed | None:
        """Dial the node from a container of the same network and image."""
        return await self._parts.networks.probe(self._built.base.id)

    async def _has_image(self) -> bool:
        try:
            await self._parts.engine.inspect_image(self._built.image)
        except ImageNotFound:
            return False
        return True

    # --- watch ---------------------------------------------------------------------

    async def wait(self) -> Exit:
        """Wait until the run has ended; before the first, the last Exit."""
        run = self._run
        return self._last if run is None else await run.ended.wait()

    async def _watch(self, run: _Run, attempt: Attempt) -> None:
        """Follow the output and settle how the run ended."""
        engine, backoff, since = self._parts.engine, Backoff(0.1, 5.0), 0.0
        output = RunOutput(engine, run.container, attempt.output)
        code: int | None = None
        gone = False
        while True:
            follow = self._parts.tasks.start(
                output.follow(since), f"{self._name} output"
            )
            asked = time.monotonic()
            try:
                code = await engine.wait_container(run.container)
                # One that outlived the engine is waited for, and ends by itself.
                gone = gone and time.monotonic() - asked < FOUND_DEAD_S
                await output.drained(follow)
                await output.complete()
                break
            except NotFound:
                break
            except EngineError as error:
                since = time.time()
                gone = gone or isinstance(error, EngineUnavailable)
                _log.warning("lost sight of a container", error=error.message)
                await asyncio.sleep(backoff.next_s())
            finally:
                follow.cancel()
        output.end()
        how = await self._judge(run, code)
        if run.asked:
            how = replace(how, cause=Cause.STOPPED)
        elif gone:
            reason = "its engine went away and took it along"
            how = replace(how, cause=Cause.ENGINE_GONE, reason=reason)
        self._settle(run, how)

    def _settle(self, run: _Run, result: Exit) -> None:
        if run.ended.settle(result):
            self._last = result

    async def _judge(self, run: _Run, code: int | None) -> Exit:
        try:
            found = await self._parts.engine.inspect_container(run.container)
            state = found.get("State") or {}
        except (EngineError, NotFound):
            state = {}
        killed = code == 128 + signal.SIGKILL and not run.asked
        if state.get("OOMKilled") or (killed and await ended_for_memory(run.container)):
            reason = f"it needed more than its {run.memory_bytes} bytes of memory"
            return Exit(None, signal=9, oom=True, reason=reason)
        if code is None:
            return Exit(
                None, reason="somebody removed its container", cause=Cause.REMOVED
            )
        if code in _SIGNALS:
            return Exit(None, signal=code - 128)
        return Exit(code, reason=str(state.get("Error") or ""))

    # --- stop ----------------------------------------------------------------------

    async def stop(self, grace_s: float) -> None:
        """End the run (container.contracts.Instance.stop)."""
        async with self._lock:
            await self._end(grace_s)

    async def _end(self, grace_s: float) -> None:
        run, engine = self._run, self._parts.engine
        if run is None:
            return
        if not run.ended.settled:
            run.asked = True
            with contextlib.suppress(NotFound):
                await engine.stop_container(run.container, math.ceil(max(0.0, grace_s)))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DRAIN_S + 5):
                    await run.ended.wait()
        await engine.remove_container(run.container)
        if run.watch is not None:
            run.watch.cancel()
        self._settle(run, Exit(None, reason="it was stopped", cause=Cause.STOPPED))
        self._run = None
        with contextlib.suppress(NotFound):
            await engine.inspect_container(run.container)
            raise EngineError(
                f"container {self._name!r} is still there after its removal",
                hint=f"remove it with: docker rm -fv {self._name}",
                endpoint=engine.address,
            )
