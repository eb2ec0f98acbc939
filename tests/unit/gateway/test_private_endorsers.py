"""Which peers evaluate and endorse what uses private data, by the gateway's rules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from support.gateways.node import endorse_request, evaluate_request

if TYPE_CHECKING:
    from support.gateways.two import Gateways

_EITHER = "OR('Org1MSP.peer','Org2MSP.peer')"


async def test_who_sees_transient_data_must_be_a_member_of_the_collections(
    two: Gateways,
) -> None:
    both = "AND('Org1MSP.peer','Org2MSP.peer')"
    mine, ours = "OR('Org1MSP.member')", "OR('Org1MSP.member','Org2MSP.member')"
    await two.define(both, mine=mine, ours=ours)
    secret: dict[str, Any] = {"transient": {"a": b"b"}}
    assert await two.endorse(b"hide", b"mine") == ["Org1MSP", "Org2MSP"]
    assert await two.endorse(b"hide", b"ours", **secret) == ["Org1MSP", "Org2MSP"]
    ended = await two.endorse(b"hide", b"mine", **secret)
    assert ended.code == "FAILED_PRECONDITION"
    assert ended.text == (
        "requires endorsement from organisation(s) that are not in the distribution "
        "policy of the private data collection(s): [mine]; retry specifying trusted "
        "endorsing organizations to protect transient data"
    )
    named = {"orgs": ("Org1MSP", "Org2MSP"), **secret}
    assert await two.endorse(b"hide", b"mine", **named) == ["Org1MSP", "Org2MSP"]


async def hidden(two: Gateways, policy: str) -> None:
    """Define collection `mine` of the first organisation, and commit a value there."""
    await two.define(policy, mine="OR('Org1MSP.member')")
    caller, signer = two.world.channel.caller, two.user
    named = ("Org1MSP", "Org2MSP")
    answered = await caller.invoke(
        "basic", [b"hide", b"mine"], signer=signer, endorsers=named
    )
    assert answered.code == 0


async def test_private_values_are_evaluated_at_the_peer_that_has_them(
    two: Gateways,
) -> None:
    await hidden(two, _EITHER)
    request = evaluate_request(two.user, "basic", b"reveal", b"mine")
    assert (await two.first.call("Evaluate", request)).result.payload == b"secret"
    ended = await two.second.call("Evaluate", request)
    assert (ended.code, [one[1] for one in ended.details]) == ("UNKNOWN", ["Org2MSP"])
    assert "private data matching public hash version is not available" in ended.text
    request.target_organizations.append("Org1MSP")
    assert (await two.second.call("Evaluate", request)).result.payload == b"secret"


async def test_members_alone_endorse_what_was_read_of_a_collection(
    two: Gateways,
) -> None:
    await hidden(two, _EITHER)
    reveal = b"reveal", b"mine"
    assert await two.endorse(*reveal) == ["Org1MSP"]
    request = endorse_request(two.user, "basic", *reveal)
    ended = await two.second.call("Endorse", request)
    assert (ended.code, ended.details[0][1]) == ("ABORTED", "Org2MSP")
    assert "failed to endorse transaction" in ended.text
    ended = await two.endorse(*reveal, orgs=("Org1MSP", "Org2MSP"))
    assert (ended.code, [one[1] for one in ended.details]) == ("ABORTED", ["Org2MSP"])
    assert "failed to collect enough transaction endorsements" in ended.text


async def test_a_policy_that_needs_others_than_members_is_told_to_readers(
    two: Gateways,
) -> None:
    await hidden(two, "AND('Org1MSP.peer','Org2MSP.peer')")
    ended = await two.endorse(b"reveal", b"mine")
    assert ended.code == "FAILED_PRECONDITION"
    assert "no peer combination can satisfy the endorsement policy" in ended.text
