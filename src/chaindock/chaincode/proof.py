"""Make sure of who serves at an address, before a stream is opened there.

Owns:    waiting until something answers; the server's certificate, and what to say when
         it is not the expected one.
Not:     the stream itself (client.py), the node's own certificate: a server that refuses
         that one says so only afterwards.
Entry:   answers, UntrustedError
Holds:   a certificate that is wrong does not get better by waiting: it is told at once.
Source:  shim-protocol.md §1.4; launch.md §4
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.x509.oid import ExtensionOID

if TYPE_CHECKING:
    from chaindock.container.contracts import DialTls

UNIX: Final = "unix:"
_LOOK_S: Final = 0.01
"""How often a port is tried that nobody listens on yet; one try costs next to nothing."""
_BROKEN_S: Final = 0.1
"""After a handshake that broke: some engines accept connections for who is not there."""
_CONNECT_S: Final = 0.5
_HANDSHAKE_S: Final = 5.0
_NOT_TLS: Final = frozenset(
    {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL"}
)
_NAMES_SHOWN: Final = 10
_NAME_MAX: Final = 200


class UntrustedError(Exception):
    """Who serves is not who should; the text says what was expected."""


async def answers(address: str, tls: DialTls | None) -> None:
    """Return when something accepts connections at `address`; with TLS, the right one.

    Raises: UntrustedError.
    """
    if tls is not None:
        return await _proves(address, tls)
    while True:
        try:
            async with asyncio.timeout(_CONNECT_S):
                _, writer = await _open(address)
        except OSError:
            await asyncio.sleep(_LOOK_S)
        else:
            writer.close()
            return None


async def _open(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if address.startswith(UNIX):
        return await asyncio.open_unix_connection(address.removeprefix(UNIX))
    host, port = _parts(address)
    return await asyncio.open_connection(host, port)


def _parts(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


async def _proves(address: str, tls: DialTls) -> None:
    try:
        context = _context(tls.root_pem)
    except ssl.SSLError as error:
        raise UntrustedError(f"the root certificate for {address} is no PEM") from error
    name = tls.server_name or _parts(address)[0]
    while True:
        try:
            await _shake(address, context, name)
        except ssl.SSLCertVerificationError as error:
            found = await _found(address)
            raise UntrustedError(
                f"the certificate at {address} is not the expected one: expected one "
                f"for {name!r} that the given root signed, found {found} "
                f"({error.verify_message})"
            ) from error
        except ssl.SSLError as error:
            if error.reason in _NOT_TLS:
                raise UntrustedError(
                    f"expected TLS at {address}, found a server without it"
                ) from error
            await asyncio.sleep(_BROKEN_S)
        except ConnectionResetError:
            await asyncio.sleep(_BROKEN_S)
        except OSError:
            await asyncio.sleep(_LOOK_S)
        else:
            return


def _context(root_pem: str | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    if root_pem is None:
        # For telling what is there; nothing is sent to it.
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    else:
        context.load_verify_locations(cadata=root_pem)
    return context


async def _shake(address: str, context: ssl.SSLContext, name: str) -> bytes | None:
    """Make one handshake. Returns: the certificate that was shown, DER."""
    host, port = _parts(address)
    async with asyncio.timeout(_HANDSHAKE_S):
        _, writer = await asyncio.open_connection(
            host, port, ssl=context, server_hostname=name
        )
    shown: bytes | None = writer.get_extra_info("ssl_object").getpeercert(True)
    # Not closed properly: the server may be waiting for a certificate of ours.
    writer.transport.abort()
    return shown


async def _found(address: str) -> str:
    """Return in words which certificate is shown at `address`."""
    with contextlib.suppress(Exception):  # whatever it is, it was made to be odd
        der = await _shake(address, _context(None), _parts(address)[0])
        if der is not None:
            return _told(x509.load_der_x509_certificate(der))
    return "one that cannot be read"


def _told(certificate: x509.Certificate) -> str:
    names: list[str] = []
    with contextlib.suppress(x509.ExtensionNotFound, ValueError):
        extension = certificate.extensions.get_extension_for_oid(
            ExtensionOID.SUBJECT_ALTERNATIVE_NAME
        ).value
        assert isinstance(extension, x509.SubjectAlternativeName)  # noqa: S101
        names = [repr(str(name.value)[:_NAME_MAX]) for name in extension]
    for_whom = ", ".join(names[:_NAMES_SHOWN]) or "no name"
    issuer = certificate.issuer.rfc4514_string()[:_NAME_MAX]
    return f"one for {for_whom} signed by {issuer!r}"
