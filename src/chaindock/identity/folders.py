"""MSP directories on disk, as the tools of the Fabric world read them.

Owns:    file names, modes, config.yaml, writing without a half-made state.
Not:     which identities there are (organization.py).
Entry:   write_msp, read_signer, appear
Holds:   a directory shows up complete or not at all; keys are readable by the owner
         only.
Source:  ledger-gateway.md §12.1, §12.2, §12.4
"""

from __future__ import annotations

import os
import secrets
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from chaindock.errors import ConfigInvalid, StorageError
from chaindock.identity.ca import certificate_pem, key_pem
from chaindock.identity.signing import SigningIdentity

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

_NODE_OUS = ("Client", "Peer", "Admin", "Orderer")
_UNFINISHED = ".unfinished-"


def write_file(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write `data` durably under a new name, then give it its own name."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def appear(folder: Path) -> Iterator[Path]:
    """Give a scratch directory that becomes `folder` when the block ends well.

    What an earlier process left unfinished beside `folder` is removed first.
    Raises: StorageError when something cannot be written.
    """
    try:
        with _scratch(folder) as scratch:
            yield scratch
    except OSError as error:
        raise cannot_write(folder, error) from error


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    for left in folder.parent.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(left, ignore_errors=True)
    scratch = folder.parent / f"{_UNFINISHED}{secrets.token_hex(6)}"
    scratch.mkdir(mode=0o755)
    try:
        yield scratch
        for path in (scratch, *(p for p in scratch.rglob("*") if p.is_dir())):
            _sync(path)
        scratch.rename(folder)
        for parent in (folder.parent, folder.parent.parent):
            _sync(parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_trust(msp: Path, ca: x509.Certificate, domain: str) -> None:
    """Write the part of an MSP directory that names the CA and the roles."""
    name = f"ca.{domain}-cert.pem"
    write_file(msp / "cacerts" / name, certificate_pem(ca))
    lines = ["NodeOUs:", "  Enable: true"]
    for unit in _NODE_OUS:
        lines += [
            f"  {unit}OUIdentifier:",
            f"    Certificate: cacerts/{name}",
            f"    OrganizationalUnitIdentifier: {unit.lower()}",
        ]
    write_file(msp / "config.yaml", ("\n".join(lines) + "\n").encode())


def write_signer(
    msp: Path,
    common_name: str,
    certificate: x509.Certificate,
    key: EllipticCurvePrivateKey,
) -> None:
    """Write certificate and key of an identity into its MSP directory."""
    write_file(msp / "keystore" / "priv_sk", key_pem(key), mode=0o600)
    write_certificate(msp, common_name, certificate)


def write_certificate(
    msp: Path, common_name: str, certificate: x509.Certificate
) -> None:
    """Write, or replace, the certificate of an identity.

    Raises: StorageError.
    """
    path = msp / "signcerts" / f"{common_name}-cert.pem"
    try:
        write_file(path, certificate_pem(certificate))
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> StorageError:
    """Return the error for a file or directory that cannot be written."""
    return StorageError(
        f"{str(path)!r} cannot be written: {error.strerror or error}",
        hint="check free space and permissions there",
        path=str(path),
    )


def read_certificate(path: Path) -> x509.Certificate:
    """Read a PEM certificate. Raises: ConfigInvalid."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _broken(path, "a PEM certificate", error) from error


def read_key(path: Path) -> EllipticCurvePrivateKey:
    """Read an unencrypted PKCS#8 ECDSA key. Raises: ConfigInvalid."""
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise _broken(path, "an unencrypted PEM private key", error) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise _broken(path, "an ECDSA key", None)
    return key


def read_signer(msp: Path, mspid: str) -> SigningIdentity:
    """Read the identity of an MSP directory. Raises: ConfigInvalid."""
    try:
        certificate = next(p for p in sorted((msp / "signcerts").glob("[!.]*")))
        key = next(p for p in sorted((msp / "keystore").glob("[!.]*")))
    except StopIteration:
        raise _broken(msp, "signcerts and keystore with one file each", None) from None
    read_certificate(certificate)
    return SigningIdentity(mspid, certificate.read_bytes(), read_key(key))


def _broken(path: Path, expected: str, cause: Exception | None) -> ConfigInvalid:
    found = f": {cause}" if cause else ""
    return ConfigInvalid(
        f"{str(path)!r} is not {expected}{found}",
        hint="restore the organization directory from a backup, or start with a new "
        "home: a new CA cannot read what the old one signed",
        key="organizations",
        origin=str(path),
    )
