"""What client applications and the `peer` command need to connect, and their files.

The files lie in `connections` of the home. They are written when the node has started,
when an organisation has joined, and whenever somebody asks.
Source: docs/fabric/clients.md
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from chaindock.gateway.listener import ClientListener
from chaindock.identity.files import replace_file
from chaindock.identity.organization import ADMIN, Organization, Organizations
from chaindock.node.channels import Channels, NodeChannel

USERS: Final = (ADMIN, "User1")
"""Identities that each organisation has from the start."""
_CORE: Final = b"""\
# What the `peer` command reads in the directory FABRIC_CFG_PATH. The rest comes from the
# variables of `chaindock env peer`. The node does not read this file.
peer:
  localMspType: bccsp
  client:
    connTimeout: 10s
  BCCSP:
    Default: SW
    SW:
      Hash: SHA2
      Security: 256
"""
_ROLES: Final = ("endorsingPeer", "chaincodeQuery", "ledgerQuery", "eventSource")
"""What a peer does for a channel, as connection profiles name it."""


class Connections:
    """How clients reach the node, as facts and as files in `folder`.

    `clients` serves the organisations; with `client_auth` they must show a certificate.
    """

    def __init__(
        self,
        folder: Path,
        organizations: Organizations,
        channels: Channels,
        clients: ClientListener,
        *,
        client_auth: bool,
    ) -> None:
        self._folder, self._channels = folder, channels
        self._organizations, self._clients = organizations, clients
        self._client_auth = client_auth
        self._lock = threading.Lock()

    def write(self) -> None:
        """Write the profiles, and make the first users. Blocks. Raises: StorageError."""
        with self._lock:  # a file has one writer at a time
            replace_file(self._folder / "peer" / "core.yaml", _CORE)
            for own in self._served():
                for user in USERS:
                    own.user(user)
                profile = self._profile(own)
                text = json.dumps(profile, indent=2).encode() + b"\n"
                place = self._folder / _name(own, "json")
                if not place.exists() or place.read_bytes() != text:
                    replace_file(self._folder / _name(own, "yaml"), _yaml(profile))
                    replace_file(place, text)

    def describe(
        self, user: str, org: str | None = None, channel: str | None = None
    ) -> dict[str, Any]:
        """Return what a client needs; make the user on first use. Blocks.

        `org` is an MSP id, also without `MSP` at its end; None = the first
        organisation. A `channel` of None is the first one.

        Returns: `mspid`, `domain`, `user`, `channel`; `address`, `tls_name` and `ca` of
            the peer, the same in `orderer`; `msp`, `certificate` and `key` of the user;
            `client_tls` with `certificate` and `key`, None = none is asked for;
            `profile` (a file) and `peer_config` (a directory). Without TLS `tls_name` and
            `ca` are None.

        Raises: NotFound: no such channel or member. InvalidInput: as `Organization.user`.
            StorageError.
        """
        self.write()
        wanted = self._channels.require(channel)
        found = wanted.members.get(org)
        found.user(user)
        msp = found.user_msp(user)
        first = self._organizations.first
        dialled = self._clients.connection(first.mspid)
        orderer = {"address": dialled["address"], "tls_name": None, "ca": None}
        if dialled["ca"]:
            name = orderer["tls_name"] = f"orderer.{first.domain}"
            orderer["ca"] = str(first.path / "orderers" / name / "tls" / "ca.crt")
        pair = {
            name: str(msp.parent / "tls" / f"client.{ending}")
            for name, ending in (("certificate", "crt"), ("key", "key"))
        }
        return {
            "mspid": found.mspid,
            "domain": found.domain,
            "user": user,
            "channel": wanted.id,
            **self._clients.connection(found.mspid),
            "orderer": orderer,
            "msp": str(msp),
            "certificate": str(next((msp / "signcerts").glob("[!.]*"))),
            "key": str(next((msp / "keystore").glob("[!.]*"))),
            "client_tls": pair if self._client_auth else None,
            "profile": str(self._folder / _name(found, "json")),
            "peer_config": str(self._folder / "peer"),
        }

    def _open(self) -> list[NodeChannel]:
        """Return the channels: of those of the node, some may come and go meanwhile."""
        found = map(self._channels.get, list(self._channels))
        return [one for one in found if one is not None]

    def _served(self) -> list[Organization]:
        members = (m for one in self._open() for m in list(one.members.peers))
        found = map(self._organizations.find, dict.fromkeys(members))
        return [
            one
            for one in found
            if one and self._clients.connection(one.mspid)["address"]
        ]

    def _profile(self, own: Organization) -> dict[str, Any]:
        """Return the connection profile for the applications of an organisation."""
        first, served = self._organizations.first, self._served()
        peers = {one.mspid: f"peer0.{one.domain}" for one in served}
        orderer = f"orderer.{first.domain}"
        timeouts = {"peer": {"endorser": "300"}, "orderer": "300"}
        return {
            "name": f"chaindock-{_short(own)}",
            "version": "1.0.0",
            "client": {
                "organization": _title(own),
                "connection": {"timeout": timeouts},
            },
            "channels": {
                channel.id: {
                    "orderers": [orderer],
                    "peers": {
                        peers[mspid]: dict.fromkeys(_ROLES, True)
                        for mspid in list(channel.members.peers)
                        if mspid in peers
                    },
                }
                for channel in self._open()
            },
            "organizations": {
                _title(one): {"mspid": one.mspid, "peers": [peers[one.mspid]]}
                for one in served
            },
            "orderers": {orderer: self._node(first, orderer)},
            "peers": {
                peers[one.mspid]: self._node(one, peers[one.mspid]) for one in served
            },
        }

    def _node(self, organization: Organization, name: str) -> dict[str, Any]:
        dialled = self._clients.connection(organization.mspid)
        if not dialled["ca"]:
            return {"url": f"grpc://{dialled['address']}"}
        return {
            "url": f"grpcs://{dialled['address']}",
            "tlsCACerts": {"pem": organization.tls[0].decode()},
            "grpcOptions": {"ssl-target-name-override": name, "hostnameOverride": name},
        }


def _short(organization: Organization) -> str:
    return organization.domain.partition(".")[0]


def _title(organization: Organization) -> str:
    return organization.mspid.removesuffix("MSP")


def _name(organization: Organization, ending: str) -> str:
    """Return the name of a profile, as that of Fabric's test network."""
    return f"connection-{_short(organization)}.{ending}"


def _yaml(profile: Mapping[str, Any]) -> bytes:
    import yaml  # noqa: PLC0415  # most starts write no profile

    class Dumper(yaml.SafeDumper):
        """Writes certificates in lines."""

    def shown(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
        style = "|" if "\n" in text else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)

    Dumper.add_representer(str, shown)
    text: str = yaml.dump(profile, Dumper=Dumper, sort_keys=False)
    return text.encode()
