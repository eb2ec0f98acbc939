"""A node whose listener wants certificates, for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chaindock.identity.ca import TlsAuthority, certificate_hash
from support.doubles.memory_state import invocation
from support.shims.credentials import client
from support.shims.stream_node import CCID, StreamNode

if TYPE_CHECKING:
    from chaindock.chaincode.handler import Expected
    from chaindock.identity.ca import TlsPair
    from chaindock.ids import Ccid
    from support.shims.peer import ShimPeer


class Guarded(StreamNode):
    """A node with TLS, and what a launch gives its chaincode."""

    def __init__(self, **options: Any) -> None:
        super().__init__(authority=TlsAuthority(), **options)
        assert self.authority is not None
        self.root = self.authority.root_pem

    def launch(self, ccid: Ccid = CCID) -> tuple[Expected, TlsPair]:
        """Begin an attempt. Returns: what is expected, what the chaincode gets."""
        assert self.authority is not None
        pair = self.authority.issue_client()
        hashed = certificate_hash(pair.cert_pem)
        return self.expect(ccid, certificate=hashed), pair

    async def dials(self, pair: TlsPair | None, root: str = "") -> ShimPeer:
        return await self.dial(client(root or self.root, pair))

    async def runs(self, ccid: Ccid = CCID) -> tuple[ShimPeer, TlsPair]:
        """Return a chaincode that is ready, and what it shows."""
        expected, pair = self.launch(ccid)
        peer = await self.dials(pair)
        await peer.register(ccid)
        self.handler = await expected.ready.wait()
        self.registry.forget(expected)
        return peer, pair

    async def still_starts(self, expected: Expected, pair: TlsPair) -> None:
        """Check that a launch under way took no harm: it registers and answers."""
        assert not expected.ready.settled
        peer = await self.dials(pair)
        await peer.register(expected.ccid)
        self.handler = await expected.ready.wait()
        call = self.call(invocation("f"))
        await peer.complete(await peer.receive(), b"fine")
        assert (await call).response.payload == b"fine"
