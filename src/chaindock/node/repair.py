"""Check the ledgers of a home, and make their state anew from the blocks."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from chaindock.errors import NotFound
from chaindock.ids import require_channel
from chaindock.ledger.database import connect_reader, corrupt, translated
from chaindock.ledger.rebuild import rebuild_file
from chaindock.ledger.verification import verify_all

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from chaindock.node.home import Home


def verify(home: Home) -> dict[str, int]:
    """Check each page and block of the ledgers; return their heights by channel.

    Raises: NotFound: the home has no ledger. LedgerCorrupt: says what is damaged.
    LedgerError: a file cannot be read.
    """
    return {file.stem: _verify(file) for file in _ledgers(home)}


def _verify(path: Path) -> int:
    with translated(path), closing(connect_reader(path)) as db:
        db.execute("BEGIN")  # one state, also while blocks are committed
        (told,) = db.execute("PRAGMA integrity_check(1)").fetchone()
        if told != "ok":
            raise corrupt(path, str(told))
        return verify_all(db, path)


def rebuild(home: Home, warn: Callable[[str], None]) -> dict[str, int]:
    """Make the state of each ledger anew; return their heights by channel.

    `warn` is told of a height that differs from what the file recorded.

    Raises: NodeAlreadyRunning. NotFound, LedgerCorrupt, LedgerError: as `rebuild_file`.
    """
    with home.locked():
        return {
            file.stem: rebuild_file(file, require_channel(file.stem), warn)
            for file in _ledgers(home)
        }


def _ledgers(home: Home) -> list[Path]:
    files = sorted(home.ledgers.glob("*.db"))
    if not files:
        raise NotFound(
            f"home {str(home.root)!r} has no ledger",
            hint="start a node there: chaindock up -d",
        )
    return files
