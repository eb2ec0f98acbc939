"""How a container is connected, for those who make its body, watch it and tell of it.

Owns:    the facts that network.py finds out.
Entry:   Attachment
Source:  launch.md §9 W57
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Attachment:
    """How one container is connected.

    Args:
        network: its NetworkMode.
        peer: host:port that it dials; "" when nobody listens.
        isolation: for people: what it can reach.
        weaker: what is open that should not be, a phrase for each.
        publishes: it is dialled through a published port, not at its own address.
        neighbours: other chaincode of the node may reach it.
        lets_in: why every user of this machine can connect to it; "" = only the node's.
    """

    network: str
    peer: str
    isolation: str
    dns: tuple[str, ...] = ()
    extra_hosts: tuple[str, ...] = ()
    publishes: bool = False
    weaker: tuple[str, ...] = ()
    neighbours: bool = False
    lets_in: str = ""
