"""What this machine has of a container network.

Owns:    its addresses and interfaces, whether it filters packets within bridges.
Not:     the networks (network.py), rules (filter.py).
Entry:   addresses, interface_of, bridges_filtered
Holds:   looks, changes nothing.
"""

from __future__ import annotations

from pathlib import Path

import psutil

KERNEL_LOG = "/dev/kmsg"

_BRIDGES_FILTERED = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")


def addresses() -> frozenset[str]:
    """Return the addresses of this machine."""
    return frozenset(
        one.address.partition("%")[0]
        for card in psutil.net_if_addrs().values()
        for one in card
    )


def interface_of(address: str) -> str:
    """Return the interface of this machine that has an address; "" = none."""
    for name, card in psutil.net_if_addrs().items():
        if any(one.address.partition("%")[0] == address for one in card):
            return name
    return ""


def bridges_filtered() -> bool:
    """Whether packets between ports of one bridge pass the packet filter."""
    try:
        return _BRIDGES_FILTERED.read_text().strip() == "1"
    except OSError:
        return False
