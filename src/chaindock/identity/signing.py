"""Signatures as Fabric makes and accepts them: ECDSA over SHA-256 with a low S.

Source: docs/fabric/ledger.md#identities
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from fabric_protos.msp import identities_pb2

from chaindock.errors import Denied

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import (
        EllipticCurvePrivateKey,
        EllipticCurvePublicKey,
    )

# Orders of the curves (SEC 2, FIPS 186-4); `cryptography` does not tell them.
_ORDER = {
    "secp224r1": 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFF16A2E0B8F03E13DD29455C5C2A3D,
    "secp256r1": 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
    "secp384r1": int(
        "ffffffffffffffffffffffffffffffffffffffffffffffff"
        "c7634d81f4372ddf581a0db248b0a77aecec196accc52973",
        16,
    ),
    "secp521r1": int(
        "01fffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffa"
        "51868783bf2f966b7fcc0148f709a5d03bb5c9b8899c47aebb6fb71e91386409",
        16,
    ),
}
CURVES = frozenset(_ORDER)
_ALGORITHM = ec.ECDSA(hashes.SHA256())


def sign_low_s(key: EllipticCurvePrivateKey, message: bytes) -> bytes:
    """Return the DER signature of SHA-256 of `message`, with s at most half the order."""
    signature = key.sign(message, _ALGORITHM)
    order = _ORDER[key.curve.name]
    r, s = decode_dss_signature(signature)
    if s > order // 2:
        return encode_dss_signature(r, order - s)
    return signature


def has_low_s(signature: bytes, curve: str) -> bool:
    """Tell whether the DER `signature` has s at most half the order of `curve`.

    Raises: ValueError when it is no DER signature.
    """
    _, s = decode_dss_signature(signature)
    return s <= _ORDER[curve] // 2


def verify_signature(
    key: EllipticCurvePublicKey, message: bytes, signature: bytes
) -> None:
    """Check a signature.

    Raises: Denied when it is malformed, has a high S, or does not fit.
    """
    try:
        low = has_low_s(signature, key.curve.name)
    except ValueError as error:
        raise Denied("the signature is not a DER sequence of r and s") from error
    if not low:
        raise Denied("Invalid S. Must be smaller than half the order of the curve")
    try:
        key.verify(signature, message, _ALGORITHM)
    except InvalidSignature as error:
        raise Denied("the signature does not fit the message and the key") from error


class SigningIdentity:
    """A certificate and its key.

    Args:
        mspid: MSP id of the organisation.
        certificate_pem: exactly the bytes on disk; they are part of `creator`.
        key: of the certificate.
    """

    def __init__(
        self, mspid: str, certificate_pem: bytes, key: EllipticCurvePrivateKey
    ) -> None:
        self.mspid = mspid
        self.certificate_pem = certificate_pem
        self.creator: bytes = identities_pb2.SerializedIdentity(
            mspid=mspid, id_bytes=certificate_pem
        ).SerializeToString()
        self._key = key

    def sign(self, message: bytes) -> bytes:
        """Return the low-S DER signature of SHA-256 of `message`."""
        return sign_low_s(self._key, message)
