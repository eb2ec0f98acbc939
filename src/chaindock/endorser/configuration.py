"""The configuration of a channel that is in force: its organisations and policies.

It is what the newest configuration block of the ledger says, also after a restart.
Source: docs/fabric/policies.md#policies-of-a-channel
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fabric_protos.common import common_pb2, configtx_pb2
from google.protobuf.message import DecodeError

from chaindock.errors import InvalidInput, LedgerCorrupt
from chaindock.identity.msp import Msp, Msps
from chaindock.identity.policies import PolicyManager

if TYPE_CHECKING:
    from chaindock.ledger.ledger import Ledger

APPLICATION = "Application"


class Configuration:
    """The configuration in force, and what was made of it; replaced as a whole.

    Attributes:
        config: its message.
        msps: all organisations.
        policies: all policies.
        peers: MSP ids of the organisations whose peers endorse.
    """

    def __init__(self, envelope: bytes) -> None:
        """Take what an envelope of type CONFIG holds. Raises: InvalidInput."""
        self.adopt(envelope)

    def adopt(self, envelope: bytes) -> None:
        """Replace the configuration by that of an envelope of type CONFIG.

        Raises: InvalidInput; the former configuration then stays.
        """
        config = read_config(envelope)
        groups = config.channel_group.groups
        found: dict[str, Msp] = {}
        for kind in (APPLICATION, "Orderer"):
            for group in groups[kind].groups.values():
                msp = Msp.of(group.values["MSP"].value)
                found.setdefault(msp.mspid, msp)
        policies = PolicyManager(config)
        self.config, self.msps, self.policies = config, Msps(found.values()), policies

    @classmethod
    def of(cls, ledger: Ledger) -> Configuration:
        """Return what is in force on a ledger. Raises: LedgerError."""
        try:
            number = ledger.height - 1
            slots = _block(ledger, number).metadata.metadata
            signed = common_pb2.Metadata.FromString(slots[common_pb2.SIGNATURES])
            last = common_pb2.OrdererBlockMetadata.FromString(signed.value).last_config
            return cls(_block(ledger, last.index).data.data[0])
        except (DecodeError, InvalidInput) as error:
            raise LedgerCorrupt(
                f"the configuration of channel {ledger.channel!r} cannot be read: {error}"
            ) from error

    @property
    def peers(self) -> list[str]:
        """MSP ids of the organisations below `Application`, in order of their names."""
        named = self.policies.organizations
        return sorted(named, key=lambda mspid: named[mspid])


def read_config(envelope: bytes) -> configtx_pb2.Config:
    """Return the configuration in an envelope of type CONFIG. Raises: InvalidInput."""
    try:
        outer = common_pb2.Envelope.FromString(envelope)
        payload = common_pb2.Payload.FromString(outer.payload)
        return configtx_pb2.ConfigEnvelope.FromString(payload.data).config
    except DecodeError as error:
        raise InvalidInput(f"this is no configuration: {error}") from error


def _block(ledger: Ledger, number: int) -> Any:
    return common_pb2.Block.FromString(ledger.get_block(number))
