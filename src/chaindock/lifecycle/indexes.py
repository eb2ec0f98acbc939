"""The indexes of rich queries that a package brings for its definition."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from chaindock.packaging.format import collection_of
from chaindock.telemetry import get_logger

if TYPE_CHECKING:
    from chaindock.lifecycle.definitions import Definition
    from chaindock.packaging.store import StoredPackage

_log = get_logger("deployer")


async def indexes_of(stored: StoredPackage, definition: Definition) -> dict[str, bytes]:
    """Return the index definitions in a package, by their names in its code archive.

    One for a collection that the definition does not have is logged and left out.

    Raises: PackageInvalid, StorageError.
    """
    if not stored.index_names:
        return {}
    files = await asyncio.to_thread(stored.indexes)
    configs = definition.collections.config
    known = {"", *(one.static_collection_config.name for one in configs)}
    for file in [one for one in files if collection_of(one) not in known]:
        _log.warning("no collection for an index", chaincode=definition.name, file=file)
        del files[file]
    return files
