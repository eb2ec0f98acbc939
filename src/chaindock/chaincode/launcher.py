"""Make one launch: build, start, then the first of registered, failed, exited, deadline.

A launch that fails or is cancelled leaves nothing running. When to launch, and how often,
is the supervisor's business (lifecycle/supervisor.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from chaindock.aio import finish, first
from chaindock.chaincode.client import serve_dialled
from chaindock.chaincode.failures import launch_failure, log_facts, tls_failure, within
from chaindock.chaincode.handler import Handler
from chaindock.chaincode.options import LaunchOptions, StreamOptions
from chaindock.chaincode.registry import HandlerRegistry
from chaindock.chaincode.running import Running
from chaindock.container.attempt import Attempt, Phase
from chaindock.container.contracts import Cause, Dial, Instance, PeerConnection
from chaindock.container.router import Router
from chaindock.errors import (
    ChaindockError,
    ExitedEarly,
    ImageNotFound,
    LaunchFailed,
    LaunchTimeout,
    StartFailed,
)
from chaindock.identity.ca import certificate_hash
from chaindock.ids import Ccid, split_peer
from chaindock.packaging.store import StoredPackage
from chaindock.telemetry import bound, get_logger, metrics

_log = get_logger("chaincode.launcher")
_PROBE_S: Final = 10.0
"""Seconds that the probe of the route from the container to the node may take."""
_UNHEARD_S: Final = 20.0
"""Seconds without a stream after which the node probes that route."""


class RuntimeLauncher:
    """Launches chaincode.

    One supervisor works on a ccid, so two builds of it never run at once. A successful
    build is reused until a start says that its image is gone. What serves the peer of
    another organisation (`ids.at_peer`) runs from the same build.

    `package_of` returns a package, verified, or raises NotFound, PackageInvalid.
    `peer_for` returns how the chaincode of an attempt connects to the node.
    """

    def __init__(
        self,
        registry: HandlerRegistry,
        package_of: Callable[[Ccid], Awaitable[StoredPackage]],
        router: Router,
        peer_for: Callable[[Attempt], PeerConnection],
        *,
        options: LaunchOptions | None = None,
        stream: StreamOptions | None = None,
    ) -> None:
        self._registry, self._router = registry, router
        self._package_of, self._peer_for = package_of, peer_for
        self._instances: dict[Ccid, Instance] = {}
        self._options = options or LaunchOptions()
        self._stream = stream or StreamOptions()

    async def launch(self, attempt: Attempt) -> Running:
        """Return the run of `attempt.ccid` when calls can be sent to it.

        Raises: LaunchFailed and its kinds, with the facts of the failure. StorageError
            when the output cannot be kept.
        Cancelled, or any error: nothing of the launch is left.
        """
        with bound(ccid=attempt.ccid, attempt=attempt.id):
            attempt.begin()
            metrics.launch_begun(attempt.ccid)
            _log.info("launching", ccid=attempt.ccid, attempt=attempt.id)
            run = Running(self._registry, attempt)
            try:
                failure = await self._bring_up(run)
            except asyncio.CancelledError:
                await finish(run.take_down())
                raise
            if failure is not None:
                await finish(run.take_down())
                # All output has arrived only after the take-down.
                failure.facts["output"] = failure.facts["output"] or attempt.tail()
            _tell(attempt, failure)
            if failure is not None:
                raise failure
            return run

    async def await_program(self, attempt: Attempt) -> Running:
        """Return the run of a program that a user starts, once it has registered."""
        run = Running(self._registry, attempt)
        handler = self._registry.find_ready(attempt.ccid)
        if handler is None:
            self._registry.expect(run.expected)
            try:
                handler = await run.expected.ready.wait()
            finally:
                self._registry.forget(run.expected)
        run.came_up(handler)
        return run

    async def discard(self, ccid: Ccid) -> None:
        """Remove what was built for `ccid` alone, which does not run. Idempotent."""
        metrics.remove(ccid)
        self.forget(ccid)
        if not split_peer(ccid)[1]:
            await self._router.discard(ccid)

    def forget(self, ccid: Ccid) -> None:
        """Build `ccid` again at the next launch. Idempotent."""
        self._instances.pop(ccid, None)

    async def build(self, ccid: Ccid, attempt: Attempt) -> Instance:
        """Return the instance of `ccid`; build it unless that was done.

        Raises: LaunchTimeout after the build timeout, in which phases that wait for a
            network do not count; what the builder raises; NotFound and PackageInvalid.
        """

        async def build() -> Instance:
            if ccid not in self._instances:
                package = await self._package_of(split_peer(ccid)[0])
                self._instances[ccid] = await self._router.build(package, attempt)
            return self._instances[ccid]

        return await within(self._options.build_timeout_s, build(), attempt)

    async def _bring_up(self, run: Running) -> LaunchFailed | None:
        """Return None when `run` is up, else why it is not."""
        try:
            peer = self._peer_for(run.attempt)
            if peer.tls is not None:
                run.expected.certificate = certificate_hash(peer.tls.cert_pem)
            self._registry.expect(run.expected)
            run.came_up(await self._start(run, peer))
        except Exception as error:  # noqa: BLE001  # a defect must not leave it hanging
            cause = error
            if not isinstance(cause, ChaindockError):
                _log.error("launch failed unexpectedly", ccid=run.ccid, exc_info=error)
                cause = StartFailed(f"{type(error).__name__}: {error}")
            return launch_failure(run.attempt, cause, built=run.instance is not None)
        finally:
            self._registry.forget(run.expected)
        return None

    async def _start(self, run: Running, peer: PeerConnection) -> Handler:
        """Build if needed, start, and wait until the chaincode has registered."""
        limits, ccid, attempt = self._options, run.ccid, run.attempt

        async def start() -> tuple[Dial | None, float]:
            instance = run.instance = await self.build(ccid, attempt)
            run.expected.concurrency = instance.concurrency
            end = time.monotonic() + limits.startup_timeout_s
            starting = instance.start(peer, attempt)
            return await within(limits.startup_timeout_s, starting, attempt), end

        try:
            started, end = await start()
        except ImageNotFound as error:
            if run.instance is None:
                raise  # an image that the build needs
            _log.warning("image is gone, building again", ccid=ccid)
            attempt.note(f"{error.message}: building it again")
            self.forget(ccid)
            started, end = await start()
        try:
            return await within(
                max(0.0, end - time.monotonic()),
                self._registered(run, started),
                run.attempt,
                {
                    Phase.CONNECT: limits.connect_timeout_s,
                    Phase.REGISTER: limits.register_timeout_s,
                },
            )
        except (ExitedEarly, LaunchTimeout) as error:
            why = await self._why_no_stream(run, error)
            if why is None:
                raise
            raise why from error

    async def _registered(self, run: Running, started: Dial | None) -> Handler:
        """Return the handler of the registered chaincode.

        Raises: ExitedEarly, StartFailed, RegistrationRefused, and what the probe
            from inside the container finds.
        """
        assert run.instance is not None  # noqa: S101  # it was started
        run.expected.dialled = started is not None
        if run.attempt.phase not in {Phase.REGISTER, Phase.READY}:
            run.attempt.enter(Phase.CONNECT)
        waits: dict[str, Any] = {
            "ready": run.expected.ready.wait(),
            "exit": run.instance.wait(),
        }
        if started is not None:
            stream = self._stream
            run.handler = Handler(self._registry, stream, dialled=run.expected)
            dial = serve_dialled(started.address, run.handler, stream, started.tls)
            _ = run.tasks.start(dial, "dial")
            waits["end"] = run.handler.ended.wait()
        else:
            waits["unheard"] = self._look_for_the_way(run)
        which, found = await first(**waits)
        if which == "exit":
            run.expected.exit.settle(found)
            what = "process" if run.facts.get("backend") == "process" else "container"
            raise ExitedEarly(
                f"chaincode registration failed: {what} {found.text}", **found.facts
            )
        if which == "end":
            raise StartFailed(f"connection to {run.ccid} failed: {found.reason}")
        handler: Handler = found
        return handler

    async def _why_no_stream(
        self, run: Running, error: LaunchFailed
    ) -> LaunchFailed | None:
        """Return what kept a chaincode that dials from the node; None if not known."""
        if run.attempt.phase is not Phase.CONNECT or run.expected.dialled:
            return None
        if self._registry.arrivals.crowded():
            error.retryable = True
            error.hint = (
                "other programs hold too many connections to the listener (the node's log "
                "names them); the node retries the launch until there is room again"
            )
            return None
        by_itself = error.facts.get("cause", Cause.EXITED) == Cause.EXITED
        if by_itself and (reasons := self._registry.connected_in_vain(run.expected)):
            return tls_failure(error, run.ccid, reasons)
        return await _probed(run) if isinstance(error, LaunchTimeout) else None

    async def _look_for_the_way(self, run: Running) -> None:
        """Raise what keeps a silent chaincode from the node; else wait for ever."""
        await asyncio.sleep(_UNHEARD_S)
        registry = self._registry
        silent = run.attempt.phase is Phase.CONNECT
        if silent and not registry.connected_in_vain(run.expected):
            why = await _probed(run)
            registry.arrivals.clear()
            if why is not None:
                raise why
        await asyncio.Event().wait()


async def _probed(run: Running) -> LaunchFailed | None:
    """Return what keeps the started chaincode from the node, if that can be found."""
    assert run.instance is not None  # noqa: S101  # it was started
    # If the probe itself fails, the time-out says enough.
    with contextlib.suppress(ChaindockError, TimeoutError):
        async with asyncio.timeout(_PROBE_S):
            return await run.instance.probe()
    return None


def _tell(attempt: Attempt, failure: LaunchFailed | None) -> None:
    facts = attempt.facts() if failure is None else failure.facts
    metrics.launch_ended(
        attempt.ccid,
        [(one["phase"], one["seconds"]) for one in facts.get("phases", ())],
        ok=failure is None,
        failed_phase=None if failure is None else facts.get("phase"),
        timed_out=isinstance(failure, LaunchTimeout),
    )
    if failure is None:
        seconds = round(sum(phase.seconds for phase in attempt.phases), 3)
        _log.info("launched", ccid=attempt.ccid, seconds=seconds)
        return
    _log.warning(
        "launch failed",
        ccid=attempt.ccid,
        slug=failure.slug,
        error=failure.message,
        **log_facts(failure.facts),
    )
