"""One channel: its ledger, what endorses, orders and reads there, and its members.

An organisation is a member from the configuration block that contains it on.
Source: docs/fabric/policies.md#policies-of-a-channel
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chaindock.aio import finish
from chaindock.endorser.caller import Caller
from chaindock.endorser.configuration import Configuration
from chaindock.endorser.endorser import Endorser
from chaindock.endorser.genesis import with_organization
from chaindock.endorser.orderer import Orderer
from chaindock.errors import AlreadyExists, NotFound
from chaindock.identity.msp import Identity, SigningIdentity
from chaindock.identity.organization import Organization, Organizations, full_mspid
from chaindock.ids import ChannelId
from chaindock.ledger.ledger import Ledger
from chaindock.ledger.reader import LedgerReader


class Members:
    """The organisations of one channel.

    `peers` are the identities that endorse, by MSP id, that of the node's first
    organisation first. It follows the configuration; a user may have stopped others.
    """

    def __init__(
        self, channel: ChannelId, node: Organizations, configuration: Configuration
    ) -> None:
        self._channel, self._node = channel, node
        self.configuration = configuration
        self._joining = asyncio.Lock()
        self.peers: dict[str, SigningIdentity] = {}
        self.refresh()
        configuration.watchers.append(self.refresh)

    def refresh(self) -> None:
        """Have `peers` follow the configuration and `Organizations.stopped`."""
        mspids = [self._node.first.mspid, *self.configuration.peers]
        found = (self._node.find(mspid) for mspid in mspids)
        self._known = {one.mspid: one.peer for one in found if one}
        known, stopped = self._known.items(), self._node.stopped
        self.peers.clear()
        self.peers.update((mspid, one) for mspid, one in known if mspid not in stopped)

    def identities(self) -> dict[str, Identity]:
        """Return the node's peers by MSP id, those that run first."""
        known = {**self.peers, **self._known}
        return self.configuration.msps.valid(
            {mspid: one.creator for mspid, one in known.items()}
        )

    def get(self, mspid: str | None) -> Organization:
        """Return a member; `Org2` is Org2MSP, None the first one. Raises: NotFound."""
        wanted = full_mspid(mspid or self._node.first.mspid, self._known)
        found = self._node.find(wanted)
        if found is None or wanted not in self._known:
            raise NotFound(
                f"organisation {mspid!r} is none of those of channel {self._channel!r} "
                f"whose keys this node has: {', '.join(self._known)}",
                hint="see them: chaindock org ls; add one: chaindock org add NAME",
                mspid=mspid,
            )
        return found

    def admins(self, mspid: str | None = None) -> Sequence[SigningIdentity]:
        """Return the admin of a member, as `get`; None = of each whose peer runs."""
        return [self.get(one).admin for one in ([mspid] if mspid else self.peers)]

    def list(self) -> list[dict[str, Any]]:
        """Return `mspid`, `domain`, `path`, `orders` of each member, the first first.

        And `stopped`: whether a user has stopped its peer. `domain` and `path` are None when the node does not have the member's keys.
        """
        mspids = dict.fromkeys([*self._known, *self.configuration.peers])
        return [self._describe(mspid) for mspid in mspids]

    def _describe(self, mspid: str) -> dict[str, Any]:
        found = self._node.find(mspid)
        return {
            "mspid": mspid,
            "domain": found and found.domain,
            "path": found and str(found.path),
            "orders": found is self._node.first,
            "stopped": mspid in self._node.stopped,
        }

    async def add(self, name: str, orderer: Orderer) -> dict[str, Any]:
        """Make the organisation `name` and commit the configuration that contains it.

        Returns: as `list`, and `block`, the number of the configuration block.

        Raises: InvalidInput, StorageError: as `Organizations.make`. AlreadyExists: it is
            a member. As `Orderer.submit`: the node lacks the keys of a majority of the
            admins, or the block was not written; the organisation is no member.
        Cancelled: when the organisation is a member, or is not.
        """
        # The block is committed also if the client leaves. Then the node needs the keys of
        # the new member, to satisfy a majority.
        return await finish(self._add(name, orderer))

    async def _add(self, name: str, orderer: Orderer) -> dict[str, Any]:
        async with self._joining:
            made = await asyncio.to_thread(self._node.make, name)
            if made.mspid in self.configuration.peers:
                raise AlreadyExists(
                    f"organisation {made.mspid!r} is a member of channel "
                    f"{self._channel!r} already",
                    hint="see the members: chaindock org ls",
                    mspid=made.mspid,
                )
            admins = [self.get(mspid).admin for mspid in self._known]
            config = self.configuration.config
            where = await orderer.submit(
                with_organization(self._channel, config, made.msp, admins)
            )
            return {**self._describe(made.mspid), "block": where.block}


@dataclass(kw_only=True, eq=False)
class Channel:
    """The parts of a channel while it is open; none of them knows another channel's.

    `ledger` is for the event loop: simulators, point reads, commits; `reader` reads the
    same ledger on a thread of its own, for what takes longer. `members.configuration`
    is the configuration in force, `members.peers` the identities of the node that
    endorse here, by MSP id. `caller` calls chaincode as a client of the channel does.
    """

    id: ChannelId
    ledger: Ledger
    reader: LedgerReader
    members: Members
    endorser: Endorser
    orderer: Orderer
    caller: Caller


class Joined(Mapping[str, Channel]):
    """Those of the node's channels that the peer of an organisation has joined, by name."""

    def __init__(self, channels: Mapping[str, Channel], mspid: str) -> None:
        self._channels, self._mspid = channels, mspid

    def __getitem__(self, name: str) -> Channel:
        channel = self._channels[name]
        if self._mspid not in channel.members.peers:
            raise KeyError(name)
        return channel

    def __iter__(self) -> Iterator[str]:
        return (name for name in list(self._channels) if name in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)
