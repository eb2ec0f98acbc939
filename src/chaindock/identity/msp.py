"""Who a creator is, and signatures as Fabric makes and accepts them.

An `Identity` that is returned chains to the organisation's CA and has exactly one role;
expiry is not a matter of the MSP. Signatures are ECDSA over SHA-256 with a low S.
Source: docs/fabric/ledger.md#identities
"""

from __future__ import annotations

import datetime as dt
import threading
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import (
    Prehashed,
    decode_dss_signature,
    encode_dss_signature,
)
from cryptography.x509.oid import ExtensionOID, NameOID
from fabric_protos.msp import identities_pb2, msp_config_pb2
from google.protobuf.message import DecodeError

from chaindock.errors import Denied, InvalidInput

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from cryptography.hazmat.primitives.asymmetric.ec import (
        EllipticCurvePrivateKey,
        EllipticCurvePublicKey,
    )

_CURVES = frozenset({"secp224r1", "secp256r1", "secp384r1", "secp521r1"})
# hashlib lets other threads run while it hashes a large message.
_ALGORITHM = ec.ECDSA(Prehashed(hashes.SHA256()))
_CACHED = 4096
"""Identities and signatures that are remembered; bounded, because creators are hostile."""
_PEM_MAX = 64 * 1024
CREATOR_MAX = _PEM_MAX + 1024
"""Bytes of a SerializedIdentity; a larger one is refused, so that caches do not keep it.

Fields that no reader knows could make it as large as a transaction.
"""
_KNOWN_CRITICAL = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    }
)


class _Recent:
    """The newest facts of a kind; from any thread."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._facts: dict[object, None] = {}
        self._lock = threading.Lock()

    def __contains__(self, fact: object) -> bool:
        return fact in self._facts

    def add(self, fact: object) -> None:
        with self._lock:
            self._facts[fact] = None
            if len(self._facts) > self._most:
                del self._facts[next(iter(self._facts))]


_VERIFIED = _Recent(_CACHED)
"""Signatures that are right: public key, digest and signature, made here or verified.

