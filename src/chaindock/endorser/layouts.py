"""Which organisations can endorse together what an interest says.

An organisation of the node has one peer, so a layout is a set of organisations.
Source: docs/fabric/peer.md#discovery
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import combinations
from typing import Final

from fabric_protos.peer.proposal_response_pb2 import ChaincodeInterest

from chaindock.aio import LARGE_BYTES, off_loop
from chaindock.endorser.channel import Channel
from chaindock.endorser.key_policies import KeyPolicies, SnapshotState, key_policy
from chaindock.endorser.plan import PER_BYTE, fewest, insiders
from chaindock.endorser.validator import Validator
from chaindock.errors import ChaindockError, InvalidInput, NotFound
from chaindock.identity.msp import Identity
from chaindock.identity.policies import Evaluator
from chaindock.ids import TxId
from chaindock.ledger.simulator import Simulator
from chaindock.ledger.transaction import Broken, Space
from chaindock.lifecycle.definitions import defined_names

_FEW: Final = 4
"""Organisations up to which all their sets are few."""
_MOST_ORGANIZATIONS: Final = 10
"""Above, only one layout is looked for, not all."""
_MOST_CALLS: Final = 20
"""Chaincodes in an interest; a larger one is refused."""


class _General(SnapshotState):
    """The state as if no key had a policy of its own."""

    def labelled(self, _ns: str, _collection: str) -> bool:
        return False


def runnable(channel: Channel) -> Iterator[tuple[str, str]]:
    """Yield name and version of each chaincode that the node runs on a channel."""
    with channel.ledger.new_simulator(TxId("")) as simulator:
        for name in defined_names(simulator):
            try:
                yield name, channel.endorser.definitions.at(simulator, name).version
            except ChaindockError:
                continue


async def endorsing(
    channel: Channel, interest: ChaincodeInterest
) -> list[Sequence[str]]:
    """Return the layouts: sets of MSP ids whose peers can endorse an interest together.

    No layout contains another one.

    Raises: NotFound: there is none, or no such chaincode. InvalidInput: too large.
    """
    with channel.ledger.new_simulator(TxId("")) as simulator:
        peers = _eligible(channel, interest, simulator)
        policies, size = _policies(channel, interest, simulator)
    if len(peers) > _FEW:
        size = LARGE_BYTES + 1
    found = await off_loop(size, partial(_layouts, peers, policies))
    if not found:
        raise NotFound("no peer combination can satisfy the endorsement policy")
    return found


def eligible(channel: Channel, interest: ChaincodeInterest) -> dict[str, Identity]:
    """Return the peers that have what an interest reads, by MSP id.

    Raises: NotFound: no such chaincode, or it is not installed. InvalidInput: too large.
    """
    with channel.ledger.new_simulator(TxId("")) as simulator:
        return _eligible(channel, interest, simulator)


def _eligible(
    channel: Channel, interest: ChaincodeInterest, simulator: Simulator
) -> dict[str, Identity]:
    if len(interest.chaincodes) > _MOST_CALLS:
        raise InvalidInput(f"an interest has at most {_MOST_CALLS} chaincodes")
    configuration, read = channel.members.configuration, set()
    for call in interest.chaincodes:
        channel.endorser.definitions.at(simulator, call.name)
        if not call.no_private_reads:
            read |= {(call.name, name) for name in call.collection_names}
    peers = channel.members.peers.items()
    members = configuration.msps.valid({mspid: one.creator for mspid, one in peers})
    state = SnapshotState(simulator.snapshot())
    return insiders(members, read, configuration, state)


def _policies(
    channel: Channel, interest: ChaincodeInterest, simulator: Simulator
) -> tuple[list[Evaluator], int]:
    """Return what endorsers must satisfy together, and its bytes. Raises: NotFound."""
    rules, met = Validator(channel.members.configuration), KeyPolicies()
    state = _General(simulator.snapshot())
    found: list[Evaluator] = []
    try:
        for call in interest.chaincodes:
            for policy in call.key_policies:
                raw = policy.SerializeToString(deterministic=True)
                if raw and met.is_new(raw):
                    found.append(key_policy(raw))
            names = list(call.collection_names)
            if not (
                call.disregard_namespace_policy or (call.no_public_writes and names)
            ):
                names.insert(0, "")
            # A write in each space whose policy counts.
            spaces = [Space(call.name, one, [], [], [(b"", None)], []) for one in names]
            if spaces:
                found += rules.policies(call.name, spaces, state, KeyPolicies())
    except Broken as error:
        raise NotFound("policy not found") from error
    return found, met.size * PER_BYTE


def _layouts(
    peers: dict[str, Identity], policies: Sequence[Evaluator]
) -> list[Sequence[str]]:
    if len(peers) > _MOST_ORGANIZATIONS:
        one = fewest(peers, policies)
        return [one] if one else []
    found: list[Sequence[str]] = []
    for size in range(1, len(peers) + 1):
        for mspids in combinations(peers, size):
            if not any(set(one) <= set(mspids) for one in found):
                identities = [peers[mspid] for mspid in mspids]
                if all(policy(identities) for policy in policies):
                    found.append(mspids)
    return found
