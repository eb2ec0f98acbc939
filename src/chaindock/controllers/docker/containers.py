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
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from chaindock.aio import Backoff, Latch, finish
from chaindock.container.attempt import Phase
from chaindock.container.contracts import CallsBack, Dial, Exit
from chaindock.controllers.docker import names
from chaindock.controllers.docker.archives import TLS_FOLDER, tls_archive
from chaindock.controllers.docker.body import run_body
from chaindock.controllers.docker.streams import OutputLines, chunks_of
from chaindock.errors import (
    ContainerExists,
    EngineError,
    ImageNotFound,
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
    from chaindock.controllers.docker.engine import Engine
    from chaindock.controllers.docker.network import Attachment, Networks
    from chaindock.controllers.docker.options import DockerOptions
    from chaindock.ids import Ccid
    from chaindock.platforms.base import LaunchCommand

_log = get_logger("docker")
QUIET_S, DRAIN_S = 1.0, 30.0
"""After the end, output is waited for until it pauses so long, and no longer than that.

Some engines leave the stream of an ended container open.
"""
OUTPUT_BYTES_PER_S, OUTPUT_BURST = 2 * 1024 * 1024, 16 * 1024 * 1024
_SIGNALS = range(129, 129 + 64)


@dataclass(frozen=True)
class Parts:
    """What every instance of a controller uses."""

    engine: Engine
    node: NodeLabels
    options: DockerOptions
    networks: Networks
    tasks: Tasks


@dataclass(frozen=True)
class Built:
    """What is started.

    Args:
        output: where {output} lies in the image.
    """

    ccid: Ccid
    image: str
    output: str
    launch: LaunchCommand


@dataclass
class _Run:
    container: str
    isolation: str
    ended: Latch[Exit] = field(default_factory=Latch)
    watch: asyncio.Task[None] | None = None
    reads: int = 0


class DockerInstance:
    """One built chaincode; implements `container.contracts.Instance`."""

    def __init__(self, parts: Parts, built: Built) -> None:
        self._parts, self._built = parts, built
        self._name = names.container_name(parts.node, built.ccid)
        self._lock = asyncio.Lock()
        self._run: _Run | None = None
        self._last = Exit(None, reason="it was not started")

    @property
    def concurrency(self) -> int | None:
        """Transactions at a time on its stream; None = unlimited."""
        return self._built.launch.concurrency

    def describe(self) -> Mapping[str, str]:
        """Return backend, container, image and engine; while it runs its isolation."""
        facts = {
            "backend": "docker",
            "container": self._name,
            "image": self._built.image,
            "engine": self._parts.engine.address,
        }
        if self._run is not None:
            facts["isolation"] = self._run.isolation
        return facts

    # --- start ---------------------------------------------------------------------

    async def start(self, peer: PeerConnection, attempt: Attempt) -> CallsBack | Dial:
        """Start a run (container.contracts.Instance.start)."""
        async with self._lock:
            await self._end(0)
            attempt.enter(Phase.CREATE)
            try:
                return await self._start(peer, attempt)
            except NotFound as error:
                if isinstance(error, ImageNotFound) and not await self._has_image():
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
        attachment = await self._parts.networks.attach(
            peer.listener,
            self._built.image,
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
        container = await self._create(body)
        try:
            if "Volumes" in body and peer.tls is not None:
                attempt.enter(Phase.UPLOAD)
                files = io.BytesIO(tls_archive(peer.tls))
                await engine.put_archive(
                    container, TLS_FOLDER, lambda: chunks_of(files)
                )
            attempt.enter(Phase.START)
            await engine.start_container(container)
            answer = await self._answer(container, attachment)
        except BaseException:
            await finish(engine.remove_container(container))
            raise
        run = _Run(container, attachment.isolation)
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

    async def _answer(self, container: str, attachment: Attachment) -> CallsBack | Dial:
        if self._built.launch.connection is Connection.CALLS_BACK:
            return CallsBack()
        found = (await self._parts.engine.inspect_container(container))[
            "NetworkSettings"
        ]
        port = self._parts.options.chaincode_port
        if attachment.publishes:
            bound = (found.get("Ports") or {}).get(f"{port}/tcp") or []
            if bound:
                return Dial(f"127.0.0.1:{bound[0]['HostPort']}")
        else:
            for network in (found.get("Networks") or {}).values():
                if network.get("IPAddress"):
                    return Dial(f"{network['IPAddress']}:{port}")
        raise StartFailed(
            f"container {self._name!r} has no address: it ended at once, or the engine "
            "gave it none",
            hint=f"read its output: chaindock logs {self._built.ccid}",
        )

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
        code: int | None = None
        while True:
            follow = self._parts.tasks.start(
                self._follow(run, attempt, since), f"{self._name} output"
            )
            try:
                code = await engine.wait_container(run.container)
                await self._drained(run, follow)
                break
            except NotFound:
                break
            except EngineError as error:
                since = time.time()
                _log.warning("lost sight of a container", error=error.message)
                await asyncio.sleep(backoff.next_s())
            finally:
                follow.cancel()
        self._settle(run, await self._judge(run.container, code))

    def _settle(self, run: _Run, result: Exit) -> None:
        if run.ended.settle(result):
            self._last = result

    async def _drained(self, run: _Run, follow: asyncio.Task[None]) -> None:
        end = time.monotonic() + DRAIN_S
        while time.monotonic() < end:
            before = run.reads
            done, _ = await asyncio.wait([follow], timeout=QUIET_S)
            if done or run.reads == before:
                return

    async def _follow(self, run: _Run, attempt: Attempt, since: float) -> None:
        lines = OutputLines(attempt.output)
        budget, then = float(OUTPUT_BURST), time.monotonic()
        output = self._parts.engine.follow_logs(run.container, since)
        try:
            async with contextlib.aclosing(output):
                async for data in output:
                    lines.feed(data)
                    run.reads += 1
                    now = time.monotonic()
                    refill = (now - then) * OUTPUT_BYTES_PER_S
                    budget = min(budget + refill, OUTPUT_BURST) - len(data)
                    then = now
                    if budget < 0:  # a flood: read slower, the engine keeps the rest
                        await asyncio.sleep(-budget / OUTPUT_BYTES_PER_S)
        except (EngineError, NotFound) as error:
            _log.debug("output ended early", container=self._name, error=str(error))
        finally:
            lines.end()

    async def _judge(self, container: str, code: int | None) -> Exit:
        try:
            found = await self._parts.engine.inspect_container(container)
            state = found.get("State") or {}
        except (EngineError, NotFound):
            state = {}
        if state.get("OOMKilled"):
            limit = self._parts.options.sandbox.memory_bytes
            reason = f"it needed more than its {limit} bytes of memory"
            return Exit(None, signal=9, oom=True, reason=reason)
        if code is None:
            return Exit(None, reason="somebody removed its container")
        if code in _SIGNALS:
            return Exit(None, signal=code - 128, reason=f"signal {code - 128}")
        reason = str(state.get("Error") or "") or f"exit code {code}"
        return Exit(code, reason=reason)

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
            with contextlib.suppress(NotFound):
                await engine.stop_container(run.container, math.ceil(max(0.0, grace_s)))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DRAIN_S + 5):
                    await run.ended.wait()
        await engine.remove_container(run.container)
        if run.watch is not None:
            run.watch.cancel()
        self._settle(run, Exit(None, reason="it was stopped"))
        self._run = None
        with contextlib.suppress(NotFound):
            await engine.inspect_container(run.container)
            raise EngineError(
                f"container {self._name!r} is still there after its removal",
                hint=f"remove it with: docker rm -fv {self._name}",
                endpoint=engine.address,
            )
