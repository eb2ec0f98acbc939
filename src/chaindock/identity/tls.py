"""The certificates of streams with chaincode: the node's own, and one for each attempt.

The authority and every key of the node's own end live in memory alone; a node that
starts again trusts nothing that an earlier run issued.
Source: docs/adr/0005-certificates-per-attempt.md
"""

from __future__ import annotations

import datetime as dt
import hashlib
import ipaddress
import secrets
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from chaindock.identity.ca import (
    VALIDITY,
    begin_certificate,
    certificate_pem,
    issuer_key,
    key_pem,
    key_usage,
    new_key,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self

    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

_DAY: Final = dt.timedelta(hours=24)
"""Life of a client certificate, and how far the clock of an engine's machine may be off."""
_SERIAL_BITS: Final = 128
EVERYWHERE: Final = (
    "127.0.0.1",
    "::1",
    "localhost",
    "host.docker.internal",
    "host.containers.internal",
    "10.0.2.2",
    "169.254.1.2",
)
"""Names under which chaincode may reach this machine, beside the address listened on.

The last two are its loopback in containers of a rootless engine.
"""


@dataclass(frozen=True)
class TlsPair:
    """A private key and its certificate, PEM; the key is never shown."""

    key_pem: str = field(repr=False)
    cert_pem: str


class TlsAuthority:
    """Issues every certificate of the streams of one run of a node.

    Args:
        key, certificate: of the authority itself; see `create`.
    """

    def __init__(
        self, key: EllipticCurvePrivateKey, certificate: x509.Certificate
    ) -> None:
        self._key, self._certificate = key, certificate
        self.root_pem = certificate_pem(certificate).decode()
        """What chaincode trusts, and the node too."""

    @classmethod
    def create(cls) -> Self:
        """Return an authority that nobody has seen yet."""
        key = new_key()
        name = _serial_name()
        both = (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH)
        builder = (
            begin_certificate(name, name, key.public_key(), skew=_DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
            .add_extension(key_usage(ca=True, encipher=False), True)
            .add_extension(x509.ExtendedKeyUsage(both), False)
        )
        return cls(key, builder.sign(key, hashes.SHA256()))

    def issue_server(self, *hosts: str) -> TlsPair:
        """Return what a listener shows that is dialled by these names or addresses.

        It also holds for the names of `EVERYWHERE`.
        """
        names = (*(host.strip("[]") for host in hosts), *EVERYWHERE)
        return self._issue(ExtendedKeyUsageOID.SERVER_AUTH, VALIDITY, names)

    def issue_client(self, *, for_a_day: bool = True) -> TlsPair:
        """Return what one attempt shows; else it is valid as long as the node runs.

        Validity counts when a connection is made: one that is open stays open.
        """
        lasts = _DAY if for_a_day else VALIDITY
        return self._issue(ExtendedKeyUsageOID.CLIENT_AUTH, lasts)

    def _issue(
        self,
        usage: x509.ObjectIdentifier,
        lasts: dt.timedelta,
        hosts: Iterable[str] = (),
    ) -> TlsPair:
        key = new_key()
        builder = (
            begin_certificate(
                _serial_name(),
                self._certificate.subject,
                key.public_key(),
                skew=_DAY,
                lasts=lasts,
            )
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
            .add_extension(key_usage(ca=False, encipher=True), True)
            .add_extension(x509.ExtendedKeyUsage([usage]), False)
            .add_extension(issuer_key(self._key), False)
        )
        names = [_general(host) for host in dict.fromkeys(hosts)]
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), False)
        certificate = builder.sign(self._key, hashes.SHA256())
        return TlsPair(key_pem(key).decode(), certificate_pem(certificate).decode())


def certificate_hash(cert_pem: str | bytes) -> str:
    """Return the SHA-256 of the certificate's DER, in hex: what a stream is bound by.

    Raises: ValueError when it is no certificate in PEM.
    """
    text = cert_pem if isinstance(cert_pem, str) else cert_pem.decode("ascii")
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(text)).hexdigest()


def _serial_name() -> x509.Name:
    # Fabric's subjects hold nothing but this; it makes them differ.
    number = str(secrets.randbits(_SERIAL_BITS))
    return x509.Name([x509.NameAttribute(NameOID.SERIAL_NUMBER, number)])


def _general(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.partition("%")[0]))
    except ValueError:
        return x509.DNSName(host)
