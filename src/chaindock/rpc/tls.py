"""What TLS asks of both sides: contexts made of PEM texts."""

from __future__ import annotations

import ssl
import tempfile
from contextlib import suppress

from chaindock.rpc.frames import Buffer

_ALPN = ["h2"]
_MOST_SAID = 512
"""Bytes of answers to changes of keys that come at once; more end the connection."""


def server_context(certificate: str, key: str, roots: str | None) -> ssl.SSLContext:
    """Return the context of a server that shows `certificate`; all are PEM.

    Clients must show a certificate that one of `roots` issued; None = they need not.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 0  # nobody resumes a session
    return _complete(context, certificate, key, roots)


def client_context(
    certificate: str | None, key: str | None, roots: str
) -> ssl.SSLContext:
    """Return the context of a client that trusts `roots`; all are PEM."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    return _complete(context, certificate, key, roots)


def _complete(
    context: ssl.SSLContext, certificate: str | None, key: str | None, roots: str | None
) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    # The other side chooses among ciphers that are all strong: Go one with a shorter key.
    context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_alpn_protocols(_ALPN)
    if certificate is not None and key is not None:
        # Python's ssl reads a key from a file only. Only this user can read that one.
        with tempfile.NamedTemporaryFile("w") as pair:
            pair.write(f"{key}\n{certificate}")
            pair.flush()
            context.load_cert_chain(pair.name)
    if roots is not None:
        context.load_verify_locations(cadata=roots)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


class Channel:
    """The TLS of one connection: turns what is on the wire into what was sent, and back.

    Args:
        hostname: the name that the server's certificate must hold for; None = this is a
            server.
    """

    def __init__(self, context: ssl.SSLContext, hostname: str | None) -> None:
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._in, self._out, server_side=hostname is None, server_hostname=hostname
        )
        self.shaken = False

    def begin(self, received: Buffer = b"") -> bytes:
        """Go on with the handshake; return what is to be sent. Raises: ssl.SSLError."""
        self._in.write(received)
        with suppress(ssl.SSLWantReadError):
            self._tls.do_handshake()
            self.shaken = True
        return self._out.read()

    def said(self) -> bytes:
        """Return what TLS has to tell: why a handshake failed, or that keys change."""
        return self._out.read()

    def certificate(self) -> bytes | None:
        """Return what the other side has shown, DER."""
        return self._tls.getpeercert(binary_form=True)

    def receive(self, received: Buffer) -> None:
        """Take what has arrived; `read` gives what was sent."""
        self._in.write(received)

    def read(self, into: memoryview) -> int:
        """Read what was sent; return how many bytes, 0 = all is read.

        Raises: ssl.SSLError: what has arrived is wrong, or the end.
        """
        if not self._in.pending and not self._tls.pending():
            return 0  # raising would cost more than all else here
        try:
            size: int = self._tls.read(len(into), into)  # type: ignore[assignment]
        except ssl.SSLWantReadError:
            size = -1
        if not size:
            raise ssl.SSLZeroReturnError("the other side has ended TLS")
        if self._out.pending > _MOST_SAID:
            raise ssl.SSLError("keys change too often")
        return max(size, 0)

    def seal(self, data: Buffer) -> bytes:
        """Return what is to be on the wire. Raises: ssl.SSLError."""
        self._tls.write(data)
        return self._out.read()
