"""One chaincode in its container: start, watch, stop."""

from __future__ import annotations

import asyncio
import contextlib
import io
import math
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from chaindock.aio import Backoff, Latch, Tasks, finish
from chaindock.container.attempt import Attempt, Phase
from chaindock.container.contracts import Cause, Dial, Exit, NodeLabels, PeerConnection
from chaindock.controllers.docker import names
from chaindock.controllers.docker.engine import Engine
from chaindock.controllers.docker.images import BuiltImage
from chaindock.controllers.docker.network import Networks
from chaindock.controllers.docker.options import DockerOptions
from chaindock.controllers.docker.sandbox import (
    TLS_FOLDER,
    Attachment,
    IsolationAudit,
    killed_for_memory,
    run_body,
    run_facts,
)
from chaindock.controllers.docker.streams import (
    DRAIN_S,
    RunOutput,
    chunks_of,
    tls_archive,
)
from chaindock.errors import (
    ContainerExists,
    EngineError,
    EngineUnavailable,
    ImageNotFound,
    LaunchFailed,
    NotFound,
    StartFailed,
)
from chaindock.platforms.base import Connection
from chaindock.telemetry import get_logger

_log = get_logger("docker")
_FOUND_DEAD_S = 2.0
"""Seconds in which an engine that is back reports a container that ended meanwhile."""
_LAST_LINES_S = 2.0
"""Seconds that the last output of a run may delay the report of its exit."""
_SIGNALS = range(129, 129 + 64)


@dataclass(frozen=True)
class EngineSession:
    """What every instance of a controller uses."""

    engine: Engine
    node: NodeLabels
    options: DockerOptions
    networks: Networks
    tasks: Tasks
    audit: IsolationAudit


@dataclass
class _Run:
    """One container; the task `watch` waits until it has `ended`, and for its output.

    `asked`: a stop was requested; `over`: a stop changes nothing about how it ended.
    """

    container: str
    facts: Mapping[str, str]
    memory_bytes: int
    asked: bool = False
    over: bool = False
    ended: Latch[Exit] = field(default_factory=Latch)
    watch: asyncio.Task[None] | None = None


