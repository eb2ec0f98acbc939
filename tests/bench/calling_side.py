"""The part of a node that calls chaincode, without launching: the real one, composed.

The chaincode is a process that dials it; see far_end.py and `chaincode`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from chaindock.chaincode.handler import Expected
from chaindock.chaincode.registry import HandlerRegistry
from chaindock.chaincode.server import ChaincodeListener
from chaindock.chaincode.support import ChaincodeSupport
from chaindock.container.attempt import Attempt
from chaindock.container.contracts import ClientTls, PeerConnection
from chaindock.container.environment import peer_variables, tls_files
from chaindock.endorser.acl import require
from chaindock.endorser.caller import Caller, DefinitionWriter
from chaindock.endorser.configuration import Configuration
from chaindock.endorser.cutting import OrdererOptions
from chaindock.endorser.endorser import Endorser
from chaindock.endorser.genesis import genesis_envelope
from chaindock.endorser.orderer import Orderer
from chaindock.identity.ca import TlsAuthority, certificate_hash
from chaindock.identity.organization import Organization
from chaindock.ids import Ccid, ChannelId
from chaindock.ledger.ledger import Ledger
from chaindock.lifecycle.contract import LifecycleContract
from chaindock.lifecycle.definitions import Approval, Definition
from support.doubles.definitions import definitions_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from chaindock.identity.msp import Identity, SigningIdentity

CHANNEL = ChannelId("mychannel")
NAME = "bench"
CCID = Ccid("bench:" + "0" * 64)
_APPROVAL = Approval(NAME, 1, "1.0", CCID)
_FAR_END = Path(__file__).parent / "far_end.py"


class _Approvals:
    """One chaincode."""

    def approval(self, name: str, sequence: int) -> Approval | None:
        return _APPROVAL if (name, sequence) == (NAME, 1) else None

    def is_stopped(self, name: str) -> bool:
        return False


@dataclass
class CallingSide:
    """Args: support: runs invocations on the chaincode; caller: the whole way."""

    support: ChaincodeSupport
    caller: Caller
    ledger: Ledger
    organization: Organization
    client: SigningIdentity


def verify(identity: Identity, message: bytes, signature: bytes) -> None:
    """Check a signature, also one that the node would remember as its own."""
    digest = sha256(message).digest()
    identity.key.verify(signature, digest, ec.ECDSA(Prehashed(hashes.SHA256())))


class Trust:
    """TLS of both sides of a comparison: one authority, one client certificate."""

    def __init__(self, folder: Path) -> None:
        self.authority = TlsAuthority()
        pair = self.authority.issue_client()
        self.certificate = certificate_hash(pair.cert_pem)
        self.tls = ClientTls(pair.key_pem, pair.cert_pem, self.authority.root_pem)
        self.folder = folder / "tls"
        self.folder.mkdir(parents=True)
        for name, data in tls_files(self.tls).items():
            (self.folder / name).write_bytes(data)


@contextlib.asynccontextmanager
async def chaincode(
    address: str, argv: Sequence[str] | None = None, trust: Trust | None = None
) -> AsyncIterator[None]:
    """Run a chaincode process that dials `address`; None = far_end.py."""
    peer = PeerConnection(cast(Any, None), "Org1MSP")
    env = {
        "PATH": os.defpath,
        "GRPC_VERBOSITY": "ERROR",
        **peer_variables(CCID, peer, str(trust.folder) if trust else None),
    }
    process = await asyncio.create_subprocess_exec(
        *(argv or (sys.executable, str(_FAR_END), address, CCID)),
        env=env,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@contextlib.asynccontextmanager
async def calling_side(
    folder: Path, argv: Sequence[str] | None = None, trust: Trust | None = None
) -> AsyncIterator[CallingSide]:
    """Give a node's calling side on which the chaincode is defined and registered.

    `argv` starts the chaincode, `{address}` in it is the node's; None = far_end.py.
    """
    organization = Organization.open(folder / "org", "Org1MSP", "org1.example.com")
    approvals: Any = _Approvals()
    options = OrdererOptions()
    async with AsyncExitStack() as stack:
        ledger = await stack.enter_async_context(
            Ledger(
                folder / "ledger.db",
                CHANNEL,
                organization.orderer,
                lambda: genesis_envelope(CHANNEL, organization.msp, options),
            )
        )
        configuration = Configuration.of(ledger)
        registry = HandlerRegistry()
        authority = trust.authority if trust else None
        listener = await stack.enter_async_context(
            ChaincodeListener(registry, authority=authority)
        )
        support = ChaincodeSupport(registry, _never_launches)
        endorser = Endorser(
            configuration=configuration,
            peers={organization.mspid: organization.peer},
            ledger=ledger,
            definitions=definitions_of(approvals),
            executor=support,
            system={
                "_lifecycle": LifecycleContract(
                    CHANNEL,
                    lambda: ["Org1MSP"],
                    cast("Any", None),
                    partial(require, configuration),
                )
            },
        )
        orderer = await stack.enter_async_context(
            Orderer(ledger, configuration, options)
        )
        caller = Caller(CHANNEL, endorser, orderer)
        await DefinitionWriter(caller, ledger, lambda: [organization.admin]).commit(
            Definition(name=NAME, sequence=1, version="1.0"), CCID
        )
        certificate = trust.certificate if trust else None
        expected = Expected(CCID, Attempt(CCID), certificate=certificate)
        registry.expect(expected)
        address = await listener.address_on("127.0.0.1")
        words = argv and [word.format(address=address) for word in argv]
        await stack.enter_async_context(chaincode(address, words, trust))
        async with asyncio.timeout(30):
            await expected.ready.wait()
        client = organization.user("User1")
        yield CallingSide(support, caller, ledger, organization, client)


async def _never_launches(ccid: Ccid, wait_s: float) -> None:
    raise AssertionError("the chaincode is up before the first call")
