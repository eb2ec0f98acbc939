"""Certificate authorities: of an organisation, of its TLS, of the streams with chaincode.

Every certificate has a low-S signature, so no reader re-encodes it. The authority of the
streams lives in memory alone: a node that starts again trusts nothing that an earlier
run issued.
Source: docs/fabric/ledger.md#identities, docs/adr/0005-certificates-per-attempt.md
"""

from __future__ import annotations

import datetime as dt
import hashlib
import ipaddress
import json
import secrets
import ssl
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ec import (
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from chaindock.errors import InvalidInput
from chaindock.identity.msp import has_low_s

Extension = tuple[x509.ExtensionType, bool]
"""An extension, and whether it is critical."""

ATTRIBUTES_OID: Final = x509.ObjectIdentifier("1.2.3.4.5.6.7.8.1")
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
_BOTH_ENDS: Final = (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH)
_COMMON_NAME_MAX: Final = 64
"""X.509 (ub-common-name)."""
_ATTRIBUTES_MAX: Final = 16 * 1024
"""Bytes. The certificate goes into every transaction of its holder, twice."""
_TEN_YEARS: Final = dt.timedelta(days=3650)
_DAY: Final = dt.timedelta(hours=24)
"""Life of a client certificate, and how far the clock of an engine's machine may be off."""
_CLOCK_SKEW: Final = dt.timedelta(minutes=5)


def new_key() -> EllipticCurvePrivateKey:
    """Return a fresh P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: EllipticCurvePrivateKey) -> bytes:
    """Return the key as PKCS#8 PEM."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """Return the certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def certificate_hash(cert_pem: str | bytes) -> str:
    """Return the SHA-256 of the certificate's DER, in hex: what a stream is bound by.

    Raises: ValueError when it is no certificate in PEM.
    """
    text = cert_pem if isinstance(cert_pem, str) else cert_pem.decode("ascii")
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(text)).hexdigest()


def attributes_of(certificate: x509.Certificate) -> dict[str, str]:
    """Return the attributes that the certificate carries; {} without the extension."""
    try:
        extension = certificate.extensions.get_extension_for_oid(ATTRIBUTES_OID)
    except x509.ExtensionNotFound:
        return {}
    raw = extension.value.public_bytes()
    return dict(json.loads(raw)["attrs"])


@dataclass(frozen=True)
class CertificateAuthority:
    """Issues the certificates of one organisation, with its root certificate."""

    certificate: x509.Certificate
    key: EllipticCurvePrivateKey = field(repr=False)

    @classmethod
    def create(
        cls,
        domain: str,
        *,
        tls: bool = False,
        former: CertificateAuthority | None = None,
    ) -> Self:
        """Return a new authority `ca.<domain>`, or `tlsca.<domain>`.

        What a `former` one issued stays valid: its name and key are used again.
        """
        if former:
            name, key = former.certificate.subject, former.key
        else:
            common_name = f"{'tls' if tls else ''}ca.{domain}"
            name, key = _name((NameOID.COMMON_NAME, common_name)), new_key()
        ends = _BOTH_ENDS if tls else ()
        root = _certificate(
            (name, name), key.public_key(), key, ca=True, encipher=True, ends=ends
        )
        return cls(root, key)

    def issue(
        self,
        key: EllipticCurvePublicKey,
        common_name: str,
        role: str,
        attributes: Mapping[str, str] | None = None,
    ) -> x509.Certificate:
        """Return a signing certificate; `role` is the NodeOU of the holder.

        Chaincode asks for `attributes` with its identity library; None leaves the
        extension out.

        Raises:
            InvalidInput: the name is longer than 64 characters, or the attributes take
                more than 16 KiB.
        """
        if len(common_name) > _COMMON_NAME_MAX:
            raise InvalidInput(
                f"the name {common_name!r} has {len(common_name)} characters: a "
                f"certificate takes {_COMMON_NAME_MAX}",
                hint="choose a shorter one",
            )
        subject = _name(
            (NameOID.ORGANIZATIONAL_UNIT_NAME, role), (NameOID.COMMON_NAME, common_name)
        )
        more: list[Extension] = []
        if attributes is not None:
            # Raw JSON, not wrapped in another ASN.1 string: so the shims read it.
            attrs = dict(sorted(attributes.items()))
            raw = json.dumps({"attrs": attrs}, separators=(",", ":")).encode()
            if len(raw) > _ATTRIBUTES_MAX:
                raise InvalidInput(
                    f"the attributes of {common_name!r} take {len(raw)} bytes, the limit "
                    f"is {_ATTRIBUTES_MAX}"
                )
            more.append((x509.UnrecognizedExtension(ATTRIBUTES_OID, raw), False))
        return _certificate((subject, self.certificate.subject), key, self.key, *more)

    def issue_tls(
        self, key: EllipticCurvePublicKey, common_name: str, hosts: Sequence[str]
    ) -> x509.Certificate:
        """Return a certificate for either end of a connection, valid for `hosts`."""
        names = _name((NameOID.COMMON_NAME, common_name)), self.certificate.subject
        return _certificate(
            names, key, self.key, encipher=True, ends=_BOTH_ENDS, hosts=hosts
        )


