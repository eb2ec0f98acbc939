"""What a program that a user starts by hand finds in the home (chaincode.mode: dev)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from chaindock.chaincode.options import ListenOptions
from chaindock.identity.ca import TlsPair
from chaindock.ids import Ccid
from chaindock.node.serve import programs_admitted
from support.eventually import eventually
from support.shims.credentials import client
from support.shims.peer import ShimPeer
from support.shims.stream_node import StreamNode
from support.shims.tls_node import Guarded

if TYPE_CHECKING:
    from pathlib import Path

ANY_PORT = ListenOptions(bind=("127.0.0.1", 0))
PROGRAM = Ccid("parcels:1.0")


@pytest.mark.parametrize("again", [False, True])
async def test_its_tls_files_lie_in_the_home_while_the_node_runs(
    tmp_path: Path, again: bool
):
    """With what a killed node left there, too."""
    folder = tmp_path / "dev"
    if again:
        folder.mkdir()
        (folder / "client.key").write_text("of an earlier node")
    async with Guarded(listen=ANY_PORT, mode="dev") as node:
        async with programs_admitted(node.listener, folder):
            modes = {
                file.name: file.stat().st_mode & 0o777 for file in folder.iterdir()
            }
            assert set(modes.values()) == {0o600}
            assert folder.stat().st_mode & 0o777 == 0o700
            pair = TlsPair(
                (folder / "client_pem.key").read_text(),
                (folder / "client_pem.crt").read_text(),
            )
            credentials = client((folder / "peer.crt").read_text(), pair)
            (address,) = node.listener.addresses
            async with await ShimPeer.dial(address, credentials) as peer:
                await peer.register(PROGRAM)
                await eventually(lambda: node.registry.find_ready(PROGRAM))
        assert not folder.exists()


async def test_without_tls_there_are_none(tmp_path: Path):
    folder = tmp_path / "dev"
    async with (
        StreamNode(listen=ANY_PORT, mode="dev") as node,
        programs_admitted(node.listener, folder),
    ):
        assert node.listener.addresses
        assert not folder.exists()
