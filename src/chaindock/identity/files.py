"""Certificates and keys in files, and the TLS of an organisation on disk.

A directory appears complete or not at all, and what is there stays. A TLS certificate that
has expired, or lacks the host where its owner listens, is replaced and keeps its key, so
that the CA that clients trust stays the same.
Source: docs/fabric/ledger.md#tls
"""

from __future__ import annotations

import datetime as dt
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from chaindock.durable import storing, sync_folder, write_file
from chaindock.errors import ConfigInvalid
from chaindock.identity.ca import (
    CertificateAuthority,
    certificate_pem,
    key_pem,
    new_key,
)

_UNFINISHED = ".unfinished-"
_AHEAD: Final = dt.timedelta(days=30)
"""A certificate is replaced this long before it expires: the node may run for as long."""
_OWNERS: Final = {"peers": "server", "orderers": "server", "users": "client"}
"""Directory of an organisation → name of the files of its members' pairs."""


@contextmanager
def appear(folder: Path) -> Iterator[Path]:
    """Give a scratch directory that becomes `folder` when the block ends well.

    What an earlier process left unfinished beside `folder` is removed first.
    Raises: StorageError when something cannot be written.
    """
    scratch = folder.parent / f"{_UNFINISHED}{secrets.token_hex(6)}"
    try:
        with storing("cannot write", folder):
            folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            for left in folder.parent.glob(f"{_UNFINISHED}*"):
                shutil.rmtree(left, ignore_errors=True)
            scratch.mkdir(mode=0o755)
            yield scratch
            for path in (scratch, *(p for p in scratch.rglob("*") if p.is_dir())):
                sync_folder(path)
            scratch.rename(folder)
            for parent in (folder.parent, folder.parent.parent):
                sync_folder(parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def replace_file(path: Path, content: bytes) -> None:
    """Write a file unless it has this content. Raises: StorageError."""
    with storing("cannot write", path):
        if not path.exists() or path.read_bytes() != content:
            write_file(path, content)


def read_certificate(path: Path) -> x509.Certificate:
    """Read a PEM certificate. Raises: ConfigInvalid."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise broken(path, "a PEM certificate", error) from error


def read_key(path: Path) -> EllipticCurvePrivateKey:
    """Read an unencrypted PKCS#8 ECDSA key. Raises: ConfigInvalid."""
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise broken(path, "an unencrypted PEM private key", error) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise broken(path, "an ECDSA key", None)
    return key


def broken(path: Path, expected: str, cause: Exception | None) -> ConfigInvalid:
    """Return the error for a file or directory that is not what it should be."""
    found = f": {cause}" if cause else ""
    return ConfigInvalid(
        f"{str(path)!r} is not {expected}{found}",
        hint="restore the organization directory from a backup, or start with a new "
        "home: a new CA cannot read what the old one signed",
        key="organizations",
        origin=str(path),
    )


class TlsFiles:
    """The TLS CA of an organisation, and the pairs that it issued.

    `path` is the directory of the organisation, which has its MSP directories.

    Raises: ConfigInvalid: a file cannot be read. StorageError: it cannot be written.
    """

    def __init__(self, path: Path, domain: str) -> None:
        self._path, self._domain = path, domain
        folder = path / "tlsca"
        root, key = folder / f"tlsca.{domain}-cert.pem", folder / "priv_sk"
        if not folder.exists():
            with appear(folder) as scratch:
                self._ca = CertificateAuthority.create(domain, tls=True)
                write_file(scratch / key.name, key_pem(self._ca.key), mode=0o600)
                write_file(scratch / root.name, certificate_pem(self._ca.certificate))
        self._ca = CertificateAuthority(read_certificate(root), read_key(key))
        if _is_over(self._ca.certificate):
            self._ca = CertificateAuthority.create(domain, tls=True, former=self._ca)
            replace_file(root, certificate_pem(self._ca.certificate))
        self.root_pem = certificate_pem(self._ca.certificate)
        """What a client of the organisation's peer trusts."""
        self._trust(path / "msp")
        for kind in _OWNERS:
            for msp in sorted((path / kind).glob("[!.]*/msp")):
                self.equip(msp.parent, msp.parent.name, kind)

    def equip(self, folder: Path, name: str, kind: str) -> None:
        """Give the owner `name`, whose directory is `folder`, what it lacks.

        `kind` is peers, orderers or users. The pair lies in `tls`, the root also in `msp`.
        """
        self._trust(folder / "msp")
        tls, stem = folder / "tls", _OWNERS[kind]
        place = tls / f"{stem}.crt"
        if not tls.exists():
            key = new_key()
            with appear(tls) as scratch:
                write_file(scratch / f"{stem}.key", key_pem(key), mode=0o600)
                write_file(scratch / place.name, self._issue(key, name, kind))
                write_file(scratch / "ca.crt", self.root_pem)
        elif not self._holds(read_certificate(place)):
            key = read_key(tls / f"{stem}.key")
            replace_file(place, self._issue(key, name, kind))
        replace_file(tls / "ca.crt", self.root_pem)

    def pair_of_peer(self, host: str | None = None) -> tuple[bytes, bytes, bytes]:
        """Return the root, and certificate and key of the peer's listener; all PEM.

        `host`: the certificate shall name it beside the usual ones; None = as it is.
        """
        name = f"peer0.{self._domain}"
        tls = self._path / "peers" / name / "tls"
        key, place = read_key(tls / "server.key"), tls / "server.crt"
        if host is not None:
            wanted = self._issue(key, name, "peers", host)
            if _hosts(wanted) != _hosts(place.read_bytes()):
                replace_file(place, wanted)
        return self.root_pem, place.read_bytes(), key_pem(key)

    def _issue(
        self, key: EllipticCurvePrivateKey, name: str, kind: str, host: str = ""
    ) -> bytes:
        names = (f"peer0.{self._domain}", f"orderer.{self._domain}", "localhost")
        hosts = () if kind == "users" else (*names, "127.0.0.1", "::1", host)
        known = list(filter(None, dict.fromkeys(hosts)))
        return certificate_pem(self._ca.issue_tls(key.public_key(), name, known))

    def _holds(self, certificate: x509.Certificate) -> bool:
        try:
            certificate.verify_directly_issued_by(self._ca.certificate)
        except (ValueError, TypeError, InvalidSignature):
            return False
        return not _is_over(certificate)

    def _trust(self, msp: Path) -> None:
        if msp.is_dir():
            name = f"tlsca.{self._domain}-cert.pem"
            replace_file(msp / "tlscacerts" / name, self.root_pem)


def _hosts(certificate: bytes) -> x509.SubjectAlternativeName:
    extensions = x509.load_pem_x509_certificate(certificate).extensions
    return extensions.get_extension_for_class(x509.SubjectAlternativeName).value


def _is_over(certificate: x509.Certificate) -> bool:
    return certificate.not_valid_after_utc <= dt.datetime.now(dt.UTC) + _AHEAD
