"""Refuse names of chaincodes and collections that the ledger does not know.

A chaincode is known when it is defined or has written; so is a collection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from chaindock.errors import NotFound
from chaindock.lifecycle.collections import IMPLICIT
from chaindock.lifecycle.definitions import read_definition
from chaindock.lifecycle.records import DEFINITIONS, NAMESPACE
from chaindock.values import MIB

if TYPE_CHECKING:
    from chaindock.ledger.reader import View

_DEFINED: Final = f"{DEFINITIONS}/metadata/".encode()
_MOST: Final = 10_000
"""Definitions that are read; later ones are left out of lists."""


def defined(view: View) -> list[str]:
    """Return the names of the chaincodes that are defined."""
    rows, _ = view.scan(NAMESPACE, "", (_DEFINED, _DEFINED + b"\xff"), _MOST, MIB)
    return [row.key.removeprefix(_DEFINED).decode() for row in rows]


def require_space(view: View, name: str, collection: str = "") -> None:
    """Raise NotFound unless the chaincode, and its collection unless "", are known."""
    if view.has_written(name, collection):
        return
    definition = None if name == NAMESPACE else read_definition(view, name)
    written = [one for one in view.collections() if one[0] == name]
    known = definition is not None or written or view.has_written(name, "")
    if not known and name != NAMESPACE:
        names = ", ".join(defined(view)) or "none"
        raise NotFound(
            f"there is no chaincode {name!r} on the ledger; it has {names}",
            hint="see which have state: chaindock state ls",
            chaincode=name,
        )
    if not collection or collection.startswith(IMPLICIT):
        return
    configs = definition.collections.config if definition else ()
    collections = [one.static_collection_config.name for one in configs]
    if collection not in collections:
        told = ", ".join(dict.fromkeys([*collections, *(one for _, one in written)]))
        raise NotFound(
            f"{name!r} has no collection {collection!r}; it has {told or 'none'}",
            chaincode=name,
            collection=collection,
        )