@dataclass(frozen=True)
class TlsPair:
    """A private key and its certificate, PEM; the key is never shown."""

    key_pem: str = field(repr=False)
    cert_pem: str


class TlsAuthority:
    """Issues every certificate of the streams of one run of a node."""

    def __init__(self) -> None:
        self._key = new_key()
        self._name = _serial_name()
        root = _certificate(
            (self._name, self._name),
            self._key.public_key(),
            self._key,
            ca=True,
            ends=_BOTH_ENDS,
            skew=_DAY,
        )
        self.root_pem = certificate_pem(root).decode()
        """What chaincode trusts, and the node too."""

    def issue_server(self, *hosts: str) -> TlsPair:
        """Return what a listener shows that is dialled by these names or `EVERYWHERE`."""
        names = (*(host.strip("[]") for host in hosts), *EVERYWHERE)
        return self._issue(ExtendedKeyUsageOID.SERVER_AUTH, _TEN_YEARS, names)

    def issue_client(self, *, for_a_day: bool = True) -> TlsPair:
        """Return what one attempt shows; else it is valid as long as the node runs.

        Validity counts when a connection is made: one that is open stays open.
        """
        lasts = _DAY if for_a_day else _TEN_YEARS
        return self._issue(ExtendedKeyUsageOID.CLIENT_AUTH, lasts)

    def _issue(
        self, end: x509.ObjectIdentifier, lasts: dt.timedelta, hosts: Sequence[str] = ()
    ) -> TlsPair:
        key = new_key()
        certificate = _certificate(
            (_serial_name(), self._name),
            key.public_key(),
            self._key,
            encipher=True,
            ends=(end,),
            hosts=hosts,
            skew=_DAY,
            lasts=lasts,
        )
        return TlsPair(key_pem(key).decode(), certificate_pem(certificate).decode())


def _certificate(
    names: tuple[x509.Name, x509.Name],
    key: EllipticCurvePublicKey,
    signer: EllipticCurvePrivateKey,
    *more: Extension,
    ca: bool = False,
    encipher: bool = False,
    ends: Sequence[x509.ObjectIdentifier] = (),
    hosts: Iterable[str] = (),
    skew: dt.timedelta = _CLOCK_SKEW,
    lasts: dt.timedelta = _TEN_YEARS,
) -> x509.Certificate:
    """Return a certificate of `key` for the subject of `names`, signed by the issuer's.

    The key signs, also certificates (`ca`), and enciphers keys (`encipher`); `ends` of
    connections it is for. Valid for `hosts`, since `skew` ago: clocks may go wrong.
    """
    subject, issuer = names
    now = dt.datetime.now(dt.UTC).replace(microsecond=0)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(secrets.randbits(63) + 1)
        .not_valid_before(now - skew)
        .not_valid_after(now + lasts)
    )
    usage = x509.KeyUsage(
        digital_signature=True,
        key_encipherment=encipher,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    above = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    own = x509.SubjectKeyIdentifier.from_public_key(key)
    extensions: list[Extension] = [(own if ca else above, False)]
    # What signs lies in each transaction, three times: it has nothing needless.
    if ca or ends:
        constraints = x509.BasicConstraints(ca=ca, path_length=None)
        extensions += [(usage, True), (constraints, True)]
    if ends:
        extensions.append((x509.ExtendedKeyUsage(ends), False))
    if reached_at := list(map(_general, dict.fromkeys(hosts))):
        extensions.append((x509.SubjectAlternativeName(reached_at), False))
    for extension, critical in (*extensions, *more):
        builder = builder.add_extension(extension, critical)
    # Every second ECDSA signature has a high S and the builder cannot normalise it.
    while True:
        certificate = builder.sign(signer, hashes.SHA256())
        if has_low_s(certificate.signature, signer.curve):
            return certificate


def _name(*parts: tuple[x509.ObjectIdentifier, str]) -> x509.Name:
    return x509.Name([x509.NameAttribute(oid, text) for oid, text in parts])


def _serial_name() -> x509.Name:
    # Fabric's subjects hold nothing but this; it makes them differ.
    return _name((NameOID.SERIAL_NUMBER, str(secrets.randbits(128))))


def _general(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.partition("%")[0]))
    except ValueError:
        return x509.DNSName(host)
