"""A node of several organisations as its clients see it: addresses and files."""

from __future__ import annotations

import contextlib
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support.nodes.node import FIXTURES, PROCESS, started

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from support.clients.driver import Driver
    from support.nodes.node import Node

CHANNEL = "mychannel"
SCENARIOS = FIXTURES / "scenarios"


@dataclass(frozen=True)
class Network:
    """A running node and the organisations of its channel."""

    node: Node
    _known: dict[tuple[Any, ...], dict[str, str]] = field(default_factory=dict)

    def folder(self, org: str) -> Path:
        """Return the directory of an organisation."""
        root = self.node.home / "organizations" / "peerOrganizations"
        return root / f"{org.lower()}.example.com"

    def environment(self, org: str, user: str = "Admin") -> dict[str, str]:
        """Return the variables that an application takes, as the node prints them."""
        return self._told("app", "any", org=org, user=user)

    def profile(self, org: str, name: str) -> str:
        """Return the connection profile that older libraries take, JSON."""
        found: str = self.node.ask("connect", name, "--org", f"{org}MSP")["profile"]
        return found

    def peer_environment(self, org: str, user: str = "Admin") -> dict[str, str]:
        """Return the variables of the `peer` command, as the node prints them."""
        return self._told("peer", org=org, user=user)

    def _told(self, *words: str, org: str, user: str) -> dict[str, str]:
        """Ask the node once: when it starts again, it may listen elsewhere."""
        asked = (*words, "--org", f"{org}MSP", "--user", user)
        key = (self.node.status["pid"], *asked)
        if key not in self._known:
            self._known[key] = exports(self.node.cli("env", *asked).out.decode())
        return self._known[key]

    def identity(self, org: str, user: str = "Admin") -> dict[str, str]:
        """Return what a client needs to call as somebody."""
        env = self.environment(org, user)
        (cert,) = Path(env["CERT_DIRECTORY_PATH"]).iterdir()
        (key,) = Path(env["KEY_DIRECTORY_PATH"]).iterdir()
        return {"mspid": env["MSP_ID"], "cert": str(cert), "key": str(key)}

    def place(self, org: str) -> dict[str, str]:
        """Return what a client needs to reach the peer of an organisation."""
        env = self.environment(org)
        return {
            "address": env["PEER_ENDPOINT"],
            "tls_name": env["PEER_HOST_ALIAS"],
            "tls_ca": env["TLS_CERT_PATH"],
        }

    def connect(
        self, client: Driver, org: str = "Org1", at: str | None = None, **other: str
    ) -> str:
        """Connect a client as the admin of `org` to its peer, or to that of `at`.

        Returns the name of the connection; `other` replaces what is sent.
        """
        name = f"{org}@{at or org}"
        fields: dict[str, Any] = {"who": name, "channel": CHANNEL, **self.identity(org)}
        client.ask("connect", **{**fields, **self.place(at or org), **other})
        return name


def exports(told: str) -> dict[str, str]:
    """Return the variables of `export NAME=VALUE` lines."""
    lines = (shlex.split(line) for line in told.splitlines())
    pairs = (words[1].partition("=") for words in lines if words[:1] == ["export"])
    return {name: value for name, _, value in pairs}


@contextlib.contextmanager
def network(
    folder: Path, *orgs: str, flags: Sequence[str] = (), **settings: str
) -> Iterator[Network]:
    """Yield a node with Org1 and `orgs`; `flags` are of `chaindock up`."""
    with started(PROCESS, folder, *flags, **settings) as node:
        for org in orgs:
            node.cli("org", "add", org)
        yield Network(node)


def deploy(net: Network, name: str, policy: str, *options: str | Path) -> None:
    """Deploy the contract of the scenarios under a name of its own."""
    words = ("--name", name, "--signature-policy", policy, *options)
    net.node.cli("deploy", SCENARIOS, *words)
