"""A client in Go with the names, options and texts of Fabric's `peer` command."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from support.shims import builds

if TYPE_CHECKING:
    from pathlib import Path

    from support.clients.network import Network

PATIENCE_S = 120


def program() -> Path:
    """Return the program, built once: tests/fixtures/peercli."""
    return builds.go_program(builds.FIXTURES / "peercli")


class PeerCli:
    """The program with the environment that `chaindock env peer` prints."""

    def __init__(self, net: Network, folder: Path) -> None:
        self._net, self._folder = net, folder
        self._program = program()

    def __call__(
        self, *args: str | Path, org: str = "Org1", user: str = "Admin", code: int = 0
    ) -> str:
        """Run a command as a user of an organisation; return all that it printed."""
        done = subprocess.run(
            [self._program, *map(str, args)],
            env={**os.environ, **self._net.peer_environment(org, user)},  # noqa: TID251  # tests have no config
            cwd=self._folder,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        said = done.stdout + done.stderr
        if done.returncode != code:
            words = " ".join(map(str, args))
            pytest.fail(f"`peer {words}` ended with {done.returncode}:\n{said}")
        return said

    def peers(self, *orgs: str) -> list[str]:
        """Return the options that name the peers of some organisations."""
        words = []
        for org in orgs:
            place = self._net.place(org)
            words += ["--peerAddresses", place["address"]]
            words += ["--tlsRootCertFiles", place["tls_ca"]]
        return words

    def orderer(self) -> list[str]:
        """Return the options that name the orderer."""
        place = self._net.place("Org1")
        name = place["tls_name"].replace("peer0", "orderer")
        words = ["-o", place["address"], "--tls", "--cafile", place["tls_ca"]]
        return [*words, "--ordererTLSHostnameOverride", name]
