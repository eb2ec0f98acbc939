"""The organisations of a development node: CA, peer, admin and users of each.

Identities lie on disk as MSP directories, and what was made once stays. A directory appears
complete or not at all, and keys are readable by their owner only.
Source: docs/fabric/ledger.md#identities
"""

from __future__ import annotations

import re
import threading
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import NameOID

from chaindock.durable import storing, write_file
from chaindock.errors import InvalidInput
from chaindock.identity.ca import (
    CertificateAuthority,
    attributes_of,
    certificate_pem,
    key_pem,
    new_key,
)
from chaindock.identity.files import (
    TlsFiles,
    appear,
    broken,
    read_certificate,
    read_key,
)
from chaindock.identity.msp import Msp, Role, SigningIdentity

ADMIN = "Admin"
_MSPID = re.compile(r"[A-Za-z0-9.-]{1,64}")
_DOMAIN = re.compile(r"[a-z0-9]([a-z0-9.-]{0,48}[a-z0-9])?")
_MSPID_FILE = "mspid"
"""File of an organisation that holds its MSP id."""
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,29}")
_USER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")


def full_mspid(name: str, known: Collection[str]) -> str:
    """Return the known MSP id that a user means: `Org2` and `org2` are `Org2MSP`."""
    wanted = {name.lower(), f"{name}MSP".lower()}
    found = (one for one in known if one.lower() in wanted)
    return name if name in known else next(found, name)


