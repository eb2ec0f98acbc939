"""One channel: its ledger, and what endorses, orders and reads there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from chaindock.endorser.caller import Caller
from chaindock.endorser.endorser import Endorser
from chaindock.endorser.members import Members
from chaindock.endorser.orderer import Orderer
from chaindock.ids import ChannelId
from chaindock.ledger.ledger import Ledger
from chaindock.ledger.reader import LedgerReader


@dataclass(kw_only=True, eq=False)
class Channel:
    """The parts of a channel while it is open; none of them knows another channel's.

    Attributes:
        id: its name.
        ledger: for the event loop: simulators, point reads, commits.
        reader: of the same ledger, on a thread of its own: for what takes longer.
        members: `members.configuration` is the configuration in force, `members.peers`
            the identities of the node that endorse here, by MSP id.
        caller: calls chaincode as a client of the channel does.
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
