"""Find who can run a package, and keep what it made.

Owns:    the order builders are asked in; one Instance per ccid.
Not:     building twice at once (build_registry.py), building (controllers).
Entry:   Router
Holds:   a package nobody takes is an error that lists every builder's verdict; there is
         no silent fall-through.
Source:  launch.md §1.5, §9 W42, W44; needs.md row 8
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from chaindock.container.contracts import Declined
from chaindock.errors import ChaindockError, ConfigInvalid, NotFound, Unsupported
from chaindock.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

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
    """

    def __init__(
        self, builders: Sequence[Builder], choose: Callable[[Ccid], str | None]
    ) -> None:
        self._builders = tuple(builders)
        self._choose = choose
        self._instances: dict[Ccid, Instance] = {}
        self._declined: dict[Ccid, str] = {}

    async def build(self, package: StoredPackage, attempt: Attempt) -> Instance:
        """Build `package` and keep the instance in place of an earlier one.

        Raises:
            Unsupported: every builder declined. Facts: `verdicts` {builder: reason}.
            ConfigInvalid: the chosen builder does not exist.
            ChaindockError: why the chosen builder cannot take it here.
            Whatever the builder raises; the earlier instance, if any, is kept then.
        """
        verdicts: dict[str, str] = {}
        for builder in self._candidates(package.ccid):
            answer = await builder.build(package, attempt)
            if not isinstance(answer, Declined):
                self._instances[package.ccid] = answer
                self._declined[package.ccid] = _listed(verdicts)
                return answer
            verdicts[builder.name] = answer.reason
            attempt.note(f"not with {builder.name}: {answer.reason}")
            if answer.error is not None and self._choose(package.ccid) is not None:
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
            hint="package it as a type that one of them takes, or enable another backend",
            ccid=package.ccid,
            verdicts=verdicts,
        )

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
        self._declined.pop(ccid, None)

    async def discard(self, ccid: Ccid) -> None:
        """Have every builder remove what it built for `ccid`; it is not running."""
        self.forget(ccid)
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

    async def reap(self) -> int:
        """Remove what earlier processes of this node left; return how many objects.

        A builder that cannot be asked now (its engine is away) is passed over: what it
        owns is out of reach, and others must not suffer from it.
        """
        removed = 0
        for builder in self._builders:
            removed += await _reap(builder)
        return removed

    def _candidates(self, ccid: Ccid) -> Sequence[Builder]:
        wanted = self._choose(ccid)
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


def _listed(verdicts: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {why}" for name, why in verdicts.items())


async def _reap(builder: Builder) -> int:
    try:
        count = await builder.reap()
    except ChaindockError as error:
        _log.warning("builder not reaped", builder=builder.name, error=error.message)
        return 0
    if count:
        _log.info("leftovers removed", builder=builder.name, count=count)
    return count