class Organization:
    """CA, peer, admin and users; the first one of a node has the orderer, too.

    `path` is `<folder>/peerOrganizations/<domain>`, complete.
    """

    def __init__(self, path: Path, mspid: str, domain: str) -> None:
        self.path = path
        self.mspid = mspid
        self.domain = domain
        ca_path = path / "ca"
        certificate = read_certificate(ca_path / f"ca.{domain}-cert.pem")
        self._ca = CertificateAuthority(certificate, read_key(ca_path / "priv_sk"))
        self.ca_pem = certificate_pem(certificate)
        self.made_at = certificate.not_valid_before_utc
        """When it was made, about."""
        self._tls = TlsFiles(path, domain)
        self.tls = self._tls.pair_of_peer()
        """Root, certificate and key of the peer's listener, PEM."""
        self.msp = Msp.of_ca(mspid, certificate, (self._tls.root_pem,))
        self.peer = _read_signer(path / "peers" / f"peer0.{domain}" / "msp", mspid)
        self.admin = _read_signer(self.user_msp(ADMIN), mspid)
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls, folder: Path, mspid: str, domain: str, *, orders: bool = True
    ) -> Organization:
        """Load the organisation below `folder`; make it on first use. Blocks.

        `orders`: it has the orderer.

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
            _create(path, mspid, domain, orders=orders)
        found = cls(path, mspid, domain)
        if orders:
            _ = found.orderer  # what cannot be read is an error now
        return found

    def listen_at(self, host: str) -> None:
        """Put where the peer listens into its certificate. Blocks. Raises: StorageError."""
        self.tls = self._tls.pair_of_peer(host)

    @cached_property
    def orderer(self) -> SigningIdentity:
        """The identity that orders. Raises: ConfigInvalid when there is none."""
        orderer = self.path / "orderers" / f"orderer.{self.domain}" / "msp"
        return _read_signer(orderer, self.mspid)

    def user_msp(self, name: str) -> Path:
        """Return where the MSP directory of a user lies, made or not."""
        return self.path / "users" / f"{name}@{self.domain}" / "msp"

    def user(
        self, name: str, attributes: Mapping[str, str] | None = None
    ) -> SigningIdentity:
        """Return a client identity; made on first use and kept on disk.

        Blocks for some milliseconds; may be called from any thread. `Admin` is the
        organisation's admin. `attributes` are for the certificate, beside
        hf.EnrollmentID, hf.Type and hf.Affiliation; none = as they are. Other ones than
        before: the same key gets a new certificate.

        Raises:
            InvalidInput: the name does not follow its rule, is too long together with
                the domain, or differs only in case from another one; attributes for the
                admin, or too many.
        """
        if name == ADMIN:
            if attributes:
                raise InvalidInput("the identity 'Admin' has no attributes")
            return self.admin
        if not _USER.fullmatch(name) or name.casefold() == ADMIN.casefold():
            raise InvalidInput(
                f"invalid user name {name!r}: expected up to 32 letters, digits, "
                "_ . and -, and not the name of the admin in other letters"
            )
        with self._lock:
            return self._enrol(name, attributes)

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
                self._tls.equip(scratch, common_name, "users")
            return _read_signer(msp, self.mspid)
        signer = _read_signer(msp, self.mspid)
        certificate = self.msp.identify(signer.creator).certificate
        # On file systems that fold case, `alice` and `Alice` are one directory.
        if (other := _common_name(certificate)) != common_name:
            raise InvalidInput(f"user {name!r} differs only in case from {other!r}")
        if not attributes or attributes_of(certificate) == wanted:
            return signer
        key = read_key(msp / "keystore" / "priv_sk").public_key()
        fresh = self._ca.issue(key, common_name, Role.CLIENT, wanted)
        _write_certificate(msp, common_name, fresh)
        return _read_signer(msp, self.mspid)


class Organizations:
    """All organisations of a node; the first one orders. Blocks when it reads or makes one.

    Whether an organisation is a member of a channel is a matter of that channel.
    `stopped` are the MSP ids of those whose peers a user has stopped.
    """

    def __init__(self, folder: Path, first: Organization) -> None:
        """Load what is below `folder` beside `first`. Raises: ConfigInvalid."""
        self._folder, self.first = folder, first
        self._known = {first.mspid: first}
        self.stopped: set[str] = set()
        self._making = threading.Lock()
        for path in sorted((folder / "peerOrganizations").glob(f"[!.]*/{_MSPID_FILE}")):
            if path.parent != first.path:
                self._load(path.read_text(encoding="utf-8"), path.parent.name)

    def _load(self, mspid: str, domain: str) -> Organization:
        found = Organization.open(self._folder, mspid, domain, orders=False)
        return self._known.setdefault(mspid, found)

    def all(self) -> list[Organization]:
        """Return every organisation, the first one first."""
        return list(self._known.values())

    def find(self, mspid: str) -> Organization | None:
        """Return an organisation, None when its keys are not here."""
        return self._known.get(mspid)

    def make(self, name: str) -> Organization:
        """Return the organisation `name`, e.g. Org2 or Org2MSP; make it on first use.

        May be called from any thread. Raises: InvalidInput, StorageError.
        """
        short = name.removesuffix("MSP")
        if not _NAME.fullmatch(short):
            raise InvalidInput(
                f"invalid name of an organisation {name!r}: expected up to 30 letters, "
                "digits and -, with a letter first"
            )
        mspid = f"{short}MSP"
        parent = self.first.domain.partition(".")[2] or "example.com"
        with self._making:
            for known in self._known:
                if known != mspid and known.casefold() == mspid.casefold():
                    raise InvalidInput(f"{mspid!r} differs only in case from {known!r}")
            found = self._known.get(mspid)
            return found or self._load(mspid, f"{short.lower()}.{parent}")


def _create(path: Path, mspid: str, domain: str, *, orders: bool) -> None:
    ca = CertificateAuthority.create(domain)
    with appear(path) as scratch:
        name = f"ca.{domain}-cert.pem"
        write_file(scratch / "ca" / name, certificate_pem(ca.certificate))
        write_file(scratch / "ca" / "priv_sk", key_pem(ca.key), mode=0o600)
        write_file(scratch / _MSPID_FILE, mspid.encode())
        _write_trust(scratch / "msp", ca.certificate)
        owners = [
            ("peers", f"peer0.{domain}", Role.PEER),
            ("users", f"{ADMIN}@{domain}", Role.ADMIN),
        ]
        if orders:
            owners.append(("orderers", f"orderer.{domain}", Role.ORDERER))
        for folder, owner, role in owners:
            _write_identity(scratch / folder / owner / "msp", ca, owner, role)


def _write_identity(
    msp: Path,
    ca: CertificateAuthority,
    common_name: str,
    role: Role,
    attributes: Mapping[str, str] | None = None,
) -> None:
    key = new_key()
    certificate = ca.issue(key.public_key(), common_name, role, attributes)
    _write_trust(msp, ca.certificate)
    write_file(msp / "keystore" / "priv_sk", key_pem(key), mode=0o600)
    _write_certificate(msp, common_name, certificate)


def _write_trust(msp: Path, ca: x509.Certificate) -> None:
    """Write the part of an MSP directory that names the CA and the roles."""
    name = f"{_common_name(ca)}-cert.pem"
    write_file(msp / "cacerts" / name, certificate_pem(ca))
    lines = ["NodeOUs:", "  Enable: true"]
    for role in Role:
        lines += [
            f"  {role.title()}OUIdentifier:",
            f"    Certificate: cacerts/{name}",
            f"    OrganizationalUnitIdentifier: {role}",
        ]
    write_file(msp / "config.yaml", ("\n".join(lines) + "\n").encode())


def _common_name(certificate: x509.Certificate) -> str:
    found = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value)


def _write_certificate(
    msp: Path, common_name: str, certificate: x509.Certificate
) -> None:
    """Write, or replace, the certificate of an identity. Raises: StorageError."""
    path = msp / "signcerts" / f"{common_name}-cert.pem"
    with storing("cannot write", path):
        write_file(path, certificate_pem(certificate))


def _read_signer(msp: Path, mspid: str) -> SigningIdentity:
    """Read the identity of an MSP directory. Raises: ConfigInvalid."""
    try:
        certificate = next(p for p in sorted((msp / "signcerts").glob("[!.]*")))
        key = next(p for p in sorted((msp / "keystore").glob("[!.]*")))
    except StopIteration:
        raise broken(msp, "signcerts and keystore with one file each", None) from None
    read_certificate(certificate)
    return SigningIdentity(mspid, certificate.read_bytes(), read_key(key))
