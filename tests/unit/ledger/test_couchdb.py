"""Keys and values that a peer with CouchDB refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from chaindock.errors import InvalidInput, ReadOnlyViolation
from chaindock.ids import TxId
from support.ledgers.ledger import ledger_at

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from chaindock.ledger.simulator import Simulator

EMPTY = "invalid key. Empty string is not supported as a key by couchdb"
UNDERSCORE = 'invalid key [_k], cannot begin with "_"'


@pytest.fixture
async def simulator(tmp_path: Path) -> AsyncIterator[Simulator]:
    async with ledger_at(tmp_path) as ledger:
        with ledger.new_simulator(TxId("t")) as simulator:
            yield simulator


@pytest.mark.parametrize(("key", "text"), [("", EMPTY), ("_k", UNDERSCORE)])
async def test_no_key_is_empty_or_begins_with_an_underscore(
    simulator: Simulator, key: str, text: str
) -> None:
    entries = {"VALIDATION_PARAMETER": b"p"}
    for refused in (
        lambda: simulator.get_state("cc", key),
        lambda: simulator.get_metadata("cc", key),
        lambda: simulator.get_private("cc", "col", key),
        lambda: simulator.put_state("cc", key, b"v"),
        lambda: simulator.put_state("cc", key, b""),
        lambda: simulator.put_private("cc", "col", key, b"v"),
        lambda: simulator.purge_private("cc", "col", key),
        lambda: simulator.put_metadata("cc", key, entries),
    ):
        with pytest.raises(InvalidInput) as told:
            refused()
        assert told.value.message == text
        assert "strictFabric: false" in (told.value.hint or "")
    # A peer looks for a hash under another name, and none of them is in the results.
    assert simulator.get_private_hash("cc", "col", "k") is None
    assert simulator.namespaces() == {"cc"}
    assert b"_k" not in simulator.results()


@pytest.mark.parametrize("field", ["_id", "_type", "~version"])
async def test_no_field_of_an_object_is_reserved(
    simulator: Simulator, field: str
) -> None:
    value = b' {"a": {"_id": 1}, "%s": 2}' % field.encode()
    expected = f"field [{field}] is not valid for the CouchDB state database"
    with pytest.raises(InvalidInput) as told:
        simulator.put_state("cc", "k", value)
    assert told.value.message == expected
    with pytest.raises(InvalidInput) as told:
        simulator.put_private("cc", "col", "k", value)
    assert told.value.message == expected


@pytest.mark.parametrize("name", ["\\u005Fid", "\\u007eversion"])
async def test_an_escape_hides_no_reserved_field(
    simulator: Simulator, name: str
) -> None:
    with pytest.raises(InvalidInput, match="is not valid for the CouchDB"):
        simulator.put_state("cc", "k", b'{"%s": 1}' % name.encode())


async def test_everything_else_is_written(simulator: Simulator) -> None:
    for value in (
        b"",
        b'{"a_": {"_id": 1, "~version": 2}}',
        b'["_id"]',
        b'"_id"',
        b'{"_id": 1',
        b'{"_id": 1}, and text',
        b'{"_id":"\xff',
        b"\x00_",
        b'{"_id":' + b"[" * 30_000,
    ):
        simulator.put_state("cc", "k_", value)
    assert b"k_" in simulator.results()


async def test_a_refused_write_counts_as_one(simulator: Simulator) -> None:
    with pytest.raises(InvalidInput):
        simulator.put_state("cc", "_k", b"v")
    with pytest.raises(ReadOnlyViolation):
        simulator.open_range("cc", "", "", page_size=1)


async def test_with_leveldb_any_key_and_field_is_taken(tmp_path: Path) -> None:
    async with ledger_at(tmp_path, strict=False) as ledger:
        with ledger.new_simulator(TxId("t")) as simulator:
            simulator.put_state("cc", "_k", b'{"_id": 1}')
            assert simulator.get_state("cc", "") is None