What a signature is worth depends on nothing else, so that no signature is verified twice.
"""


def _point(key: EllipticCurvePublicKey) -> bytes:
    """Return a public key as the bytes of an uncompressed point."""
    return key.public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )


def has_low_s(signature: bytes, curve: ec.EllipticCurve) -> bool:
    """Tell whether the DER `signature` has s at most half the order of `curve`.

    Raises: ValueError when it is no DER signature.
    """
    _, s = decode_dss_signature(signature)
    return s <= curve.group_order // 2


class SigningIdentity:
    """A certificate and its key; the bytes of `certificate_pem` are part of `creator`."""

    def __init__(
        self, mspid: str, certificate_pem: bytes, key: EllipticCurvePrivateKey
    ) -> None:
        self.mspid = mspid
        self.certificate_pem = certificate_pem
        self.creator: bytes = identities_pb2.SerializedIdentity(
            mspid=mspid, id_bytes=certificate_pem
        ).SerializeToString()
        self._key = key
        self._point = _point(key.public_key())

    def sign(self, message: bytes) -> bytes:
        """Return the DER signature of SHA-256 of `message`; s is at most half the order."""
        digest = sha256(message).digest()
        signature = self._key.sign(digest, _ALGORITHM)
        order = self._key.curve.group_order
        r, s = decode_dss_signature(signature)
        if s > order // 2:
            signature = encode_dss_signature(r, order - s)
        _VERIFIED.add((self._point, digest, signature))
        return signature


class Role(StrEnum):
    """What an identity is in its organisation; the value is the NodeOU."""

    CLIENT = "client"
    PEER = "peer"
    ADMIN = "admin"
    ORDERER = "orderer"


@dataclass(frozen=True)
class Identity:
    """A checked identity; `role` is its only NodeOU, `expires` in UTC.

    Args:
        certifiers: SHA-256 over the certificates that certify it, which policies name.
        units: all organisational units of its subject.
        point: the public key, as a point of its curve.
    """

    mspid: str
    role: Role
    certificate: x509.Certificate
    expires: dt.datetime
    key: EllipticCurvePublicKey
    certifiers: bytes = b""
    units: frozenset[str] = frozenset()
    point: bytes = b""

    def verify(self, message: bytes, signature: bytes) -> None:
        """Check `signature` over SHA-256 of `message`; also its S. Raises: Denied."""
        try:
            low = has_low_s(signature, self.key.curve)
        except ValueError as error:
            raise Denied("the signature is not a DER sequence of r and s") from error
        if not low:
            raise Denied("Invalid S. Must be smaller than half the order of the curve")
        fact = self.point, sha256(message).digest(), signature
        if fact in _VERIFIED:
            return
        try:
            self.key.verify(signature, fact[1], _ALGORITHM)
        except InvalidSignature as error:
            raise Denied(
                "the signature does not fit the message and the key"
            ) from error
        _VERIFIED.add(fact)

    @property
    def expired(self) -> bool:
        """Whether the certificate has run out by now."""
        return self.expires <= dt.datetime.now(dt.UTC)


class Msp:
    """One organisation, as its peers see it; `ca` is its only issuer.

    `tls_roots`, PEM, are what clients of its peers trust.
    """

    def __init__(
        self, mspid: str, ca: x509.Certificate, tls_roots: Sequence[bytes] = ()
    ) -> None:
        self.mspid, self.tls_roots = mspid, tuple(tls_roots)
        self._ca = ca
        # A cache that several threads may use.
        self._known = lru_cache(_CACHED)(self._examine)

    def identify(self, creator: bytes) -> Identity:
        """Return who `creator` (a SerializedIdentity) is; from any thread.

        Raises:
            Denied: fact `mspid` is None when it cannot be read, names another
                organisation or was not issued by this one, else the organisation whose
                rules it breaks.
        """
        return self._known(creator)

    def _examine(self, creator: bytes) -> Identity:
        serialized = _parse(creator)
        if serialized.mspid != self.mspid:
            raise _unknown(serialized.mspid)
        certificate = certificate_of(serialized)
        self._check_chain(certificate)
        key = certificate.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey) or (
            key.curve.name not in _CURVES
        ):
            raise self._refuse("its key is not ECDSA on P-224, P-256, P-384 or P-521")
        units = frozenset(
            str(unit.value)
            for unit in certificate.subject.get_attributes_for_oid(
                NameOID.ORGANIZATIONAL_UNIT_NAME
            )
        )
        return Identity(
            self.mspid,
            self._role(units),
            certificate,
            certificate.not_valid_after_utc,
            key,
            certifiers=self._ca.fingerprint(hashes.SHA256()),
            units=units,
            point=_point(key),
        )

    def _check_chain(self, certificate: x509.Certificate) -> None:
        try:
            certificate.verify_directly_issued_by(self._ca)
        except (ValueError, TypeError, InvalidSignature) as error:
            raise self._unknown("its certificate was not issued by the CA") from error
        # Validity is judged as of the certificate's own beginning (§12.1).
        moment = certificate.not_valid_before_utc + dt.timedelta(seconds=1)
        if not (
            self._ca.not_valid_before_utc <= moment <= self._ca.not_valid_after_utc
        ):
            raise self._unknown("its certificate begins outside the validity of the CA")
        for extension in certificate.extensions:
            if extension.critical and extension.oid not in _KNOWN_CRITICAL:
                name = extension.oid.dotted_string
                raise self._unknown(f"critical extension {name} is not understood")
            value = extension.value
            if isinstance(value, x509.BasicConstraints) and value.ca:
                raise self._refuse("a CA certificate is not an identity")

    def _role(self, units: Collection[str]) -> Role:
        roles = [role for role in Role if role in units]
        if len(roles) != 1:
            raise self._refuse(
                "the identity does not have an OU that resolves to exactly one of "
                "client, peer, orderer, or admin role"
            )
        return roles[0]

    def _refuse(self, why: str) -> Denied:
        return Denied(f"identity of {self.mspid} refused: {why}", mspid=self.mspid)

    def _unknown(self, why: str) -> Denied:
        """Return the error for a certificate without a valid chain to the CA."""
        return Denied(f"identity of {self.mspid} refused: {why}", mspid=None)

    def config(self) -> msp_config_pb2.MSPConfig:
        """Return the definition of this MSP as a channel configuration carries it."""
        root = self._ca.public_bytes(serialization.Encoding.PEM)
        units = {
            f"{role}_ou_identifier": msp_config_pb2.FabricOUIdentifier(
                certificate=root, organizational_unit_identifier=role
            )
            for role in Role
        }
        fabric = msp_config_pb2.FabricMSPConfig(
            name=self.mspid,
            root_certs=[root],
            tls_root_certs=self.tls_roots,
            crypto_config=msp_config_pb2.FabricCryptoConfig(
                signature_hash_family="SHA2",
                identity_identifier_hash_function="SHA256",
            ),
            fabric_node_ous=msp_config_pb2.FabricNodeOUs(enable=True, **units),
        )
        return msp_config_pb2.MSPConfig(type=0, config=fabric.SerializeToString())

    @classmethod
    def of(cls, raw: bytes) -> Msp:
        """Return the MSP of a serialised MSPConfig, e.g. of a channel configuration.

        Raises: InvalidInput when it cannot be read or has not exactly one root.
        """
        try:
            config = msp_config_pb2.MSPConfig.FromString(raw)
            fabric = msp_config_pb2.FabricMSPConfig.FromString(config.config)
            (root,) = fabric.root_certs
            ca = x509.load_pem_x509_certificate(root)
            return cls(fabric.name, ca, fabric.tls_root_certs)
        except (DecodeError, ValueError) as error:
            raise InvalidInput(
                f"an MSP of the channel configuration cannot be read: {error}"
            ) from error


class Msps:
    """The organisations of a channel."""

    def __init__(self, msps: Iterable[Msp]) -> None:
        self._msps = {msp.mspid: msp for msp in msps}
        self._known = lru_cache(_CACHED)(self._find)

    @property
    def mspids(self) -> Collection[str]:
        """The MSP ids of all organisations."""
        return self._msps.keys()

    def identify(self, creator: bytes) -> Identity:
        """Return who `creator` (a SerializedIdentity) is; from any thread.

        Raises: Denied as `Msp.identify`.
        """
        return self._known(creator)

    def _find(self, creator: bytes) -> Identity:
        mspid = _parse(creator).mspid
        if mspid not in self._msps:
            raise _unknown(mspid)
        return self._msps[mspid].identify(creator)


def require_local(policy: str, identity: Identity, mspid: str) -> None:
    """Check that an identity is of the organisation `mspid` of a peer.

    `policy`: Members, or Admins: then it is an admin there. Raises: Denied.
    """
    if identity.mspid != mspid:
        raise Denied(
            "Failed deserializing proposal creator during channelless check policy with "
            f"policy [{policy}]: [expected MSP ID {mspid}, received {identity.mspid}]"
        )
    if policy == "Admins" and identity.role is not Role.ADMIN:
        raise Denied(
            "Failed verifying that proposal's creator satisfies local MSP principal "
            f"during channelless check policy with policy [{policy}]: [The identity is "
            f"not an admin under this MSP [{mspid}]: The identity does not contain OU "
            f"[ADMIN], MSP: [{mspid}]]"
        )


def certificate_of(serialized: identities_pb2.SerializedIdentity) -> x509.Certificate:
    """Return the certificate of an identity, whose issuer is not checked.

    Raises: Denied with the fact `mspid` None.
    """
    pem = serialized.id_bytes
    if len(pem) > _PEM_MAX or pem.count(b"-----BEGIN CERTIFICATE-----") != 1:
        raise Denied("the creator's id_bytes are not one PEM certificate", mspid=None)
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        # Read everything that is used later: parts are parsed when asked for.
        certificate.public_key()
        certificate.subject.rfc4514_string()
        len(certificate.extensions)
    except Exception as error:  # hostile bytes: the parser has many errors
        raise Denied("the creator's certificate cannot be read", mspid=None) from error
    return certificate


def _parse(creator: bytes) -> identities_pb2.SerializedIdentity:
    if (size := len(creator)) > CREATOR_MAX:
        raise Denied(
            f"the creator has {size} bytes, the limit is {CREATOR_MAX}", mspid=None
        )
    try:
        return identities_pb2.SerializedIdentity.FromString(creator)
    except DecodeError as error:
        raise Denied("the creator is no SerializedIdentity", mspid=None) from error


def _unknown(mspid: str) -> Denied:
    return Denied(f"MSP {mspid} is unknown", mspid=None)
