"""Choose whose peers endorse a transaction: as few organisations as its policies need.

Fabric's gateway plans the same way, from what a simulation wrote. A plan also says what
discovery must know to find such organisations: the interest of the simulation.
Source: docs/fabric/policies.md#what-is-checked, docs/fabric/peer.md#interest
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from fabric_protos.common.policies_pb2 import SignaturePolicyEnvelope
from fabric_protos.peer.collection_pb2 import CollectionConfigPackage
from fabric_protos.peer.proposal_response_pb2 import ChaincodeCall, ChaincodeInterest
from google.protobuf.message import DecodeError

from chaindock.aio import LARGE_BYTES, off_loop
from chaindock.endorser.checks import UNREADABLE
from chaindock.endorser.configuration import Configuration
from chaindock.endorser.key_policies import KeyPolicies, SnapshotState, State, parameter
from chaindock.endorser.validator import Validator, definition_of, written
from chaindock.errors import EndorsersMissing, InvalidInput
from chaindock.identity.msp import Identity, SigningIdentity
from chaindock.identity.policies import Evaluator, satisfied
from chaindock.ids import SYSTEM_NAMES
from chaindock.ledger.simulator import Simulator
from chaindock.ledger.transaction import Broken, Space
from chaindock.lifecycle.collections import IMPLICIT, find_collection
from chaindock.lifecycle.definitions import NAMESPACE

_SYSTEM: Final = SYSTEM_NAMES | {NAMESPACE}
_AT_ONCE: Final = 500
"""Keys whose policies are looked up before other work of the event loop has its turn."""
PER_BYTE: Final = 64
"""To compile a byte of a policy takes as long as other work on so many bytes."""


@dataclass
class Plan:
    """Who endorses a transaction, and why."""

    endorsers: list[str]
    """MSP ids of organisations whose peers satisfy every policy together."""
    needs: dict[tuple[str, str], set[bytes | None]] = field(default_factory=dict)
    """Policies of the keys that are written in each namespace and collection; None
    among them stands for the policy of the collection or chaincode."""

    def interest(self, simulator: Simulator) -> ChaincodeInterest:
        """Return the interest of a simulation, whose results are not taken yet."""
        public: dict[str, set[bytes]] = {ns: set() for ns, _ in self.needs}
        general = {space for space, needed in self.needs.items() if None in needed}
        for (ns, _), needed in self.needs.items():
            public[ns] |= {raw for raw in needed if raw is not None}
        read = set(simulator.private_reads)
        general |= {
            (ns, "") for ns in simulator.namespaces() if ns not in public
        } | read
        result = ChaincodeInterest()
        for ns, collection in sorted(general | {(ns, "") for ns in public}):
            if ns in _SYSTEM:
                continue
            call = ChaincodeCall(name=ns)
            if collection:
                call.collection_names.append(collection)
                call.no_private_reads = (ns, collection) not in read
            elif policies := public.get(ns):
                call.key_policies.extend(
                    SignaturePolicyEnvelope.FromString(raw) for raw in sorted(policies)
                )
                call.disregard_namespace_policy = (ns, "") not in general
            elif (ns, "") not in general:
                continue
            result.chaincodes.append(call)
        return result


async def choose(
    configuration: Configuration,
    peers: Mapping[str, SigningIdentity],
    name: str,
    simulator: Simulator,
    *,
    strict: bool = False,
    transient: bool = False,
) -> Plan:
    """Return who endorses: organisations whose peers satisfy every policy together.

    `peers` are members of the channel, the preferred one first; `name` was called in the
    simulation. If nothing satisfies the policies it is the first one alone, and the code
    of the transaction says so, unless `strict`. Then, and with `transient` data, also
    nobody endorses who is not a member of each collection that was read or, with
    `transient` data, used.

    Raises: InvalidInput: the policy of a written key cannot be read. EndorsersMissing: it
        is `strict`, and nothing satisfies the policies, or only with somebody who may not
        see the `transient` data.
    """
    state = SnapshotState(simulator.snapshot())
    plan = Plan([next(iter(peers))])
    rules, met = Validator(configuration), KeyPolicies()
    try:
        counted = KeyPolicies()
        spaces = [
            await _reduced(*one, state, counted, plan) for one in simulator.written()
        ]
        if len(peers) == 1 and not strict:
            return plan
        policies = [
            policy
            for one in written(name, spaces)
            for policy in rules.policies(one, spaces, state, met)
        ]
    except Broken:
        if strict:
            raise _missing() from None
        return plan
    creators = {mspid: peer.creator for mspid, peer in peers.items()}
    members = configuration.msps.valid(creators)
    read = simulator.private_reads if strict or transient else set()
    used = {space for space in plan.needs if space[1]} if transient else read
    trusted = insiders(members, used | read, configuration, state)
    work = partial(fewest, trusted, policies)
    found = await off_loop(met.size * PER_BYTE, work)
    if not found and (strict or transient):
        others = insiders(members, read, configuration, state)
        work = partial(fewest, others, policies)
        open_ = used - read if await off_loop(met.size * PER_BYTE, work) else set()
        if strict or open_:
            raise _missing(*sorted(collection for _, collection in open_))
    plan.endorsers = found or plan.endorsers
    return plan


def _missing(*protected: str) -> EndorsersMissing:
    text = "no peer combination can satisfy the endorsement policy"
    hint = "see the organisations of the node: chaindock org ls"
    if protected:
        text = (
            "the policies need peers of organisations that are no members of the "
            f"collections {', '.join(protected)} and would see the transient data"
        )
        hint = "give the collection a policy that its members alone satisfy; if others "
        hint += "may see the data, name all with --endorsers"
    return EndorsersMissing(text, hint=hint, protected=protected)


def insiders(
    members: dict[str, Identity],
    spaces: Iterable[tuple[str, str]],
    configuration: Configuration,
    state: State,
) -> dict[str, Identity]:
    """Return who is a member of all these collections (chaincode, collection)."""
    for ns, name in spaces:
        explicit = CollectionConfigPackage()
        if not name.startswith(IMPLICIT):
            explicit = definition_of(ns, state).collections
        found = find_collection(explicit, name, configuration.peers)
        if found is not None:
            policy = found.member_orgs_policy.signature_policy
            members = {
                mspid: one for mspid, one in members.items() if satisfied(policy, [one])
            }
    return members


def fewest(members: dict[str, Identity], policies: Sequence[Evaluator]) -> list[str]:
    """Return as few of the MSP ids as satisfy all policies; [] = all do not."""

    def hold(identities: Iterable[Identity]) -> bool:
        found = list(identities)
        return all(policy(found) for policy in policies)

    chosen = dict(members)
    if not hold(chosen.values()):
        return []
    for mspid in reversed(members):
        fewer = {other: one for other, one in chosen.items() if other != mspid}
        if fewer and hold(fewer.values()):
            chosen = fewer
    return list(chosen)


async def _reduced(
    ns: str,
    collection: str,
    keys: Iterable[bytes],
    state: State,
    counted: KeyPolicies,
    plan: Plan,
) -> Space:
    """Return a space with one key for each policy of a key, and one without any.

    Adds the policies to `plan`.

    Raises: InvalidInput: a policy cannot be read. Broken: as `KeyPolicies.is_new`.
    """
    space = Space(ns, collection, [], [], [], [])
    labelled = state.labelled(ns, collection)
    found = plan.needs.setdefault((ns, collection), set())
    read = 0
    for number, key in enumerate(keys, 1):
        raw = parameter(state, space, key) if labelled else None
        if raw not in found:
            try:
                SignaturePolicyEnvelope.FromString(raw or b"")
            except DecodeError:
                raise InvalidInput(
                    f"error unmarshalling SignaturePolicyEnvelope: {UNREADABLE}",
                    hint="the validation parameter of a written key is no policy",
                ) from None
            counted.is_new(raw or b"")
            found.add(raw)
            space.writes.append((key, None))
        if not labelled:
            break
        read += len(raw or b"")
        if not number % _AT_ONCE or read > LARGE_BYTES:
            read = 0
            await asyncio.sleep(0)
    return space
