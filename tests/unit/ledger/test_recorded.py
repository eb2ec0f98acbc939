"""The blocks and simulations of a real Fabric peer, run again by the ledger."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from fabric_protos.common import common_pb2

from chaindock.ids import TxId
from support.ledgers.recorded import (
    blocks,
    decode,
    ledger_of,
    recordings,
    simulate,
    transactions,
)

if TYPE_CHECKING:
    from pathlib import Path

# Refused above the ledger: by the shim, by the rules of a collection, by a policy.
_REFUSED = {
    "pvt_empty_key",
    "pvt_unknown_collection",
    "pvt_unknown_implicit",
    "pvt_no_collections_defined",
    "pvt_colC_client_denied",
    "pvt_colC_client_read_again",
    "vp_write_under_garbage",
}
_PREFIX = re.compile(r"[A-Z_]+ failed: transaction ID: [0-9a-f]{64}: ")


def simulated() -> list[Any]:
    """Return the recordings that the ledger itself can repeat."""
    found = recordings()["simulations"]
    return [one for one in found if "args" in one and one["name"] not in _REFUSED]


@pytest.mark.statement(23, 39, 40, of="client")
async def test_codes_hashes_simulations_and_private_data_are_those_of_the_peer(
    tmp_path: Path,
) -> None:
    pending = simulated()
    delivered = recordings()["private"]
    async with ledger_of(tmp_path) as ledger:
        for number in range(1, len(blocks())):
            txs = transactions(number)
            for position, data in delivered.get(str(number), {}).items():
                await ledger.keep_private(txs[int(position)].tx_id, decode(data))
            for one in [one for one in pending if one["height"] == number]:
                pending.remove(one)
                answers, public, private = simulate(ledger, one)
                expected = _PREFIX.sub("", decode(one["payload"]).decode())
                assert answers == json.loads(expected), one["name"]
                assert public == decode(one["results"]), one["name"]
                # What was delivered of a purge lacks the key.
                if "pvt_rwset_bytes" in one and "purge" not in one["name"]:
                    assert private == decode(one["pvt_rwset_bytes"]), one["name"]
                await ledger.keep_private(TxId(one["tx_id"]), private)
            recorded = common_pb2.Block.FromString(blocks()[number])
            block = await ledger.commit(txs)
            ours = common_pb2.Block.FromString(ledger.get_block(number))
            assert block.codes == recorded.metadata.metadata[2], number
            assert ours.header == recorded.header
            assert ours.metadata.metadata[4] == recorded.metadata.metadata[4], number
    assert pending == []
