"""The CAs of an organisation: which of them issued a certificate, and what they revoked.

Source: docs/fabric/ledger.md#identities
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509 import Certificate, CertificateRevocationList
from cryptography.x509.oid import ExtensionOID

_E = TypeVar("_E", bound=x509.ExtensionType)
_KNOWN_CRITICAL = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    }
)


class Authorities:
    """Root CAs, the intermediate CAs below them, and their revocation lists.

    A CA that issued another CA issues no identities.

    Args:
        intermediates: in any order.
        revocations: a list counts for the CA that its authority key identifier names and
            whose signature it has; any other is ignored.

    Raises: ValueError: one is no CA, has no chain to a root or several, or is revoked.
    """

    def __init__(
        self,
        roots: Sequence[Certificate],
        intermediates: Iterable[Certificate] = (),
        revocations: Sequence[CertificateRevocationList] = (),
    ) -> None:
        if not roots:
            raise ValueError("there is no root CA")
        self._revocations = revocations
        self._chains: dict[Certificate, tuple[Certificate, ...]] = {
            root: (root,) for root in roots
        }
        waiting = list(dict.fromkeys(intermediates))
        while waiting:
            rest = []
            for one in waiting:
                if any(_issued(one, ca) for ca in self._chains):
                    self._chains[one] = (one, *self._chain(one))
                else:
                    rest.append(one)
            if len(rest) == len(waiting):
                raise ValueError("an intermediate CA was issued by none of the CAs")
            waiting = rest
        for chain in self._chains.values():
            self._check(chain)
        self._inner = {ca for chain in self._chains.values() for ca in chain[1:]}

    def _check(self, chain: tuple[Certificate, ...]) -> None:
        ca, issuers = chain[0], chain[1:]
        _require_known(ca)
        basic = _extension(ca, x509.BasicConstraints)
        if basic is None or not basic.ca or key_id(ca) is None:
            raise ValueError(
                "a CA's certificate is not that of a CA, or lacks its key id"
            )
        for below, issuer in enumerate(issuers):
            limit = _extension(issuer, x509.BasicConstraints)
            if limit and limit.path_length is not None and limit.path_length <= below:
                raise ValueError(
                    "a CA has more CAs below it than its path length allows"
                )
        if issuers and self.revoked(ca, self._chain(ca)[0]):
            raise ValueError("an intermediate CA is revoked")

    def _chain(self, certificate: Certificate) -> tuple[Certificate, ...]:
        found = [ca for ca in self._chains if _issued(certificate, ca)]
        if not found:
            raise ValueError("its certificate was not issued by the CA")
        if len(found) > 1:
            raise ValueError("its certificate has more than one chain to a root")
        chain = self._chains[found[0]]
        # Validity is judged as of the certificate's own beginning.
        moment = certificate.not_valid_before_utc + dt.timedelta(seconds=1)
        for ca in chain:
            if not ca.not_valid_before_utc <= moment <= ca.not_valid_after_utc:
                raise ValueError(
                    "its certificate begins outside the validity of the CA"
                )
        return chain

    def issuers(self, certificate: Certificate) -> tuple[Certificate, ...]:
        """Return the CA that issued the certificate of an identity, …, and the root.

        Raises: ValueError: there is no such chain, or the certificate is not understood.
        """
        chain = self._chain(certificate)
        if chain[0] in self._inner:
            raise ValueError("its CA issues certificates of CAs and not of identities")
        _require_known(certificate)
        return chain

    def chain(self, ca: Certificate) -> tuple[Certificate, ...]:
        """Return a CA and those above it. Raises: ValueError: it is none of these."""
        if ca not in self._chains:
            raise ValueError("a role names a certificate that is none of its CAs")
        return self._chains[ca]

    def revoked(self, certificate: Certificate, issuer: Certificate) -> bool:
        """Tell whether the CA that issued a certificate has revoked it."""
        for one in self._revocations:
            found = _extension(one, x509.AuthorityKeyIdentifier)
            if (
                found is not None
                and found.key_identifier == key_id(issuer)
                and one.is_signature_valid(issuer.public_key())  # type: ignore[arg-type]
                and one.get_revoked_certificate_by_serial_number(
                    certificate.serial_number
                )
            ):
                return True
        return False


def key_id(certificate: Certificate) -> bytes | None:
    """Return the subject key identifier, or None."""
    found = _extension(certificate, x509.SubjectKeyIdentifier)
    return found.key_identifier if found is not None else None


def _issued(certificate: Certificate, ca: Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _require_known(certificate: Certificate) -> None:
    for extension in certificate.extensions:
        if extension.critical and extension.oid not in _KNOWN_CRITICAL:
            name = extension.oid.dotted_string
            raise ValueError(f"critical extension {name} is not understood")


def _extension(
    of: Certificate | CertificateRevocationList, kind: type[_E]
) -> _E | None:
    try:
        return of.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None
