"""Real chaincode processes on a real ledger, launched by the real launcher."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from fabric_protos.peer import chaincode_pb2

from chaindock.chaincode.invocation import Invocation, outcome_of
from chaindock.chaincode.launcher import RuntimeLauncher
from chaindock.chaincode.options import CallOptions, LaunchOptions, StreamOptions
from chaindock.chaincode.registry import HandlerRegistry
from chaindock.chaincode.server import ChaincodeListener
from chaindock.chaincode.support import ChaincodeSupport
from chaindock.container.attempt import Attempt, Phase
from chaindock.container.contracts import ClientTls, Dial, Exit, PeerConnection
from chaindock.container.environment import peer_variables, tls_files
from chaindock.container.router import Router
from chaindock.identity.organization import Organization
from chaindock.lifecycle.custodian import Custodian
from chaindock.lifecycle.states import CustodianOptions
from support.doubles.launch_fakes import OneBackend, any_package
from support.ledgers.envelopes import CHANNEL, transaction
from support.ledgers.ledger import VALID, judged, ledger_at
from support.ledgers.proposals import propose
from support.shims.stream_node import CCID

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from chaindock.chaincode.invocation import Outcome
    from chaindock.container.contracts import DialTls, Instance
    from chaindock.identity.ca import TlsAuthority
    from chaindock.packaging.store import StoredPackage

NAME = "conformance"


@dataclass(frozen=True)
class Program:
    """How a conformance chaincode is started; `{peer}`, `{listen}`, `{ccid}` in it.

    Args:
        tls: how it is dialled; None = without TLS.
        files: written beside the TLS files, into `{tls}`.
        without: variables that it does not get.
    """

    argv: tuple[str, ...]
    cwd: Path
    dialled: bool = False
    env: Mapping[str, str] = field(default_factory=dict)
    tls: DialTls | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)
    without: frozenset[str] = frozenset()


class ProgramInstance:
    """A program of this machine as an Instance."""

    def __init__(self, program: Program, log: Path) -> None:
        self._program = program
        self.log = log
        self.process: asyncio.subprocess.Process | None = None
        self.concurrency: int | None = None

    async def start(self, peer: PeerConnection, attempt: Attempt) -> Dial | None:
        attempt.enter(Phase.START)
        folder = self.log.parent / "tls"
        names = {"ccid": CCID, "peer": "", "listen": "", "tls": str(folder)}
        tls = None if self._program.dialled else peer.tls
        folder.mkdir(exist_ok=True)
        for name, data in {
            **(tls_files(tls) if tls is not None else {}),
            **self._program.files,
        }.items():
            (folder / name).write_bytes(data)
        if self._program.dialled:
            names["listen"] = f"127.0.0.1:{free_port()}"
        else:
            names["peer"] = await peer.listener.address_on("127.0.0.1")
        env = {
            "PATH": os.environ["PATH"],  # noqa: TID251  # tests have no config
            "CHAINCODE_ID": CCID,
            **peer_variables(CCID, peer, str(folder) if tls is not None else None),
            **{key: text.format(**names) for key, text in self._program.env.items()},
        }
        for name in self._program.without:
            del env[name]
        with self.log.open("ab") as output:
            self.process = await asyncio.create_subprocess_exec(
                *(word.format(**names) for word in self._program.argv),
                cwd=self._program.cwd,
                env=env,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        if not names["listen"]:
            return None
        return Dial(names["listen"], self._program.tls)

    async def wait(self) -> Exit:
        if self.process is None:
            return Exit(0)
        code = await self.process.wait()
        return Exit(code) if code >= 0 else Exit(None, signal=-code)

    async def stop(self, grace_s: float) -> None:
        if self.process is None or self.process.returncode is not None:
            return
        os.killpg(self.process.pid, signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_s):
                await self.process.wait()
        except TimeoutError:
            os.killpg(self.process.pid, signal.SIGKILL)
            await self.process.wait()

    async def probe(self) -> None:
        """Nothing stands in the way."""

    def describe(self) -> Mapping[str, str]:
        return {"backend": "program"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class _OneBuilder:
    name = "program"
    keeps_builds = False

    def __init__(self, instance: ProgramInstance) -> None:
        self._instance = instance

    async def build(self, package: StoredPackage, attempt: Attempt) -> Instance:
        return self._instance

    async def discard(self, ccid: Any) -> None:
        pass

    async def reap(self) -> int:
        return 0


class ShimWorld:
    """A ledger, a launcher, one chaincode; `call` runs and can commit."""

    def __init__(
        self,
        program: Program,
        folder: Path,
        stream: StreamOptions | None = None,
        authority: TlsAuthority | None = None,
    ) -> None:
        self._authority = authority
        self.instance = ProgramInstance(program, folder / "output.log")
        self._folder = folder
        self._stream = stream or StreamOptions()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        enter = self._stack.enter_async_context
        self.ledger = await enter(ledger_at(self._folder))
        self.registry = HandlerRegistry()
        authority = self._authority
        listener = await enter(
            ChaincodeListener(self.registry, self._stream, authority=authority)
        )

        def peer_for(_: Attempt) -> PeerConnection:
            if authority is None:
                return PeerConnection(listener, "Org1MSP")
            pair = authority.issue_client()
            tls = ClientTls(pair.key_pem, pair.cert_pem, authority.root_pem)
            return PeerConnection(listener, "Org1MSP", tls)

        options = LaunchOptions(connect_timeout_s=60)
        launcher = RuntimeLauncher(
            self.registry,
            any_package,
            Router(OneBackend(_OneBuilder(self.instance))),
            peer_for,
            options=options,
            stream=self._stream,
        )
        settings = CustodianOptions(stop_grace_s=2, drain_s=2)
        self.custodian = await enter(Custodian(launcher, settings))
        self.custodian.resume(CCID)
        self.support = ChaincodeSupport(
            self.registry, self.custodian.ready, CallOptions()
        )
        organization = Organization.open(
            self._folder / "org", "Org1MSP", "org1.example.org"
        )
        self.client = organization.user("alice")
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    @property
    def exit(self) -> Exit | None:
        """How the last run ended; None = none has."""
        record = self.custodian.find(CCID)
        return record.exit if record else None

    async def call(
        self,
        *args: str | bytes,
        commit: bool = False,
        transient: Mapping[str, bytes] | None = None,
        **fields: Any,
    ) -> Outcome:
        """Run a function; with `commit`, put its writes on the ledger."""
        raw = [arg.encode() if isinstance(arg, str) else arg for arg in args]
        tx_id, signed = propose(self.client, CHANNEL, NAME, raw, transient)
        with self.ledger.new_simulator(tx_id) as simulator:
            invoked = Invocation(
                channel_id=CHANNEL,
                tx_id=tx_id,
                namespace=NAME,
                input=chaincode_pb2.ChaincodeInput(args=raw),
                signed_proposal=signed,
                nbytes=signed.ByteSize() + len(b"".join(raw)),
                simulator=simulator,
                capability="V2_5",
                **fields,
            )
            final = await self.support.execute(CCID, invoked)
            outcome = outcome_of(final, invoked)
            if commit:
                assert outcome.response.status == 200, outcome.response.message
                envelope = transaction(simulator.results(), tx_id=tx_id, chaincode=NAME)
                block = await self.ledger.commit(judged([(envelope.envelope, VALID)]))
                assert list(block.codes) == [VALID]
        return outcome

    async def value(self, *args: str | bytes, **fields: Any) -> bytes:
        """Return the payload of a call that succeeds."""
        outcome = await self.call(*args, **fields)
        assert outcome.response.status == 200, outcome.response.message
        payload: bytes = outcome.response.payload
        return payload

    async def json(self, *args: str, **fields: Any) -> Any:
        """Return the JSON payload of a call that succeeds."""
        return json.loads(await self.value(*args, **fields))
