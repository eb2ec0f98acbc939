"""Certificates and keys in files, and directories that appear complete or not at all."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from chaindock.durable import storing, sync_folder, write_file
from chaindock.errors import ConfigInvalid

_UNFINISHED = ".unfinished-"


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
