"""Blocks as they lie in the file: compressed against what the file holds anyway.

That is the table `contents`: long values that valid transactions write (contents.py), and
phrases, pieces of earlier blocks in which a certificate appeared first; of a small block the
header, which can be computed. Readers get the bytes that were hashed and signed.
"""

from __future__ import annotations

import re
import sqlite3
import struct
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from fabric_protos.common import common_pb2
from google.protobuf.message import DecodeError
from zstandard import (
    DICT_TYPE_RAWCONTENT,
    ZstdCompressionDict,
    ZstdCompressionParameters,
    ZstdCompressor,
    ZstdDecompressor,
    ZstdError,
)

from chaindock.ledger.contents import KEEP, MOST_VALUES
from chaindock.ledger.database import corrupt
from chaindock.ledger.encoding import header_field

# Phrases have the negative number of the block that they are taken from.
_VALUES: Final = "SELECT bytes FROM {0}.contents WHERE id>=? AND id<? ORDER BY id"
_PHRASES: Final = (
    "SELECT id, bytes FROM {0}.contents WHERE id>=? AND id<=0 ORDER BY id LIMIT 64"
)
_HASH: Final = "SELECT hash FROM {0}.blocks WHERE number=?"
_ANY: Final = -(2**63)
"""Is below the number of every phrase."""
_STORE: Final = "INSERT INTO blocks VALUES (?, ?, ?)"

_CERTIFICATE: Final = re.compile(
    rb"-----BEGIN CERTIFICATE-----[\w+/=\s]{100,4000}-----END CERTIFICATE-----"
)
_SEARCHED: Final = 64 * 1024
"""Bytes in which certificates are looked for; a longer block repeats its own ones."""
_AROUND: Final = 4096
"""Bytes of a phrase on each side of the certificate: a small transaction."""
_ENOUGH: Final = 32 * 1024
"""Bytes of phrases from which on a new one is the certificate alone."""
_SMALL: Final = 16 * 1024
"""Bytes from which on a block is packed as a whole: hashing its data takes longer."""
_PACKED, _WHOLE = b"\1", b"\0"
"""What a packed block begins with, small or whole; one of schema 3 begins with 10.

Schema 4 has whole ones only.
"""
_HEAD: Final = struct.Struct(">cIi")
"""That, how many ids follow (of a whole one none count), and the newest phrase's number."""
_ID: Final = re.compile(rb"\*@([0-9a-f]{64})")
"""What a header of a transaction has as its id; found elsewhere, it does no harm."""
_ID_BYTES: Final = 32


def store_block(
    db: sqlite3.Connection, number: int, block_hash: bytes, block: bytes
) -> None:
    """Store a block; its long values must be stored already."""
    newest, phrases, values = _dictionary(db.execute, "main", number, _ANY)
    certificates = _CERTIFICATE.finditer(block, 0, _SEARCHED)
    if missing := [one for one in certificates if one[0] not in phrases]:
        # Peers come last in a transaction, and are there more often than a client.
        start, end = missing[-1].span()
        around = _AROUND if len(phrases) < _ENOUGH else 0
        db.execute(KEEP, (-number, block[max(start - around, 0) : end + around]))
        newest, phrases, values = _dictionary(db.execute, "main", number, _ANY)
    small = len(block) < _SMALL
    ids = b"".join(_ID.findall(block) if small else ())
    dictionary = phrases + values + ids
    window = max(10, min((len(block) + len(dictionary)).bit_length(), 27))
    parameters = ZstdCompressionParameters.from_level(
        1 if values else -3,
        window_log=window,
        # Repetitions of values are found only if the table has room for all of them.
        hash_log=max(16, min(window - 4, 22)) if values else 14,
        min_match=4 if values and small else 0,  # 0 = that of the level
        write_checksum=True,
    )
    packer = ZstdCompressor(compression_params=parameters, dict_data=_raw(dictionary))
    packed = packer.compress(memoryview(block)[2 + block[1] if small else 0 :])
    ids = bytes.fromhex(ids.decode())
    head = _HEAD.pack(_PACKED if small else _WHOLE, len(ids) // _ID_BYTES, newest)
    db.execute(_STORE, (number, block_hash, head + ids + packed))


def read_block(
    execute: Callable[[str, tuple[Any, ...]], Any],
    path: Path,
    number: int,
    stored: bytes,
    schema: str = "main",
) -> bytes:
    """Return the bytes of a block that `store_block` stored in the database `schema`.

    Raises: LedgerCorrupt: block or dictionary is damaged.
    """
    try:
        whole = stored.startswith(_WHOLE)
        if not (whole or stored.startswith(_PACKED)):
            return stored
        _, count, newest = _HEAD.unpack_from(stored)
        start = _HEAD.size + (0 if whole else count * _ID_BYTES)
        _, *texts = _dictionary(execute, schema, number, newest)
        dictionary = b"".join((*texts, stored[_HEAD.size : start].hex().encode()))
        unpacker = ZstdDecompressor(dict_data=_raw(dictionary))
        block = unpacker.decompress(stored[start:])
        if whole:
            return block
        entries = common_pb2.Block.FromString(block).data.data
    except (ZstdError, MemoryError, struct.error, DecodeError, TypeError) as error:
        why = str(error) or "no memory for its size"  # its head may claim any
        raise corrupt(path, f"block {number} cannot be decoded ({why})") from error
    before = execute(_HASH.format(schema), (number - 1,)).fetchone()
    data_hash = sha256(b"".join(entries)).digest()
    return header_field(number, before[0] if before else b"", data_hash) + block


def _dictionary(
    execute: Callable[[str, tuple[Any, ...]], Any],
    schema: str,
    number: int,
    newest: int,
) -> tuple[int, bytes, bytes]:
    """Return the number of the newest phrase, the phrases and long values of a block.

    The number is 1 if there is no phrase. `newest`: no newer phrase counts.
    """
    phrases = execute(_PHRASES.format(schema), (newest,)).fetchall() or [(1, b"")]
    first = number * MOST_VALUES
    values = execute(_VALUES.format(schema), (first, first + MOST_VALUES)).fetchall()
    texts = (b"".join(row[-1] for row in rows) for rows in (phrases, values))
    return phrases[0][0], *texts


def _raw(dictionary: bytes) -> ZstdCompressionDict | None:
    if not dictionary:
        return None
    return ZstdCompressionDict(dictionary, dict_type=DICT_TYPE_RAWCONTENT)
