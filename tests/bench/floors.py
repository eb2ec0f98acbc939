"""Starts of a built chaincode without us: the least that a launch can take.

What is started is what our controllers start: same image, sandbox, program, environment,
and, where the chaincode dials, certificates.
A floor ends when the shim has booted, which is when REGISTER arrives at a bare gRPC
server, or, for chaincode that serves, when its port answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

import aiohttp
import grpc
import grpc.aio
from fabric_protos.peer import chaincode_shim_pb2 as shim

from chaindock.container.attempt import Attempt
from chaindock.container.contracts import ClientTls, PeerConnection
from chaindock.controllers.docker.sandbox import TLS_FOLDER, run_body
from chaindock.controllers.docker.streams import tls_archive
from chaindock.identity.ca import TlsAuthority
from chaindock.platforms.base import Connection
from support.shims import credentials

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    from chaindock.container.contracts import CallbackListener
    from chaindock.controllers.docker.endpoints import Candidate
    from chaindock.controllers.docker.instance import DockerInstance
    from chaindock.controllers.process.instance import ProcessInstance

POLL_S = 0.005


def peer_with_tls(
    listener: CallbackListener, authority: TlsAuthority
) -> PeerConnection:
    """Return what one attempt is told about the node."""
    pair = authority.issue_client()
    tls = ClientTls(pair.key_pem, pair.cert_pem, authority.root_pem)
    return PeerConnection(listener, "Org1MSP", tls)


class BareListener:
    """A gRPC server per host that waits for REGISTER and says nothing."""

    def __init__(self) -> None:
        self.authority = TlsAuthority()
        self._servers: dict[str, tuple[grpc.aio.Server, str]] = {}
        self._registered: asyncio.Queue[float] = asyncio.Queue()

    async def address_on(self, host: str, *names: str) -> str:
        if host not in self._servers:
            server = grpc.aio.server()
            method = grpc.stream_stream_rpc_method_handler(
                self._register,
                request_deserializer=shim.ChaincodeMessage.FromString,
                response_serializer=shim.ChaincodeMessage.SerializeToString,
            )
            service = grpc.method_handlers_generic_handler(
                "protos.ChaincodeSupport", {"Register": method}
            )
            server.add_generic_rpc_handlers((service,))
            own = self.authority.issue_server(host)
            port = server.add_secure_port(
                f"{host}:0", credentials.server(self.authority, own)
            )
            await server.start()
            self._servers[host] = server, f"{host}:{port}"
        return self._servers[host][1]

    async def serve(self, listener: socket.socket, most: int, *names: str) -> None:
        raise NotImplementedError("the floor of a process has no sandbox")

    async def _register(self, _messages: Any, stream: Any) -> None:
        await stream.read()
        self._registered.put_nowait(time.perf_counter())
        await asyncio.Event().wait()  # until the chaincode is killed

    async def registered(self) -> float:
        """Return when the next REGISTER arrived."""
        return await self._registered.get()

    async def aclose(self) -> None:
        for server, _ in self._servers.values():
            await server.stop(None)


async def answers(address: str) -> float:
    """Return when an address answered."""
    host, _, port = address.partition(":")
    while True:
        with contextlib.suppress(OSError):
            if host == "unix":
                _, writer = await asyncio.open_unix_connection(port)
            else:
                _, writer = await asyncio.open_connection(host, int(port))
            found = time.perf_counter()
            writer.close()
            return found
        await asyncio.sleep(POLL_S)


async def process_floor(
    instance: ProcessInstance, listener: BareListener, private: Path
) -> float:
    """Return the milliseconds that the program of `instance` needs to boot."""
    peer = peer_with_tls(listener, listener.authority)
    known = await instance._address(peer, private, sandbox=False)
    private.mkdir(exist_ok=True)
    program = instance._program(peer, Attempt(instance._ccid), private, known, -1)
    began = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        *program.argv,
        cwd=program.cwd,
        env=program.env,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        if "peer" in known:
            ended = await listener.registered()
        else:
            ended = await answers(known["listen"])
    finally:
        process.kill()
        await process.wait()
    return (ended - began) * 1e3


class BareEngine:
    """The four calls to the engine that a start needs, and nothing around them."""

    def __init__(self, where: Candidate) -> None:
        self._base = where.base_url
        self._session = aiohttp.ClientSession(connector=where.connector())

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        url = f"{self._base}/{path}"
        async with self._session.request(method, url, json=body) as answer:
            assert answer.status < 400, await answer.text()
            return await answer.json(content_type=None)

    async def upload(self, container: str, folder: str, tar: bytes) -> None:
        url = f"{self._base}/containers/{container}/archive"
        params = {"path": folder}
        async with self._session.put(url, params=params, data=tar) as answer:
            assert answer.status < 400, await answer.text()

    async def aclose(self) -> None:
        await self._session.close()


async def docker_floor(
    instance: DockerInstance, listener: BareListener, engine: BareEngine
) -> float:
    """Return the milliseconds that the container of `instance` needs to boot."""
    parts, built = instance._session, instance._built
    dials = built.launch.connection is Connection.CALLS_BACK
    attachment = await parts.networks.attach(listener, built.image, calls_back=dials)
    peer = peer_with_tls(listener, listener.authority)
    body = run_body(
        parts.options, parts.node, built, peer, Attempt(built.ccid), attachment
    )
    began = time.perf_counter()
    made = await engine.call("POST", "containers/create", body)
    path = f"containers/{made['Id']}"
    try:
        if dials and peer.tls is not None:
            await engine.upload(made["Id"], TLS_FOLDER, tls_archive(peer.tls))
        await engine.call("POST", f"{path}/start")
        if dials:
            ended = await listener.registered()
        else:
            found = (await engine.call("GET", f"{path}/json"))["NetworkSettings"]
            (network,) = found["Networks"].values()
            port = parts.options.chaincode_port
            ended = await answers(f"{network['IPAddress']}:{port}")
    finally:
        await engine.call("DELETE", f"{path}?force=1&v=1")
    return (ended - began) * 1e3