class DockerInstance:
    """One built chaincode; implements `container.contracts.Instance`."""

    def __init__(self, session: EngineSession, built: BuiltImage) -> None:
        self._session, self._built = session, built
        self._name = names.container_name(session.node, built.ccid)
        self._lock = asyncio.Lock()
        self._run: _Run | None = None
        self._last = Exit(None, reason="it was not started", cause=Cause.NOT_STARTED)

    @property
    def concurrency(self) -> int | None:
        """Transactions at a time on its stream; None = unlimited."""
        return self._built.launch.concurrency

    def describe(self) -> Mapping[str, str]:
        """Return backend, container, images, engine and what `run_facts` gives."""
        facts = {
            "backend": "docker",
            "container": self._name,
            "image": self._built.image,
            "base": f"{self._built.base.reference} {self._built.base.id}",
            "engine": self._session.engine.address,
        }
        return facts if self._run is None else {**facts, **self._run.facts}

    # --- start ---------------------------------------------------------------------

    async def start(self, peer: PeerConnection, attempt: Attempt) -> Dial | None:
        """Start a run (container.contracts.Instance.start)."""
        async with self._lock:
            await self._end(0)
            attempt.enter(Phase.CREATE)
            label = f"{names.NODE}={self._session.node.node_id}"
            await self._session.engine.remove_lost_containers(label)
            try:
                return await self._start(peer, attempt)
            except (NotFound, EngineError) as error:
                if not await self._may_help_to_repeat(error):
                    raise
                _log.info("network is gone, making it again", reason=error.message)
            try:
                return await self._start(peer, attempt)
            except NotFound as error:
                raise StartFailed(
                    f"container {self._name!r} cannot be started: {error.message}",
                    **attempt.facts(),
                ) from error

    async def _may_help_to_repeat(self, error: NotFound | EngineError) -> bool:
        """Whether the network was missing, as after a `docker network prune`."""
        if isinstance(error, EngineError):
            # Podman answers 500 for a network that is gone, so it is looked at.
            return not error.retryable and await self._session.networks.lost()
        try:
            if isinstance(error, ImageNotFound):
                await self._session.engine.inspect_image(self._built.image)
        except ImageNotFound:
            return False
        await self._session.networks.lost()
        return True

    async def _start(self, peer: PeerConnection, attempt: Attempt) -> Dial | None:
        session, built, settings = self._session, self._built, peer.settings
        engine, connection = session.engine, built.launch.connection
        attachment = await session.networks.attach(
            peer.listener, built.base.id, calls_back=connection is Connection.CALLS_BACK
        )
        body = run_body(session.options, session.node, built, peer, attempt, attachment)
        container = await self._create(body)
        try:
            if settings.network is not None:
                await session.networks.join(self._name, settings.network)
            if "Volumes" in body and peer.tls is not None:
                attempt.enter(Phase.UPLOAD)
                files = io.BytesIO(tls_archive(peer.tls))
                await engine.put_archive(container, TLS_FOLDER, chunks_of(files))
            attempt.enter(Phase.START)
            await engine.start_container(container)
            found = await engine.inspect_container(container)
            answer = self._answer(found, attachment)
            lacks = await session.audit.missing(body, found)
        except BaseException:
            await finish(engine.remove_container(container))
            raise
        facts = run_facts(body, attachment, lacks, connection, settings)
        run = _Run(container, facts, body["HostConfig"].get("Memory", 0))
        run.watch = session.tasks.start(self._watch(run, attempt), self._name)
        self._run = run
        return answer

    async def _create(self, body: dict[str, Any]) -> str:
        create = self._session.engine.create_container
        try:
            return await create(self._name, body)
        except (ContainerExists, EngineError):
            # Podman answers a taken name with 500, so the name is looked at.
            if not await self._clear_name():
                raise
        return await create(self._name, body)

    async def _clear_name(self) -> bool:
        """Remove what an earlier process left under our name; return whether it did.

        Raises: ContainerExists when it belongs to somebody else.
        """
        try:
            found = await self._session.engine.inspect_container(self._name)
        except NotFound:
            return False
        labels = (found.get("Config") or {}).get("Labels") or {}
        if labels.get(names.NODE) != self._session.node.node_id:
            raise ContainerExists(
                f"container name {self._name!r} is taken by a container that is not "
                f"ours ({found['Id'][:12]}, image {found['Config'].get('Image')!r})",
                hint="remove that container, or give this node another peer.id or "
                "peer.networkId",
                container=self._name,
            )
        await self._session.engine.remove_container(found["Id"])
        return True

    def _answer(
        self, inspected: Mapping[str, Any], attachment: Attachment
    ) -> Dial | None:
        if self._built.launch.connection is Connection.CALLS_BACK:
            return None
        found, port = inspected["NetworkSettings"], self._session.options.chaincode_port
        if attachment.publishes:
            if bound := (found.get("Ports") or {}).get(f"{port}/tcp"):
                return Dial(f"127.0.0.1:{bound[0]['HostPort']}")
        else:
            networks: Mapping[str, Any] = found.get("Networks") or {}
            first = next(iter(networks.values()), None)
            network = networks.get(attachment.network) or first or {}
            if inside := network.get("IPAddress"):
                return Dial(f"{inside}:{port}")
        raise StartFailed(
            f"container {self._name!r} has no address: it ended at once, or the engine "
            "gave it none",
            hint=f"read its output: chaindock logs {self._built.ccid}",
        )

    async def probe(self) -> LaunchFailed | None:
        """Dial the node from a container of the same network and image."""
        return await self._session.networks.probe(self._built.base.id)

    # --- watch ---------------------------------------------------------------------

    async def wait(self) -> Exit:
        """Wait until the run has ended; before the first, the last Exit."""
        return self._last if self._run is None else await self._run.ended.wait()

    async def _watch(self, run: _Run, attempt: Attempt) -> None:
        """Settle how the run ends, and hand on all of its output."""
        output = RunOutput(self._session.engine, run.container, attempt.output)
        code, engine_gone = await self._follow_to_end(run, output)
        result = await self._judge(run, code, engine_gone=engine_gone)
        rest = self._session.tasks.start(output.finish(), f"{self._name} last output")
        try:
            await asyncio.wait([rest], timeout=_LAST_LINES_S)
            self._settle(run, result)
            await asyncio.wait([rest])
        finally:
            self._settle(run, result)
            rest.cancel()

    async def _follow_to_end(
        self, run: _Run, output: RunOutput
    ) -> tuple[int | None, bool]:
        """Return the exit code (None = it was removed), and whether its engine ended."""
        backoff, engine_gone, since = Backoff(0.1, 5.0), False, 0.0
        while True:
            output.follow(self._session.tasks, since)
            asked = time.monotonic()
            try:
                code = await self._session.engine.wait_container(run.container)
            except NotFound:
                return None, engine_gone
            except EngineError as error:
                since = time.time()
                engine_gone = engine_gone or isinstance(error, EngineUnavailable)
                _log.warning("waiting for a container failed", error=error.message)
                await asyncio.sleep(backoff.next_s())
                continue
            # A container that outlived its engine is waited for, and ends by itself.
            return code, engine_gone and time.monotonic() - asked < _FOUND_DEAD_S

    def _settle(self, run: _Run, result: Exit) -> None:
        if run.ended.settle(result):
            self._last = result

    async def _judge(self, run: _Run, code: int | None, *, engine_gone: bool) -> Exit:
        run.over, asked = True, run.asked
        state: Mapping[str, Any] = {}
        with contextlib.suppress(EngineError, NotFound):
            found = await self._session.engine.inspect_container(run.container)
            state = found.get("State") or {}
        killed = code == 128 + signal.SIGKILL and not asked
        if state.get("OOMKilled") or (
            killed and await killed_for_memory(run.container)
        ):
            reason = f"it needed more than its {run.memory_bytes} bytes of memory"
            return Exit(None, signal=9, oom=True, reason=reason)
        number = code - 128 if code is not None and code in _SIGNALS else None
        cause, reason = Cause.STOPPED if asked else None, ""
        if engine_gone and not asked:
            cause, reason = Cause.ENGINE_GONE, "its engine ended and took it along"
        elif code is None:
            cause, reason = cause or Cause.REMOVED, "somebody removed its container"
        elif number is None:
            reason = str(state.get("Error") or "")
        return Exit(None if number else code, signal=number, reason=reason, cause=cause)

    # --- stop ----------------------------------------------------------------------

    async def stop(self, grace_s: float) -> None:
        """End the run (container.contracts.Instance.stop)."""
        async with self._lock:
            await self._end(grace_s)

    async def _end(self, grace_s: float) -> None:
        run, engine = self._run, self._session.engine
        if run is None:
            return
        if not run.over:
            run.asked = True
            with contextlib.suppress(NotFound):
                await engine.stop_container(run.container, math.ceil(max(0.0, grace_s)))
        if run.watch is not None:
            # Removing the container would take its last output along.
            await asyncio.wait([run.watch], timeout=DRAIN_S + 5)
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
