"""Whose peer a server is, and where its clients find it.

Source: docs/fabric/gateway.md#servers
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from chaindock.gateway.options import GatewayOptions
from chaindock.values import show_address

DEFAULT: Final = ("127.0.0.1", 7051)
APART: Final = 2000
"""Between the ports of two peers, as in Fabric's test network."""
LOCAL: Final = "127.0.0.1"
ALL: Final = ("0.0.0.0", "::")  # noqa: S104  # as a user may set it


def named(address: str) -> str:
    """Return an address whose host may be the TLS name, too, also for old clients."""
    host, _, port = address.rpartition(":")
    return f"localhost:{port}" if host == LOCAL else address


def configured(options: GatewayOptions) -> str:
    """Return the address of the first peer, host:port; "" = another one each time."""
    host, port = options.listen or DEFAULT
    dialled = LOCAL if host in {"", *ALL} else host
    return named(show_address((dialled, port))) if port else ""


@dataclass(frozen=True)
class Seat:
    """Whose peer a server is, and the address that its clients dial."""

    mspid: str
    address: str
    addresses: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Those of the peers of all organisations, by MSP id; grows."""

    def of(self, mspid: str) -> Seat:
        """Return the seat of another peer of the node."""
        return Seat(mspid, self.addresses.get(mspid, self.address), self.addresses)
