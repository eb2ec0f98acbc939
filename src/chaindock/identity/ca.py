"""The certificate authority of a development organisation, and parts of certificates.

Every certificate has a low-S signature, so no reader re-encodes it, and names one role.
Source: docs/fabric/ledger.md#identities
"""

from __future__ import annotations

import datetime as dt
import json
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from chaindock.errors import InvalidInput
from chaindock.identity.signing import has_low_s

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

    from cryptography.hazmat.primitives.asymmetric.ec import (
        EllipticCurvePrivateKey,
        EllipticCurvePublicKey,
    )

ATTRIBUTES_OID = x509.ObjectIdentifier("1.2.3.4.5.6.7.8.1")
VALIDITY = dt.timedelta(days=3650)
_COMMON_NAME_MAX = 64
"""X.509 (ub-common-name)."""
_ATTRIBUTES_MAX = 16 * 1024
"""Bytes. The certificate goes into every transaction of its holder, twice."""
_CLOCK_SKEW = dt.timedelta(minutes=5)
_PLACE = (
    (NameOID.COUNTRY_NAME, "US"),
    (NameOID.STATE_OR_PROVINCE_NAME, "California"),
    (NameOID.LOCALITY_NAME, "San Francisco"),
)


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


def attributes_of(certificate: x509.Certificate) -> dict[str, str]:
    """Return the attributes that the certificate carries; {} without the extension."""
    try:
        extension = certificate.extensions.get_extension_for_oid(ATTRIBUTES_OID)
    except x509.ExtensionNotFound:
        return {}
    raw = extension.value.public_bytes()
    return dict(json.loads(raw)["attrs"])


class CertificateAuthority:
    """Issues the certificates of one organisation.

    Args:
        certificate: self-signed, CA:true.
        key: of `certificate`.
    """

    def __init__(
        self, certificate: x509.Certificate, key: EllipticCurvePrivateKey
    ) -> None:
        self.certificate = certificate
        self.key = key

    @classmethod
    def create(cls, domain: str) -> Self:
        """Return a new authority `ca.<domain>`."""
        key = new_key()
        name = _name(
            (NameOID.ORGANIZATION_NAME, domain), (NameOID.COMMON_NAME, f"ca.{domain}")
        )
        builder = (
            begin_certificate(name, name, key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
            .add_extension(key_usage(ca=True, encipher=True), True)
        )
        return cls(_sign(builder, key), key)

    def issue(
        self,
        key: EllipticCurvePublicKey,
        common_name: str,
        role: str,
        attributes: Mapping[str, str] | None = None,
    ) -> x509.Certificate:
        """Return a signing certificate.

        Args:
            key: of the holder.
            common_name: e.g. `User1@org1.example.com`.
            role: the NodeOU: client, peer, admin or orderer.
            attributes: what chaincode may ask for with its identity library; None
                leaves the extension out.

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
        builder = (
            begin_certificate(subject, self.certificate.subject, key)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
            .add_extension(key_usage(ca=False, encipher=False), True)
            .add_extension(issuer_key(self.key), False)
        )
        if attributes is not None:
            # Raw JSON, not wrapped in another ASN.1 string: so the shims read it.
            raw = json.dumps({"attrs": dict(sorted(attributes.items()))}).encode()
            if len(raw) > _ATTRIBUTES_MAX:
                raise InvalidInput(
                    f"the attributes of {common_name!r} take {len(raw)} bytes, the limit "
                    f"is {_ATTRIBUTES_MAX}"
                )
            builder = builder.add_extension(
                x509.UnrecognizedExtension(ATTRIBUTES_OID, raw), False
            )
        return _sign(builder, self.key)


def _name(*parts: tuple[x509.ObjectIdentifier, str]) -> x509.Name:
    return x509.Name([x509.NameAttribute(oid, text) for oid, text in (*_PLACE, *parts)])


def begin_certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: EllipticCurvePublicKey,
    *,
    skew: dt.timedelta = _CLOCK_SKEW,
    lasts: dt.timedelta = VALIDITY,
) -> x509.CertificateBuilder:
    """Return a certificate of `key` to add extensions to and sign.

    Args:
        subject: of the certificate.
        issuer: subject of the certificate that signs.
        key: of the holder.
        skew: how long ago the certificate begins to be valid, for clocks that go wrong.
        lasts: from now.
    """
    now = dt.datetime.now(dt.UTC).replace(microsecond=0)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - skew)
        .not_valid_after(now + lasts)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), False)
    )


def issuer_key(key: EllipticCurvePrivateKey) -> x509.AuthorityKeyIdentifier:
    """Return the extension that names the key that signs."""
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())


def key_usage(*, ca: bool, encipher: bool) -> x509.KeyUsage:
    """Return what a key is for: to sign, certificates too (`ca`), to encipher keys."""
    return x509.KeyUsage(
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


def _sign(
    builder: x509.CertificateBuilder, key: EllipticCurvePrivateKey
) -> x509.Certificate:
    # Every second ECDSA signature has a high S and the builder cannot normalise it.
    while True:
        certificate = builder.sign(key, hashes.SHA256())
        if has_low_s(certificate.signature, key.curve.name):
            return certificate
