"""Which organisations can endorse together what an interest says.

An organisation of the node has one peer, so a layout is a set of organisations.
Source: docs/fabric/peer.md#discovery
"""

from __future__ import annotations

from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Final

from chaindock.aio import LARGE_BYTES, off_loop
from chaindock.endorser.key_policies import KeyPolicies, key_policy
from chaindock.endorser.validator import SnapshotState, Validator
from chaindock.errors import ChaindockError, InvalidInput, NotFound
from chaindock.identity.policies import satisfied
from chaindock.ids import TxId
from chaindock.ledger.transaction import Broken, Space
from chaindock.lifecycle.collections import find_collection
from chaindock.lifecycle.definitions import defined_names, read_definition

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fabric_protos.peer.proposal_response_pb2 import (
        ChaincodeCall,
        ChaincodeInterest,
    )

    from chaindock.endorser.channel import Channel
    from chaindock.identity.msp import Identity
    from chaindock.identity.policies import Evaluator
    from chaindock.ledger.simulator import Simulator

_MOST_ORGANIZATIONS: Final = 10
"""Above, only one layout is looked for, not all."""
_MOST_CALLS: Final = 100
"""Chaincodes in an interest; a larger one is refused."""


class _General(SnapshotState):
    """The state as if no key had a policy of its own."""

    def labelled(self, _ns: str, _collection: str) -> bool:
        return False


class Candidates:
    """The peers of a channel, as of now."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        msps = channel.members.configuration.msps
        self.identities: dict[str, Identity] = {
            mspid: msps.identify(peer.creator)
            for mspid, peer in channel.members.peers.items()
        }

    def chaincodes(self) -> Iterator[tuple[str, str]]:
        """Yield name and version of what the node can run."""
        definitions = self._channel.endorser.definitions
        with self._channel.ledger.new_simulator(TxId("")) as simulator:
            for name in defined_names(simulator):
                try:
                    found = definitions.get(simulator, name)
                except ChaindockError:
                    continue
                yield name, found.version

    def eligible(self, interest: ChaincodeInterest) -> dict[str, Identity]:
        """Return the peers that have what an interest reads, by MSP id.

        Raises: NotFound: no such chaincode, or it is not installed. InvalidInput.
        """
        if len(interest.chaincodes) > _MOST_CALLS:
            raise InvalidInput(f"an interest has at most {_MOST_CALLS} chaincodes")
        with self._channel.ledger.new_simulator(TxId("")) as simulator:
            left = self.identities
            for call in interest.chaincodes:
                left = self._left(left, call, simulator)
        return left

    def _left(
        self, former: dict[str, Identity], call: ChaincodeCall, simulator: Simulator
    ) -> dict[str, Identity]:
        definition = read_definition(simulator, call.name)
        if definition is None:
            raise NotFound(
                f"No metadata was found for chaincode {call.name} in channel "
                f"{self._channel.id}"
            )
        self._channel.endorser.definitions.get(simulator, call.name)
        if call.no_private_reads:
            return former
        found = dict(former)
        for name in call.collection_names:
            config = find_collection(definition.collections, name, self.identities)
            if config is None:
                raise NotFound(f"collection {name} of {call.name} was not found")
            members = config.member_orgs_policy.signature_policy
            found = {m: one for m, one in found.items() if satisfied(members, [one])}
        return found

    def policies(self, interest: ChaincodeInterest) -> list[Evaluator]:
        """Return what endorsers must satisfy together.

        Raises: NotFound: a chaincode or collection is not defined. InvalidInput.
        """
        rules, met = Validator(self._channel.members.configuration), KeyPolicies()
        found: list[Evaluator] = []
        with self._channel.ledger.new_simulator(TxId("")) as simulator:
            state = _General(simulator.snapshot())
            try:
                for call in interest.chaincodes:
                    for policy in call.key_policies:
                        raw = policy.SerializeToString(deterministic=True)
                        if raw and met.is_new(raw):
                            found.append(key_policy(raw))
                    if spaces := _spaces(call):
                        found += rules.policies(call.name, spaces, state, KeyPolicies())
            except Broken as error:
                raise NotFound("policy not found") from error
        return found


def _spaces(call: ChaincodeCall) -> list[Space]:
    """Return writes that need the policies of a call."""
    names = list(call.collection_names)
    if not (call.disregard_namespace_policy or (call.no_public_writes and names)):
        names.insert(0, "")
    return [Space(call.name, name, [], [], [(b"", None)], []) for name in names]


async def endorsing(
    candidates: Candidates, interest: ChaincodeInterest
) -> list[Sequence[str]]:
    """Return the layouts: sets of MSP ids whose peers can endorse an interest together.

    No layout contains another one.

    Raises: NotFound: there is none, or no such chaincode. InvalidInput.
    """
    peers, policies = candidates.eligible(interest), candidates.policies(interest)
    work = partial(_layouts, peers, policies)
    few = len(peers) < 4 and len(policies) < 10
    found = await off_loop(0 if few else LARGE_BYTES + 1, work)
    if not found:
        raise NotFound("no peer combination can satisfy the endorsement policy")
    return found


def _layouts(
    peers: dict[str, Identity], policies: Sequence[Evaluator]
) -> list[Sequence[str]]:
    def hold(mspids: Sequence[str]) -> bool:
        identities = [peers[mspid] for mspid in mspids]
        return all(policy(identities) for policy in policies)

    if len(peers) > _MOST_ORGANIZATIONS:
        chosen = list(peers)
        if not hold(chosen):
            return []
        for mspid in reversed(list(peers)):
            if hold(fewer := [one for one in chosen if one != mspid]) and fewer:
                chosen = fewer
        return [chosen]
    found: list[Sequence[str]] = []
    for size in range(1, len(peers) + 1):
        for mspids in combinations(peers, size):
            if not any(set(one) <= set(mspids) for one in found) and hold(mspids):
                found.append(mspids)
    return found
