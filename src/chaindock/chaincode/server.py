"""Where chaincode dials the node: one server for all addresses that it listens on.

With an authority, a connection gets no stream without a certificate of that authority.
Leaving the listener ends every stream.
Source: docs/fabric/shim-protocol.md#transport
"""

from __future__ import annotations

import socket
import ssl
from typing import Final, Self

from typing_extensions import override

from chaindock.chaincode.handler import Handler, StreamState
from chaindock.chaincode.options import ListenOptions, StreamOptions
from chaindock.chaincode.registry import HandlerRegistry
from chaindock.container.contracts import CallbackListener, ClientTls
from chaindock.errors import StartFailed
from chaindock.identity.ca import TlsAuthority, certificate_hash
from chaindock.rpc.connection import Limits
from chaindock.rpc.server import Server
from chaindock.rpc.status import CallEnded, Status
from chaindock.rpc.stream import Stream
from chaindock.rpc.tls import server_context
from chaindock.telemetry import get_logger
from chaindock.values import show_address

_log = get_logger("chaincode.server")
PROGRAMS: Final = ("127.0.0.1", 7052)
"""Where programs that a user starts dial, as Fabric has it, unless an address is set."""
REGISTER: Final = "/protos.ChaincodeSupport/Register"
_ALL: Final = ("0.0.0.0", "::")  # noqa: S104  # as a user may set it
MAX_STREAMS: Final = 32
"""Per connection; a shim needs one."""
MAX_UNREGISTERED: Final = 256
"""Streams of all addresses that have not registered. They end after `silence_s`."""
MAX_UNREGISTERED_EACH: Final = 4
"""Unregistered streams per certificate, so that one chaincode cannot block the others."""


class ChaincodeListener(CallbackListener):
    """All listening addresses of a node; an async context manager.

    `authority` issues the servers' certificates, and has issued those of the chaincode
    that may connect; None = without TLS.
    """

    def __init__(
        self,
        registry: HandlerRegistry,
        options: StreamOptions | None = None,
        listen: ListenOptions | None = None,
        authority: TlsAuthority | None = None,
    ) -> None:
        self._registry = registry
        self._options = options or StreamOptions()
        self._listen = listen or ListenOptions()
        self._authority = authority
        self._unregistered: set[Handler] = set()
        self._bound: dict[tuple[str, int], int] = {}
        """The port of each address that is listened on, as asked for."""
        self._names: tuple[str, ...] = ()
        """What the certificate of the node holds for."""
        self._context: ssl.SSLContext | None = None
        self._server: Server

    async def __aenter__(self) -> Self:
        options = self._options
        limits = Limits(
            options.receive_bytes,
            options.max_message_bytes,
            MAX_STREAMS,
            options.ping_s,
        )
        tls = None if self._authority is None else self._tls
        self._server = Server(self._serve, limits, tls, self._registry.arrivals)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.aclose()

    @property
    def addresses(self) -> list[str]:
        """Where chaincode dials it now, host:port each."""
        return sorted(
            show_address((host, port)) for (host, _), port in self._bound.items()
        )

    @override
    async def address_on(self, host: str, *names: str) -> str:
        bare = host.strip("[]")
        bound, port = self._listen.bind or ("", 0)
        return self._advertised(bound or bare, port, bare, *names)

    @override
    async def serve(self, listener: socket.socket, most: int, *names: str) -> None:
        self._answer_to(*names)
        await self._server.adopt(listener, most)

    async def listen_for_programs(self) -> tuple[str, ClientTls | None]:
        """Return what programs of users dial, and what they show; None: without TLS."""
        bound, port = self._listen.bind or PROGRAMS
        address = self._advertised(bound or PROGRAMS[0], port, PROGRAMS[0])
        if self._authority is None:
            return address, None
        pair = self._authority.issue_client(for_a_day=False)
        return address, ClientTls(pair.key_pem, pair.cert_pem, self._authority.root_pem)

    def _advertised(self, bound: str, port: int, host: str, *names: str) -> str:
        """Listen there unless that is done already, and return what to dial for `host`."""
        if (bound, port) not in self._bound:
            self._listen_at(bound.strip("[]"), bound, port)
        told = (host if bound in _ALL else bound.strip("[]")), 0
        told_host, told_port = self._listen.advertise or told
        self._answer_to(told_host, *names)
        return show_address((told_host, told_port or self._bound[bound, port]))

    def _listen_at(self, host: str, bound: str, port: int) -> None:
        try:
            self._bound[bound, port] = self._server.listen(host, port)
        except OSError as error:
            raise StartFailed(
                f"cannot listen for chaincode on {show_address((host, port))}: {error}",
                hint="another process may use the port, or the host lacks the address",
                host=host,
            ) from error
        address = show_address((host, self._bound[bound, port]))
        tls = self._authority is not None
        _log.info("listening for chaincode", address=address, tls=tls)

    # --- TLS --------------------------------------------------------------------------

    def _answer_to(self, *names: str) -> None:
        """Let the certificate hold for these names, too."""
        if not set(names) <= set(self._names):
            self._names = tuple(dict.fromkeys((*self._names, *names)))
            self._context = None

    def _tls(self) -> ssl.SSLContext:
        if self._context is None:
            assert self._authority is not None  # noqa: S101  # or nobody asks
            pair = self._authority.issue_server(*self._names)
            root = self._authority.root_pem
            self._context = server_context(pair.cert_pem, pair.key_pem, root)
        return self._context

    # --- streams ----------------------------------------------------------------------

    async def _serve(self, stream: Stream) -> None:
        """Serve a call of a chaincode. Raises: CallEnded."""
        if stream.request.get(":path", "") != REGISTER:
            text = f"the node serves chaincode at {REGISTER} only"
            raise CallEnded(Status.UNIMPLEMENTED, text)
        shown = stream.connection.certificate
        certificate = (
            certificate_hash(ssl.DER_cert_to_PEM_cert(shown)) if shown else None
        )
        handler = Handler(self._registry, self._options, certificate=certificate)
        if not self._takes(handler):
            what, refusals = "too many unregistered streams", self._registry.refusals
            refusals.say(handler.log_key, _log.warning, what, certificate=certificate)
            raise CallEnded(
                Status.RESOURCE_EXHAUSTED,
                "too many streams are open that have not registered",
            )
        try:
            end = await handler.run(stream)
        finally:
            self._unregistered.discard(handler)
        if end.code is not Status.OK:
            raise CallEnded(end.code, end.reason)

    def _takes(self, handler: Handler) -> bool:
        """Count `handler` among those that have not registered, if there is room."""
        still = {one for one in self._unregistered if one.state is StreamState.CREATED}
        self._unregistered = still
        owner = self._owner(handler)
        same = sum(self._owner(one) == owner for one in still)
        if len(still) >= MAX_UNREGISTERED or (
            owner is not None and same >= MAX_UNREGISTERED_EACH
        ):
            return False
        still.add(handler)
        return True

    def _owner(self, handler: Handler) -> str | None:
        """Return the key of the limit; all streams with outdated certificates share one."""
        certificate = handler.certificate
        if certificate is None or self._registry.knows(certificate):
            return certificate
        return "outdated"
