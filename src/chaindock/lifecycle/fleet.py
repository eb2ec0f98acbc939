"""What a node runs over all its channels, and for whom it runs each package."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from chaindock.lifecycle.states import BY_HAND

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chaindock.ids import Ccid, ChannelId
    from chaindock.lifecycle.deployments import Deployment, Deployments
    from chaindock.lifecycle.targets import TargetState

    Name = tuple[ChannelId, str]
    """A chaincode by its channel and its name there."""


@dataclass(eq=False)
class Fleet:
    """All deployments of a node. Use it on the event loop.

    Args:
        targets: what is local to the node.
        installed: the packages that are here; `lifecycle.Packages` keeps it true.
        channels: what is deployed in each channel.
    """

    targets: TargetState
    installed: set[Ccid] = field(default_factory=set)
    channels: dict[ChannelId, Deployments] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._coming: set[tuple[Ccid, Name]] = set()

    def is_installed(self, ccid: Ccid) -> bool:
        """Whether a package is here, or a user starts the program."""
        by_hand = self.targets.placement(ccid).given == BY_HAND
        return bool(ccid) and (ccid in self.installed or by_hand)

    def all(self) -> list[Deployment]:
        """Return all deployments, by name and channel."""
        found = [one for each in self.channels.values() for one in each.all()]
        return sorted(found, key=lambda one: (one.name, one.channel))

    def ccids(self) -> set[Ccid]:
        """Return every package that a name runs, or would if it was installed."""
        return {one.ccid for one in self.all() if one.ccid}

    def of(self, ccid: Ccid) -> list[Deployment]:
        """Return the deployments that run this package."""
        return [one for each in self.channels.values() for one in each.of(ccid)]

    def runs(self, ccid: Ccid) -> bool:
        """Whether anybody is to run this package."""
        return any(one.runs for one in self.of(ccid))

    def users(self, ccid: Ccid) -> set[Name]:
        """Return who runs this package."""
        return {(one.channel, one.name) for one in self.of(ccid)}

    def coming(self, ccid: Ccid) -> set[Name]:
        """Return who is being deployed with this package."""
        return {name for one, name in self._coming if one == ccid}

    def names_of(self, ccid: Ccid) -> list[str]:
        """Return the names it runs for, those of deployments under way too."""
        return sorted({name for _, name in self.users(ccid) | self.coming(ccid)})

    @contextmanager
    def expecting(self, ccid: Ccid, name: Name) -> Iterator[None]:
        """Let `coming(ccid)` contain `name` inside the block."""
        self._coming.add((ccid, name))
        try:
            yield
        finally:
            self._coming.discard((ccid, name))
