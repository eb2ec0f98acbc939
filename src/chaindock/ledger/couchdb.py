"""Refuse to store what a peer with CouchDB cannot store.

Source: docs/fabric/rich-queries.md#values
"""

from __future__ import annotations

from functools import partial
from typing import Final

import msgspec

from chaindock.aio import LARGE_BYTES
from chaindock.errors import InvalidInput

_refused: Final = partial(
    InvalidInput,
    hint="use another name; chaindock.ledger.strictFabric: false allows any, as LevelDB does",
)
_parse: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def require_storable(key: str, value: bytes = b"") -> None:
    """Refuse a key, or an object with a reserved field. Raises: InvalidInput.

    A value above `LARGE_BYTES` is not looked at: that would hold the event loop.
    """
    if not key:
        raise _refused("invalid key. Empty string is not supported as a key by couchdb")
    if key[0] == "_":
        raise _refused(f'invalid key [{key[:1000]}], cannot begin with "_"')
    if len(value) > LARGE_BYTES or not (
        b'"_' in value or b'"~' in value or b'"\\u00' in value
    ):
        return
    try:
        fields = _parse(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return  # no object: it is stored as bytes
    for name in fields:
        if name[:1] == "_" or name == "~version":
            raise _refused(
                f"field [{name}] is not valid for the CouchDB state database"
            )
