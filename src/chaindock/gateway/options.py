"""Options of the services for client applications.

Source: docs/fabric/configuration.md
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from chaindock.options import option
from chaindock.values import MIB, Address, Bytes, Seconds, Whole


@dataclass(frozen=True)
class GatewayOptions:
    """Where client applications reach the peers of the node, and their limits."""

    listen: Address = option(None, "peer.listenAddress")
    """host:port at which client applications reach the peer of the first organisation;
    that of the next one is at port + 2000, and so on; port 0 = free ones. Empty =
    127.0.0.1:7051, or a free port if that is taken."""
    tls: bool = option(True, "peer.tls.enabled")
    client_auth: bool = option(False, "peer.tls.clientAuthRequired")
    """Client applications must show a certificate of an organisation of the node, or of
    peer.tls.clientRootCAs.files."""
    client_roots: tuple[Path, ...] = option((), "peer.tls.clientRootCAs.files")
    """CA certificates, PEM, whose client certificates are accepted, too."""
    endorsement_s: Seconds = option(30.0, "peer.gateway.endorsementTimeout")
    """Longest time that chaincode may take for a call through the gateway, if it is
    less than chaincode.executetimeout."""
    broadcast_s: Seconds = option(30.0, "peer.gateway.broadcastTimeout")
    """Longest time that a transaction waits until it is accepted for ordering."""
    gateway_calls: Whole = option(500, "peer.limits.concurrency.gatewayService")
    """Largest number of calls of the gateway at once, streams of events included; 0 =
    no limit."""
    deliver_calls: Whole = option(2500, "peer.limits.concurrency.deliverService")
    """Largest number of streams of blocks at once; 0 = no limit."""
    time_window_s: Seconds = option(900.0, "peer.authentication.timewindow")
    """How far the time in a client's request for blocks may be from the node's."""
    message_bytes: Bytes = option(100 * MIB, "peer.maxRecvMsgSize")

    @property
    def binds(self) -> bool:
        """Whether requests for blocks and discovery must name the client's certificate."""
        return self.tls and self.client_auth
