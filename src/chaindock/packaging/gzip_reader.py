"""Decompress hostile gzip in small pieces.

Owns:    the bounds on decompressed size and ratio; that the stream is whole.
Not:     what is inside (tar_reader.py).
Entry:   GzipReader
Holds:   at most two chunks are in memory; the end is reached only if length, checksum
         and the absence of anything behind were checked.
Source:  launch.md §9 W37
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Protocol

from chaindock.packaging.rules import CHUNK, broken

if TYPE_CHECKING:
    from chaindock.packaging.rules import Limits

_INTACT = "an archive is one intact gzip stream"


class Source(Protocol):
    """Anything bytes are read from; b"" is the end."""

    def read(self, size: int, /) -> bytes:
        """Return 1 to `size` bytes, or b"" at the end."""


class GzipReader:
    """The decompressed bytes of `source`.

    Args:
        source: the compressed bytes.
        archive: what the archive is called in errors.
    """

    def __init__(self, source: Source, limits: Limits, archive: str) -> None:
        self._source, self._limits, self._archive = source, limits, archive
        self._inflate = zlib.decompressobj(wbits=31)
        self._pending = b""
        self._taken = self._given = 0

    def read(self, size: int, /) -> bytes:
        """Return 1 to `size` bytes, or b"" at the end.

        Raises:
            PackageInvalid: not gzip, cut, damaged, something behind it, or a bomb.
        """
        while not self._inflate.eof:
            data = self._step(size)
            if data:
                return data
        return b""

    def _step(self, size: int) -> bytes:
        if not self._pending:
            self._pending = self._source.read(CHUNK)
            self._taken += len(self._pending)
        at_end = not self._pending
        try:
            data = self._inflate.decompress(self._pending, size)
        except zlib.error as error:
            raise broken(self._archive, _INTACT, str(error)) from error
        self._pending = self._inflate.unconsumed_tail
        if self._inflate.eof:
            self._require_nothing_behind()
        elif at_end and not data:
            raise broken(self._archive, _INTACT, "its end is missing")
        self._count(len(data))
        return data

    def _require_nothing_behind(self) -> None:
        if self._inflate.unused_data or self._source.read(1):
            raise broken(self._archive, _INTACT, "bytes behind its end")

    def _count(self, size: int) -> None:
        self._given += size
        limits = self._limits
        if self._given > limits.unpacked_bytes:
            raise broken(
                self._archive,
                f"an archive has at most {limits.unpacked_bytes} bytes unpacked",
                hint="a larger archive needs a larger limit in the configuration",
            )
        if (
            self._given > limits.ratio_from_bytes
            and self._given > limits.ratio * self._taken
        ):
            raise broken(
                self._archive, f"an archive unpacks to at most {limits.ratio} times"
            )
