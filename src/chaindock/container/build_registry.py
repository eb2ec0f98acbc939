"""The instances that this process has built, one per ccid.

A successful build is reused until it is forgotten. One supervisor works on a ccid, so
two builds of it never run at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from chaindock.container.contracts import Instance
    from chaindock.ids import Ccid


class BuildRegistry:
    """Remembers successful builds; failed ones are built again."""

    def __init__(self) -> None:
        self._instances: dict[Ccid, Instance] = {}

    async def build_once(
        self, ccid: Ccid, build: Callable[[], Awaitable[Instance]]
    ) -> Instance:
        """Return the instance of `ccid`; call `build` if there is none.

        Raises: what `build` raises.
        """
        if ccid not in self._instances:
            self._instances[ccid] = await build()
        return self._instances[ccid]

    def forget(self, ccid: Ccid) -> None:
        """Build `ccid` again at the next call. Idempotent."""
        self._instances.pop(ccid, None)
