"""Who a creator is, and signatures as Fabric makes and accepts them.

An `Identity` that is returned chains to the organisation's CA and has exactly one role;
expiry is not a matter of the MSP. Signatures are ECDSA over SHA-256 with a low S.
Source: docs/fabric/ledger.md#identities
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from hashlib import sha256

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ec import (
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.utils import (
    Prehashed,
    decode_dss_signature,
    encode_dss_signature,
)
from cryptography.x509.oid import NameOID
from fabric_protos.msp import identities_pb2, msp_config_pb2
from google.protobuf.message import DecodeError

from chaindock.errors import Denied, InvalidInput
from chaindock.identity.chains import Authorities

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


class _Recent:
    """The newest facts of a kind, at least half of `most`; from any thread."""

    def __init__(self, most: int) -> None:
        self._half = most // 2
        self._newer: set[object] = set()
        self._older = self._newer

    def __contains__(self, fact: object) -> bool:
        return fact in self._newer or fact in self._older

    def add(self, fact: object) -> None:
        self._newer.add(fact)
        if len(self._newer) >= self._half:
            self._older, self._newer = self._newer, set()


_VERIFIED = _Recent(_CACHED)
"""Signatures that are right, also in their S: public key, digest and signature, made here
or verified. What one is worth depends on nothing else: none is verified twice.
"""


def _point(key: EllipticCurvePublicKey) -> bytes:
    """Return a public key as the bytes of an uncompressed point."""
    return key.public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )


def has_low_s(signature: bytes, curve: ec.EllipticCurve) -> bool:
    """Tell whether a signature has a low s for `curve`. Raises: ValueError: no DER."""
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
        self._key, self._order = key, key.curve.group_order
        self._point = _point(key.public_key())

    def sign(self, message: bytes) -> bytes:
        """Return the DER signature of SHA-256 of `message`; s is at most half the order."""
        digest = sha256(message).digest()
        signature = self._key.sign(digest, _ALGORITHM)
        r, s = decode_dss_signature(signature)
        if s > self._order // 2:
            signature = encode_dss_signature(r, self._order - s)
        _VERIFIED.add((self._point, digest, signature))
        return signature


class Role(StrEnum):
    """What an identity is in its organisation; the value is the NodeOU."""

    CLIENT = "client"
    PEER = "peer"
    ADMIN = "admin"
    ORDERER = "orderer"


@dataclass(frozen=True, eq=False)
class Identity:
    """A checked identity, equal to itself alone; `role` is its only NodeOU."""

    mspid: str
    role: Role
    certificate: x509.Certificate
    expires: dt.datetime
    """In UTC."""
    key: EllipticCurvePublicKey
    certifiers: bytes = b""
    """`certifiers_of` the CAs above it, which policies name."""
    units: frozenset[str] = frozenset()
    """All organisational units of its subject."""
    point: bytes = b""
    """The public key, as a point of its curve."""
    fingerprint: bytes = b""
    """SHA-256 of the certificate."""

    def verify(self, message: bytes, signature: bytes) -> None:
        """Check `signature` over SHA-256 of `message`; also its S. Raises: Denied."""
        fact = self.point, sha256(message).digest(), signature
        if fact in _VERIFIED:
            return
        try:
            low = has_low_s(signature, self.key.curve)
        except ValueError as error:
            raise Denied("the signature is not a DER sequence of r and s") from error
        if not low:
            raise Denied("Invalid S. Must be smaller than half the order of the curve")
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
    """One organisation, as its peers see it.

    `tls_roots`, PEM, are what clients of its peers trust.

    Raises: ValueError: a certificate or list of the definition cannot be read or used.
    """

    def __init__(self, fabric: msp_config_pb2.FabricMSPConfig) -> None:
        self.mspid: str = fabric.name
        self.tls_roots = tuple(fabric.tls_root_certs)
        self._fabric = fabric
        self._authorities = Authorities(
            [x509.load_pem_x509_certificate(pem) for pem in fabric.root_certs],
            [x509.load_pem_x509_certificate(pem) for pem in fabric.intermediate_certs],
            [x509.load_pem_x509_crl(pem) for pem in fabric.revocation_list],
        )
        self._units = {role: self._unit(role) for role in Role}
        # A cache that several threads may use.
        self._known = lru_cache(_CACHED)(self._examine)

    @classmethod
    def of_ca(
        cls, mspid: str, ca: x509.Certificate, tls_roots: Iterable[bytes] = ()
    ) -> Msp:
        """Return the MSP of an organisation with one CA and the usual roles."""
        root = ca.public_bytes(serialization.Encoding.PEM)
        units = {
            f"{role}_ou_identifier": msp_config_pb2.FabricOUIdentifier(
                certificate=root, organizational_unit_identifier=role
            )
            for role in Role
        }
        fabric = msp_config_pb2.FabricMSPConfig(
            name=mspid,
            root_certs=[root],
            tls_root_certs=tls_roots,
            crypto_config=msp_config_pb2.FabricCryptoConfig(
                signature_hash_family="SHA2", identity_identifier_hash_function="SHA256"
            ),
            fabric_node_ous=msp_config_pb2.FabricNodeOUs(enable=True, **units),
        )
        return cls(fabric)

    @classmethod
    def of(cls, raw: bytes) -> Msp:
        """Return the MSP of a serialised MSPConfig, e.g. of a channel configuration.

        Raises: InvalidInput when it cannot be read, or its CAs are not sound.
        """
        try:
            config = msp_config_pb2.MSPConfig.FromString(raw)
            return cls(msp_config_pb2.FabricMSPConfig.FromString(config.config))
        except (DecodeError, ValueError) as error:
            raise InvalidInput(
                f"an MSP of the channel configuration cannot be read: {error}"
            ) from error

    def config(self) -> msp_config_pb2.MSPConfig:
        """Return the definition of this MSP as a channel configuration carries it."""
        return msp_config_pb2.MSPConfig(type=0, config=self._fabric.SerializeToString())

    def _unit(self, role: Role) -> tuple[str, bytes]:
        """Return the unit that stands for a role, and who must certify it; b"" = any."""
        found = getattr(self._fabric.fabric_node_ous, f"{role}_ou_identifier")
        name = found.organizational_unit_identifier or role.value
        if not found.certificate:
            return name, b""
        ca = x509.load_pem_x509_certificate(found.certificate)
        return name, certifiers_of(self._authorities.chain(ca))

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
        issuers = self._check_chain(certificate)
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
        certifiers = certifiers_of(issuers)
        return Identity(
            self.mspid,
            self._role(units, certifiers),
            certificate,
            certificate.not_valid_after_utc,
            key,
            certifiers=certifiers,
            units=units,
            point=_point(key),
            fingerprint=certificate.fingerprint(hashes.SHA256()),
        )

    def _check_chain(self, certificate: x509.Certificate) -> Sequence[x509.Certificate]:
        try:
            issuers = self._authorities.issuers(certificate)
        except ValueError as error:
            why = f"identity of {self.mspid} refused: {error}"
            raise Denied(why, mspid=None) from error
        for extension in certificate.extensions:
            value = extension.value
            if isinstance(value, x509.BasicConstraints) and value.ca:
                raise self._refuse("a CA certificate is not an identity")
        if self._authorities.revoked(certificate, issuers[0]):
            raise self._refuse("The certificate has been revoked")
        return issuers

    def _role(self, units: Collection[str], certifiers: bytes) -> Role:
        roles = [
            role
            for role, (name, by) in self._units.items()
            if name in units and by in {b"", certifiers}
        ]
        if len(roles) != 1:
            raise self._refuse(
                "the identity does not have an OU that resolves to exactly one of "
                "client, peer, orderer, or admin role"
            )
        return roles[0]

    def _refuse(self, why: str) -> Denied:
        return Denied(f"identity of {self.mspid} refused: {why}", mspid=self.mspid)


def certifiers_of(chain: Iterable[x509.Certificate]) -> bytes:
    """Return SHA-256 over the certificates of CAs, each before the one above it."""
    der = serialization.Encoding.DER
    return sha256(b"".join(ca.public_bytes(der) for ca in chain)).digest()


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
        """Return who `creator` is; from any thread. Raises: Denied, as `Msp.identify`."""
        return self._known(creator)

    def valid(self, creators: Mapping[str, bytes]) -> dict[str, Identity]:
        """Return those that are identified, by the names that they are given by."""
        found = {}
        for name, creator in creators.items():
            with suppress(Denied):  # revoked, or its organisation has left meanwhile
                found[name] = self.identify(creator)
        return found

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
    """Return the certificate of an identity, unchecked. Raises: Denied, `mspid` is None."""
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
