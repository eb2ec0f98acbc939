"""The certificates of streams with chaincode: who the node is, which attempt dials it.

Owns:    the authority of one run of a node; server and client certificates; their hash.
Not:     serving with them (chaincode), handing them out (controllers), the identities of
         the organisation (ca.py).
Entry:   TlsAuthority, certificate_hash
Holds:   the authority and every key of the node's own end live in memory alone; a node
         that starts again trusts nothing that an earlier one issued.
Source:  launch.md §6.1, §6.2; ADR-0005
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
    certificate_pem,
    key_pem,
    key_usage,
    new_key,
    subject_key,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self

    from cryptography.hazmat.primitives.asymmetric.ec import (
        EllipticCurvePrivateKey,
        EllipticCurvePublicKey,
    )

_YEARS: Final = dt.timedelta(days=3650)
_DAY: Final = dt.timedelta(hours=24)
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
            _begun(name, name, key.public_key(), _DAY, _YEARS)
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
        return self._issue(ExtendedKeyUsageOID.SERVER_AUTH, _YEARS, names)

    def issue_client(self, *, for_a_day: bool = True) -> TlsPair:
        """Return what one attempt shows; else it is valid as long as the node runs.

        Validity counts when a connection is made: one that is open stays open.
        """
        lasts = _DAY if for_a_day else _YEARS
        return self._issue(ExtendedKeyUsageOID.CLIENT_AUTH, lasts)

    def _issue(
        self,
        usage: x509.ObjectIdentifier,
        lasts: dt.timedelta,
        hosts: Iterable[str] = (),
    ) -> TlsPair:
        key = new_key()
        issuer_key = x509.AuthorityKeyIdentifier(
            subject_key(self._key.public_key()).digest, None, None
        )
        builder = (
            _begun(
                _serial_name(), self._certificate.subject, key.public_key(), _DAY, lasts
            )
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
            .add_extension(key_usage(ca=False, encipher=True), True)
            .add_extension(x509.ExtendedKeyUsage([usage]), False)
            .add_extension(issuer_key, False)
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


def _begun(
    subject: x509.Name,
    issuer: x509.Name,
    key: EllipticCurvePublicKey,
    ago: dt.timedelta,
    lasts: dt.timedelta,
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC).replace(microsecond=0)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        # An engine in a virtual machine may have another idea of the time.
        .not_valid_before(now - ago)
        .not_valid_after(now + lasts)
        .add_extension(subject_key(key), False)
    )


def _general(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.partition("%")[0]))
    except ValueError:
        return x509.DNSName(host)
