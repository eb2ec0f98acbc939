"""Is the node healthy, and is it ready: the answers of /healthz and /readyz.

Checks run side by side; one that hangs has failed after its limit. While the node starts
or goes down, it is not ready.
Source: docs/fabric/operations.md
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
    """Returns if the part works. Raises: ChaindockError."""

_log = get_logger("operations")
CHECK_S: Final = 10.0
"""Seconds after which a check has failed."""
NODE: Final = "node"
"""Component that is not ready while the node starts or goes down."""


@dataclass(frozen=True)
class Trouble:
    """A part that has failed or is not ready.

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
    """The parts of a node."""

    def checks(self) -> Mapping[str, Check]:
        """Return the checks, by component."""

    def missing(self) -> Sequence[Trouble]:
        """Return the parts that are not up yet. Quick, never raises."""


class Health:
    """Health and readiness of the node, from the moment that its home is locked.

    Attributes:
        watched: the parts; None while the node starts.
        going_down: the node takes no more work.
    """

    def __init__(self, check_s: float = CHECK_S) -> None:
        self._check_s = check_s
        self.watched: Watched | None = None
        self.going_down = False

    async def failed(self) -> list[Trouble]:
        """Run all checks side by side; return the failed parts.

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
        """Return what keeps the node from being ready; [] = it is ready."""
        if self.going_down:
            return [Trouble(NODE, "the node is stopping")]
        if self.watched is None:
            return [Trouble(NODE, "it is starting")]
        return list(self.watched.missing())


def body_of(troubles: Sequence[Trouble], key: str) -> dict[str, Any]:
    """Return Fabric's body: `status`, `time`, and the troubles under `key`."""
    body: dict[str, Any] = {
        "status": "Service Unavailable" if troubles else "OK",
        "time": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
    }
    if troubles:
        body[key] = [trouble.as_dict() for trouble in troubles]
    return body
