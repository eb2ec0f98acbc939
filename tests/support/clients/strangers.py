"""Identities that no organisation of the node may accept, and messages gone wrong."""

from __future__ import annotations

import datetime as dt
import random
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from chaindock.identity.ca import CertificateAuthority, certificate_pem, new_key
from chaindock.identity.msp import SigningIdentity, has_low_s

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def foreign(mspid: str) -> SigningIdentity:
    """Return a client of an authority that nobody knows, with any MSP id."""
    key = new_key()
    authority = CertificateAuthority.create("elsewhere.example.com")
    issued = authority.issue(key.public_key(), "somebody", "client")
    return SigningIdentity(mspid, certificate_pem(issued), key)


def issued_by(
    ca: Path, mspid: str, *, unit: str = "client", expired: bool = False
) -> SigningIdentity:
    """Return what the organisation's own CA issued, with the NodeOU `unit`.

    `ca` is the directory of the CA.
    """
    (file,) = ca.glob("*-cert.pem")
    root = x509.load_pem_x509_certificate(file.read_bytes())
    pem = (ca / "priv_sk").read_bytes()
    root_key = serialization.load_pem_private_key(pem, None)
    assert isinstance(root_key, ec.EllipticCurvePrivateKey)
    key, now = new_key(), dt.datetime.now(dt.UTC)
    # Younger than the CA's own certificate, or it would be malformed.
    begins = root.not_valid_before_utc + dt.timedelta(seconds=2)
    ends = now - dt.timedelta(seconds=1) if expired else now + dt.timedelta(days=1)
    names = [
        x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit),
        x509.NameAttribute(NameOID.COMMON_NAME, "somebody"),
    ]
    while True:
        certificate = (
            x509.CertificateBuilder(root.subject, x509.Name(names), key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begins)
            .not_valid_after(ends)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(
                    root_key.public_key()
                ),
                False,
            )
            .sign(root_key, hashes.SHA256())
        )
        if has_low_s(certificate.signature, root_key.curve):
            return SigningIdentity(mspid, certificate_pem(certificate), key)


def revocations(
    ca: CertificateAuthority,
    *revoked: x509.Certificate,
    signer: CertificateAuthority | None = None,
) -> bytes:
    """Return the revocation list of a CA, PEM; `signer`: whose key signs it instead."""
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(ca.certificate.subject)
        .last_update(now)
        .next_update(now + dt.timedelta(days=1))
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.key.public_key()),
            critical=False,
        )
    )
    for one in revoked:
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder()
            .serial_number(one.serial_number)
            .revocation_date(now)
            .build()
        )
    made = builder.sign((signer or ca).key, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM)


def mutations(message: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Yield bytes that are wrong in many ways: cut, changed, doubled, or any."""
    chance = random.Random(seed)  # the same ones in each run
    yield b""
    yield b"\xff" * 100
    yield b"\x0a\xff\xff\xff\xff\x0f" + message
    yield b"\x0b" * 10_000  # groups in groups
    for _ in range(count):
        kind = chance.randrange(5)
        at = chance.randrange(len(message))
        if kind == 0:
            yield message[:at]
        elif kind == 1:
            yield message[:at] + message[at:] * 2
        elif kind == 2:
            yield chance.randbytes(chance.randrange(1, 400))
        elif kind == 3:
            end = at + chance.randrange(1, 30)
            yield message[:at] + chance.randbytes(end - at) + message[end:]
        else:
            changed = bytearray(message)
            for _ in range(chance.randrange(1, 4)):
                changed[chance.randrange(len(message))] ^= 1 << chance.randrange(8)
            yield bytes(changed)
