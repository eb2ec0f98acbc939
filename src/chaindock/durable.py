"""Files and folder entries that survive a power failure once they are written."""

from __future__ import annotations

import os
import sqlite3
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from chaindock.errors import StorageError, is_retryable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_PASSING = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_BUSY}


@contextmanager
def storing(
    what: str, path: Path, hint: str = "check free space and permissions there"
) -> Iterator[None]:
    """Raise StorageError for an OSError or error of SQLite: `what`, `path` and why."""
    try:
        yield
    except ConnectionError:  # of a client
        raise
    except (OSError, sqlite3.Error) as error:
        passes = getattr(error, "sqlite_errorcode", 0) & 0xFF in _PASSING
        raise StorageError(
            f"{what} {str(path)!r}: {getattr(error, 'strerror', None) or error}",
            hint=hint,
            path=str(path),
            retryable=passes or is_retryable(error),
        ) from error


def sync_folder(folder: Path) -> None:
    """Flush the entries of a folder to disk; nothing if the folder may not be read."""
    with suppress(PermissionError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_file(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write `path` whole or not at all, and flush it; make its folder when absent.

    One writer at a time: what a killed writer left is overwritten by the next one.
    """
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)  # on a full disk
    sync_folder(path.parent)
