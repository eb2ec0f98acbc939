"""Choose whose peers endorse a transaction: as few organisations as its policies need.

Fabric's gateway plans the same way, from what a simulation wrote.
Source: docs/fabric/policies.md#what-is-checked
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from fabric_protos.common.policies_pb2 import SignaturePolicyEnvelope
from google.protobuf.message import DecodeError

from chaindock.endorser.key_policies import parameter
from chaindock.endorser.validator import SnapshotState, Validator, written
from chaindock.errors import InvalidInput
from chaindock.ledger.transaction import Broken, Space

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from chaindock.endorser.configuration import Configuration
    from chaindock.endorser.validator import State
    from chaindock.identity.msp import Identity, SigningIdentity
    from chaindock.ledger.simulator import Simulator

_AT_ONCE: Final = 500
"""Keys whose policies are looked up before other work of the event loop has its turn."""


async def choose(
    configuration: Configuration,
    peers: Mapping[str, SigningIdentity],
    name: str,
    simulator: Simulator,
) -> list[str]:
    """Return the MSP ids of organisations whose peers satisfy every policy together.

    `peers` are members of the channel, the preferred one first; `name` was called in the
    simulation. If nothing satisfies the policies it is the first one alone, and the code
    of the transaction says so.

    Raises: InvalidInput: the policy of a written key cannot be read.
    """
    state = SnapshotState(simulator.snapshot())
    spaces = [await _reduced(*one, state) for one in simulator.written()]
    first = next(iter(peers))
    if len(peers) == 1:
        return [first]
    chosen: dict[str, Identity] = {
        mspid: configuration.msps.identify(peer.creator)
        for mspid, peer in peers.items()
    }
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


async def _reduced(
    ns: str, collection: str, keys: Iterable[bytes], state: State
) -> Space:
    """Return a space with one key for each policy of a key, and one without any."""
    space = Space(ns, collection, [], [], [], [])
    labelled = state.labelled(ns, collection)
    found: set[bytes] = set()
    for number, key in enumerate(keys, 1):
        raw = parameter(state, space, key) if labelled else b""
        if raw not in found:
            _require_policy(raw)
            found.add(raw)
            space.writes.append((key, None))
        if not labelled:
            break
        if not number % _AT_ONCE:
            await asyncio.sleep(0)
    return space


def _require_policy(raw: bytes) -> None:
    try:
        SignaturePolicyEnvelope.FromString(raw)
    except DecodeError:
        raise InvalidInput(
            "error unmarshalling SignaturePolicyEnvelope: proto: cannot parse invalid "
            "wire-format data",
            hint="a key that is written has a validation parameter that is no policy",
        ) from None
