"""The one organisation of a development node.

Owns:    which identities there are, and where each lies below the home.
Not:     what a certificate looks like (ca.py), file formats (folders.py).
Entry:   Organization.open
Holds:   what was once made stays: CA, node, orderer, admin; a crash while it is made
         leaves nothing that a later start would take for complete.
Source:  ledger-gateway.md §12.4
"""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING

from cryptography.x509.oid import NameOID

from chaindock.errors import InvalidInput
from chaindock.identity.ca import (
    CertificateAuthority,
    attributes_of,
    certificate_pem,
    key_pem,
    new_key,
)
from chaindock.identity.folders import (
    appear,
    read_certificate,
    read_key,
    read_signer,
    write_certificate,
    write_file,
    write_signer,
    write_trust,
)
from chaindock.identity.msp import Msp, Role

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from chaindock.identity.signing import SigningIdentity

ADMIN = "Admin"
_MSPID = re.compile(r"[A-Za-z0-9.-]{1,64}")
_DOMAIN = re.compile(r"[a-z0-9]([a-z0-9.-]{0,48}[a-z0-9])?")
_USER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")


class Organization:
    """CA, node, orderer, admin and users; one orderer identity in the same MSP.

    Args:
        path: `<folder>/peerOrganizations/<domain>`, complete.
        mspid: e.g. `Org1MSP`.
        domain: e.g. `org1.example.com`.
    """

    def __init__(self, path: Path, mspid: str, domain: str) -> None:
        self.path = path
        self.mspid = mspid
        self.domain = domain
        ca_path = path / "ca"
        certificate = read_certificate(ca_path / f"ca.{domain}-cert.pem")
        self._ca = CertificateAuthority(certificate, read_key(ca_path / "priv_sk"))
        self.ca_pem = certificate_pem(certificate)
        self.msp = Msp(mspid, certificate)
        self.peer = read_signer(_peer(path, domain), mspid)
        self.orderer = read_signer(_orderer(path, domain), mspid)
        self.admin = read_signer(self.user_msp(ADMIN), mspid)
        self._users: dict[str, tuple[SigningIdentity, dict[str, str]]] = {}
        self._lock = threading.Lock()

    @classmethod
    def open(cls, folder: Path, mspid: str, domain: str) -> Organization:
        """Load the organisation below `folder`; make it on first use. Blocks.

        Raises:
            InvalidInput: `mspid` or `domain` does not follow its rule.
            ConfigInvalid: what is on disk cannot be read.
            StorageError: it cannot be written.
        """
        if not _MSPID.fullmatch(mspid):
            raise InvalidInput(
                f"invalid MSP id {mspid!r}: expected letters, digits, . and -"
            )
        if not _DOMAIN.fullmatch(domain):
            raise InvalidInput(
                f"invalid domain {domain!r}: expected up to 50 lower-case letters, "
                "digits, . and -"
            )
        path = folder / "peerOrganizations" / domain
        if not path.exists():
            _create(path, domain)
        return cls(path, mspid, domain)

    def user_msp(self, name: str) -> Path:
        """Return where the MSP directory of a user lies, made or not."""
        return self.path / "users" / f"{name}@{self.domain}" / "msp"

    def user(
        self, name: str, attributes: Mapping[str, str] | None = None
    ) -> SigningIdentity:
        """Return a client identity; made on first use and kept on disk.

        Blocks for some milliseconds then; may be called from any thread.

        Args:
            name: `Admin` is the organisation's admin.
            attributes: for the certificate, beside hf.EnrollmentID, hf.Type and
                hf.Affiliation; none = as they are. Other ones than before: the same
                key gets a new certificate.

        Raises:
            InvalidInput: the name does not follow its rule, is too long together with
                the domain, or differs only in case from another one; attributes for the
                admin, or too many.
        """
        if name == ADMIN:
            if attributes:
                raise InvalidInput("the identity 'Admin' has no attributes")
            return self.admin
        known = self._users.get(name)
        if known is not None and (not attributes or known[1] == attributes):
            return known[0]
        if not _USER.fullmatch(name) or name.casefold() == ADMIN.casefold():
            raise InvalidInput(
                f"invalid user name {name!r}: expected up to 32 letters, digits, "
                "_ . and -, and not the name of the admin in other letters"
            )
        with self._lock:
            signer = self._enrol(name, attributes)
            self._users[name] = signer, dict(attributes or {})
        return signer

    def _enrol(
        self, name: str, attributes: Mapping[str, str] | None
    ) -> SigningIdentity:
        msp = self.user_msp(name)
        common_name = f"{name}@{self.domain}"
        wanted = {
            **(attributes or {}),
            "hf.Affiliation": "",
            "hf.EnrollmentID": name,
            "hf.Type": str(Role.CLIENT),
        }
        if not msp.exists():
            with appear(msp.parent) as scratch:
                _write_identity(
                    scratch / "msp", self._ca, common_name, Role.CLIENT, wanted
                )
            return read_signer(msp, self.mspid)
        signer = read_signer(msp, self.mspid)
        certificate = self.msp.identify(signer.creator).certificate
        # On file systems that fold case, `alice` and `Alice` are one directory.
        subject = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        if subject[0].value != common_name:
            raise InvalidInput(
                f"user {name!r} differs only in case from {subject[0].value!r}"
            )
        if not attributes or attributes_of(certificate) == wanted:
            return signer
        key = read_key(msp / "keystore" / "priv_sk").public_key()
        fresh = self._ca.issue(key, common_name, Role.CLIENT, wanted)
        write_certificate(msp, common_name, fresh)
        return read_signer(msp, self.mspid)


def _peer(path: Path, domain: str) -> Path:
    return path / "peers" / f"peer0.{domain}" / "msp"


def _orderer(path: Path, domain: str) -> Path:
    return path / "orderers" / f"orderer.{domain}" / "msp"


def _create(path: Path, domain: str) -> None:
    ca = CertificateAuthority.create(domain)
    with appear(path) as scratch:
        name = f"ca.{domain}-cert.pem"
        write_file(scratch / "ca" / name, certificate_pem(ca.certificate))
        write_file(scratch / "ca" / "priv_sk", key_pem(ca.key), mode=0o600)
        write_trust(scratch / "msp", ca.certificate, domain)
        admin = scratch / "users" / f"{ADMIN}@{domain}" / "msp"
        _write_identity(_peer(scratch, domain), ca, f"peer0.{domain}", Role.PEER)
        _write_identity(
            _orderer(scratch, domain), ca, f"orderer.{domain}", Role.ORDERER
        )
        _write_identity(admin, ca, f"{ADMIN}@{domain}", Role.ADMIN)


def _write_identity(
    msp: Path,
    ca: CertificateAuthority,
    common_name: str,
    role: Role,
    attributes: Mapping[str, str] | None = None,
) -> None:
    key = new_key()
    certificate = ca.issue(key.public_key(), common_name, role, attributes)
    domain = common_name.partition("@")[2] or common_name.partition(".")[2]
    write_trust(msp, ca.certificate, domain)
    write_signer(msp, common_name, certificate, key)
