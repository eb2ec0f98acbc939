"""Is the node well, and is it ready.

Owns:    running checks side by side; the answers of /healthz and /readyz.
Not:     the checks (node/watched.py), HTTP (http.py).
Entry:   Health
Holds:   a check that hangs delays no other and is a failed check after its limit;
         while the node starts or goes down it is not ready.
Source:  launch.md §8.1, §9 W68
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Protocol

from chaindock.errors import ChaindockError
from chaindock.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    Check = Callable[[], Awaitable[None]]
    """Returns when all is well. Raises: ChaindockError."""

_log = get_logger("operations")
CHECK_S: Final = 10.0
"""A check that takes longer has failed."""
NODE: Final = "node"
"""Component that is not ready before all others are known, and while it goes down."""


@dataclass(frozen=True)
class Trouble:
    """What is not as it should be.

    Args:
        component: `docker`, `ledger`, `chaincode/NAME`, …
        reason: one sentence.
    """

    component: str
    reason: str

    def as_dict(self) -> dict[str, str]:
        """Fabric's shape."""
        return {"component": self.component, "reason": self.reason}


class Watched(Protocol):
    """The parts of a node that can be ill."""

    def checks(self) -> Mapping[str, Check]:
        """Return what to try, by component."""

    def missing(self) -> Sequence[Trouble]:
        """Return what is not up yet. Quick, never raises."""


class Health:
    """How the node is, from the moment that its home is locked.

    Attributes:
        watched: None while the node starts.
        going_down: it takes no more work.
    """

    def __init__(self, check_s: float = CHECK_S) -> None:
        self._check_s = check_s
        self.watched: Watched | None = None
        self.going_down = False

    async def failed(self) -> list[Trouble]:
        """Try everything, side by side; return what failed, by component.

        Cancelled: the checks end.
        """
        checks = {} if self.watched is None else self.watched.checks()
        found = await asyncio.gather(
            *(self._try(name, check) for name, check in checks.items())
        )
        return [trouble for trouble in found if trouble is not None]

    async def _try(self, component: str, check: Check) -> Trouble | None:
        scope = asyncio.timeout(self._check_s)
        try:
            async with scope:
                await check()
        except TimeoutError:
            return Trouble(component, f"no answer within {self._check_s:g} s")
        except ChaindockError as error:
            return Trouble(component, error.message)
        except Exception as error:  # noqa: BLE001  # a defect is a failed check
            _log.error("check failed unexpectedly", check=component, exc_info=error)
            return Trouble(component, f"unexpected {type(error).__name__}: {error}")
        return None

    def missing(self) -> list[Trouble]:
        """Return what keeps the node from being ready; [] = it is."""
        if self.going_down:
            return [Trouble(NODE, "it is going down")]
        if self.watched is None:
            return [Trouble(NODE, "it is starting")]
        return list(self.watched.missing())


def body_of(troubles: Sequence[Trouble], key: str) -> dict[str, Any]:
    """Return Fabric's body: `status`, `time`, and under `key` what is wrong."""
    body: dict[str, Any] = {
        "status": "Service Unavailable" if troubles else "OK",
        "time": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
    }
    if troubles:
        body[key] = [trouble.as_dict() for trouble in troubles]
    return body
