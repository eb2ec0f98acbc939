"""Find who can run a package, and keep what it made.

Owns:    the order builders are asked in; one Instance per ccid.
Not:     building twice at once (build_registry.py), building (controllers).
Entry:   Router
Holds:   a package nobody takes is an error that lists every builder's verdict; there is
         no silent fall-through. What one builder took stays with it until it is
         discarded: an engine that is away is waited for.
Source:  launch.md §1.5, §9 W42, W44; needs.md row 8
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from chaindock.container.attempt import Phase
from chaindock.container.contracts import Declined, Purging
from chaindock.errors import ChaindockError, ConfigInvalid, NotFound, Unsupported
from chaindock.platforms.registry import unsupported_hint
from chaindock.telemetry import get_logger, metrics

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from chaindock.container.attempt import Attempt
    from chaindock.container.contracts import Builder, Instance
    from chaindock.ids import Ccid
    from chaindock.packaging.store import StoredPackage

_log = get_logger("router")


class Router:
    """Asks builders in order.

    Args:
        builders: the first that does not decline gets the package.
        choose: name of the only builder to ask for a ccid; None = any.
        taken: takes note, before anything is started, who took a ccid; what it raises
            fails the build.
    """

    def __init__(
        self,
        builders: Sequence[Builder],
        choose: Callable[[Ccid], str | None],
        taken: Callable[[Ccid, str], Awaitable[None]] | None = None,
    ) -> None:
        self._builders = tuple(builders)
        self._choose = choose
        self._taken = taken
        self._instances: dict[Ccid, Instance] = {}
        self._declined: dict[Ccid, str] = {}
        self._takers: dict[Ccid, str] = {}
        self._unreaped: set[str] = set()

    async def build(self, package: StoredPackage, attempt: Attempt) -> Instance:
        """Build `package` and keep the instance in place of an earlier one.

        Raises:
            Unsupported: every builder declined. Facts: `verdicts` {builder: reason}.
            ConfigInvalid: the chosen builder does not exist.
            ChaindockError: why the chosen builder cannot take it here, and what `taken`
                raises.
            Whatever the builder raises; the earlier instance, if any, is kept then.
        """
        verdicts: dict[str, str] = {}
        only = self._only(package.ccid)
        for builder in self._candidates(package.ccid, only):
            await self._reap_late(builder)
            answer = await self._ask(builder, package, attempt)
            if not isinstance(answer, Declined):
                if self._taken is not None:
                    await self._taken(package.ccid, builder.name)
                self._instances[package.ccid] = answer
                self._takers[package.ccid] = builder.name
                if only is None:
                    self._declined[package.ccid] = _listed(verdicts)
                return answer
            verdicts[builder.name] = answer.reason
            attempt.note(f"not with {builder.name}: {answer.reason}")
            if answer.error is not None and only is not None:
                raise answer.error
            _log.info(
                "package declined",
                ccid=package.ccid,
                builder=builder.name,
                reason=answer.reason,
            )
        raise Unsupported(
            f"package {package.ccid!r} of type {package.package_type!r} is not taken "
            f"by any builder ({_listed(verdicts) or 'there is none'})",
            hint=unsupported_hint(package.package_type)
            or "package it as a type that one of them takes, or enable another backend",
            ccid=package.ccid,
            verdicts=verdicts,
        )

    async def _ask(
        self, builder: Builder, package: StoredPackage, attempt: Attempt
    ) -> Instance | Declined:
        began = time.monotonic()
        try:
            answer = await builder.build(package, attempt)
        except ChaindockError:
            _count(builder, attempt, time.monotonic() - began, ok=False)
            raise
        if not isinstance(answer, Declined):
            _count(builder, attempt, time.monotonic() - began, ok=True)
        return answer

    def instance(self, ccid: Ccid) -> Instance:
        """Return the instance of `ccid`.

        Raises:
            NotFound: it was not built, or was forgotten.
        """
        try:
            return self._instances[ccid]
        except KeyError:
            raise NotFound(f"chaincode {ccid!r} is not built in this node") from None

    def declined(self, ccid: Ccid) -> str:
        """Return who declined `ccid` before it was taken, and why; "" = nobody."""
        return self._declined.get(ccid, "")

    def forget(self, ccid: Ccid) -> None:
        """Drop the instance of `ccid`; whoever forgets it has stopped it before."""
        self._instances.pop(ccid, None)

    async def discard(self, ccid: Ccid) -> None:
        """Have every builder remove what it built for `ccid`; it is not running."""
        self.forget(ccid)
        self._declined.pop(ccid, None)
        self._takers.pop(ccid, None)
        for builder in self._builders:
            try:
                await builder.discard(ccid)
            except ChaindockError as error:
                _log.warning(
                    "build not removed",
                    ccid=ccid,
                    builder=builder.name,
                    error=str(error),
                )

    async def purge(self, ccid: Ccid) -> None:
        """Have builders remove what they kept of a discarded one: it is uninstalled."""
        for builder in self._builders:
            if isinstance(builder, Purging):
                try:
                    await builder.purge(ccid)
                except ChaindockError as error:
                    _log.warning("build not removed", ccid=ccid, error=error.message)

    async def reap(self) -> int:
        """Remove what earlier processes of this node left; return how many objects.

        A builder that cannot be asked now (its engine is away) is passed over: what it
        owns is out of reach, and others must not suffer from it. It is asked again
        before its first build.
        """
        removed = 0
        for builder in self._builders:
            count = await _reap(builder)
            if count is None:
                self._unreaped.add(builder.name)
            removed += count or 0
        return removed

    async def _reap_late(self, builder: Builder) -> None:
        # Before its first build: afterwards it would find what runs.
        if builder.name in self._unreaped and await _reap(builder) is not None:
            self._unreaped.discard(builder.name)

    def _only(self, ccid: Ccid) -> str | None:
        """Return the only builder to ask: the chosen one, or the one that has it."""
        return self._choose(ccid) or self._takers.get(ccid)

    def _candidates(self, ccid: Ccid, wanted: str | None) -> Sequence[Builder]:
        if wanted is None:
            return self._builders
        chosen = [builder for builder in self._builders if builder.name == wanted]
        if not chosen:
            known = ", ".join(builder.name for builder in self._builders) or "none"
            raise ConfigInvalid(
                f"backend {wanted!r} of chaincode {ccid!r} does not exist; "
                f"available: {known}",
                hint="choose one of these with --backend",
                key="backend",
            )
        return chosen


_BUILDS = {Phase.PULL, Phase.DEPENDENCIES, Phase.COMPILE, Phase.IMAGE}
"""Without one of these, the build existed already."""


def _count(builder: Builder, attempt: Attempt, spent_s: float, *, ok: bool) -> None:
    phases = {attempt.phase, *(one.phase for one in attempt.phases)}
    if phases & _BUILDS:
        success = metrics.success(ok)
        metrics.BUILD_DURATION.labels(builder.name, success).observe(spent_s)
        if builder.name == "docker":
            duration = metrics.DOCKER_BUILD_DURATION.labels(attempt.ccid, success)
            duration.observe(spent_s)


def _listed(verdicts: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {why}" for name, why in verdicts.items())


async def _reap(builder: Builder) -> int | None:
    """Return how many objects were removed; None when it cannot be asked."""
    try:
        count = await builder.reap()
    except ChaindockError as error:
        _log.warning("builder not reaped", builder=builder.name, error=error.message)
        return None
    if count:
        _log.info("leftovers removed", builder=builder.name, count=count)
    return count
