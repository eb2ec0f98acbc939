"""Settings of the ledger."""

from __future__ import annotations

from dataclasses import dataclass

from chaindock.options import option


@dataclass(frozen=True)
class LedgerOptions:
    """How closely the ledger follows Fabric where that only gets in a developer's way."""

    strict: bool = option(True, "chaindock.ledger.strictFabric")
    """Treat rich queries as a peer with CouchDB does: refuse one that sorts without an
    index, ignore its limit, and skip keys again in every 1000 results."""
