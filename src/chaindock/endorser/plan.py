"""Choose whose peers endorse a transaction: as few organisations as its policies need.

Fabric's gateway plans the same way, from what a simulation wrote.
Source: docs/fabric/policies.md#what-is-checked
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fabric_protos.peer import proposal_pb2

from chaindock.endorser.validator import Validator, written
from chaindock.ledger.transaction import Broken, ParsedTransaction, read_spaces

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from chaindock.endorser.configuration import Configuration
    from chaindock.endorser.validator import State
    from chaindock.identity.msp import Identity, SigningIdentity
    from chaindock.ledger.transaction import Space

_KEYS: Final = 1000
"""Keys of a namespace or collection whose policies are looked up to choose endorsers.

A policy of a later key counts when the transaction is committed, as all do.
"""


def spaces_of(results: bytes) -> list[Space]:
    """Return what a simulation wrote; only the first keys of each space."""
    tx = ParsedTransaction(b"")
    read_spaces(tx, proposal_pb2.ChaincodeAction(results=results))
    for space in tx.spaces:
        del space.writes[_KEYS:], space.metadata[_KEYS:]
    return tx.spaces


def choose(
    configuration: Configuration,
    peers: Mapping[str, SigningIdentity],
    name: str,
    spaces: Sequence[Space],
    state: State,
) -> list[str]:
    """Return the MSP ids of organisations whose peers satisfy every policy together.

    `peers` are members of the channel, the preferred one first; `name` was called and
    `spaces` were written by a simulation that saw `state`. If nothing satisfies the
    policies it is the first one alone, and the code of the transaction says so.
    """
    chosen: dict[str, Identity] = {
        mspid: configuration.msps.identify(peer.creator)
        for mspid, peer in peers.items()
    }
    first = next(iter(peers))
    rules = Validator(configuration)
    try:
        policies = [
            policy
            for one in written(name, spaces)
            for policy in rules.policies(one, spaces, state)
        ]
    except Broken:
        return [first]

    def hold(identities: Sequence[Identity]) -> bool:
        return all(policy(identities) for policy in policies)

    if not hold(list(chosen.values())):
        return [first]
    for mspid in reversed(list(chosen)):
        fewer = {other: one for other, one in chosen.items() if other != mspid}
        if fewer and hold(list(fewer.values())):
            chosen = fewer
    return list(chosen)
