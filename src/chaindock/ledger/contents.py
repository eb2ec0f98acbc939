"""The table `contents`: values of `LONG` bytes and above, to which rows of `versions` refer.

A row that refers to a missing value is damage: a statement that reads it fails.
"""

from __future__ import annotations

from typing import Final, NoReturn

LONG: Final = 512
"""Bytes from which on a value is kept apart: a look-up more for who reads it."""
MOST_VALUES: Final = 1 << 24
"""A long value's number is that of its block times this, plus one for each before it."""
KEEP: Final = "INSERT INTO contents VALUES (?, ?)"
_VALUE: Final = (
    "iif(typeof(value)='integer', coalesce("
    "(SELECT bytes FROM contents WHERE contents.id=value), lost_value(value)), value)"
)


def resolved(sql: str) -> str:
    """Return `sql` with the value of a row of `versions` where `sql` has VALUE."""
    return sql.replace("VALUE", _VALUE)


def lost_value(number: int) -> NoReturn:
    """End the statement that refers to a value that is not there.

    SQLite reports an OverflowError of a function with a code of its own, SQLITE_TOOBIG, by
    which `database.translate` knows it, and no other error's text or type.
    """
    raise OverflowError(number)
