"""What names mean to an endorser, as a test approves it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from chaindock.errors import NotFound, StartFailed
from chaindock.lifecycle.definitions import Approval, not_installed, read_sequence

if TYPE_CHECKING:
    from chaindock.lifecycle.deployments import Deployments


def definitions_of(approvals: Any) -> Deployments:
    """Return `Deployments.at` and `find` of what `approvals` has: `approval` and `is_stopped`."""
    return cast("Deployments", _Definitions(approvals))


class _Definitions:
    def __init__(self, approvals: Any) -> None:
        self._approvals = approvals

    def at(self, simulator: Any, name: str) -> Approval:
        sequence = read_sequence(simulator, name)
        if sequence == 0:
            raise NotFound(f"chaincode {name} not found", chaincode=name)
        found: Approval | None = self._approvals.approval(name, sequence)
        if found is None:
            raise not_installed(name, sequence)
        if self._approvals.is_stopped(name):
            raise StartFailed(f"chaincode {name!r} was stopped", ccid=found.ccid)
        return found

    def find(self, name: str) -> Approval | None:
        known = (self._approvals.approval(name, number) for number in range(1, 100))
        return max(filter(None, known), key=lambda one: one.sequence, default=None)
