"""What a node in memory says to clients about how to connect."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chaindock.errors import NotFound

if TYPE_CHECKING:
    from pathlib import Path


class FakeConnections:
    """One organisation, Org1MSP; `dialled` replaces facts."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self.dialled: dict[str, Any] = {}

    def describe(
        self, user: str, org: str | None = None, channel: str | None = None
    ) -> dict[str, Any]:
        if org not in {None, "Org1", "Org1MSP"}:
            raise NotFound(f"organisation {org!r} is unknown")
        found = connection(self._home, user, **self.dialled)
        return {**found, "channel": channel} if channel else found


def connection(home: Path, user: str, **more: Any) -> dict[str, Any]:
    """Return what a client needs, as a node with TLS says."""
    name, msp = "peer0.org1.example.com", home / user / "msp"
    return {
        "mspid": "Org1MSP",
        "domain": "org1.example.com",
        "user": user,
        "channel": "mychannel",
        "address": "127.0.0.1:7051",
        "tls_name": name,
        "ca": str(home / "ca.crt"),
        "msp": str(msp),
        "client_tls": None,
        "orderer": {
            "address": "127.0.0.1:7051",
            "tls_name": "orderer.org1.example.com",
            "ca": str(home / "orderer.crt"),
        },
        "certificate": str(msp / "signcerts" / f"{user}.pem"),
        "key": str(msp / "keystore" / "priv_sk"),
        "profile": str(home / "connections" / "connection-org1.json"),
        "peer_config": str(home / "connections" / "peer"),
        **more,
    }
