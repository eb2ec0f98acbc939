"""Names of organisations and policies that a user gives and the channel does not have."""

from typing import Any

import pytest

from chaindock.errors import AlreadyExists, NotFound
from chaindock.lifecycle.terms import application_policy, unsatisfiable


@pytest.fixture
def org(organizations: Any) -> Any:
    return organizations.first


@pytest.fixture
async def members(node: Any, members: Any) -> Any:
    await node.define()
    await members.add("Org2", node.orderer)
    return members


async def test_an_organisation_may_be_named_without_msp_at_its_end(
    members: Any, node: Any
) -> None:
    for name in ("Org2MSP", "Org2", "org2"):
        assert members.get(name).mspid == "Org2MSP"
    both = ["Org1", "Org2"]
    await node.caller.invoke("basic", [b"get", b"k"], signer=node.user, endorsers=both)


async def test_an_unknown_organisation_is_answered_with_the_next_step(
    members: Any, node: Any
) -> None:
    with pytest.raises(NotFound) as found:
        members.get("Nix")
    assert "chaindock org add NAME" in str(found.value.hint)
    with pytest.raises(NotFound) as found:
        await node.caller.invoke("basic", [b"get"], signer=node.user, endorsers=["Nix"])
    assert "chaindock org ls" in str(found.value.hint)
    with pytest.raises(AlreadyExists) as known:
        await members.add("Org2", node.orderer)
    assert "chaindock org ls" in str(known.value.hint)


@pytest.mark.parametrize(
    ("signature", "path", "told"),
    [
        (
            "AND('Org1MSP.peer', 'Org3MSP.peer')",
            "",
            "Org3MSP is no member of the channel: chaindock org add Org3 --channel trades",
        ),
        ("OutOf(2, 'Org1MSP.peer', 'A.peer', 'B.peer')", "", "A, B are no members"),
        ("OR('Org1MSP.peer', 'Org3MSP.peer')", "", None),
        ("AND('Org1MSP.peer', 'Org2MSP.peer')", "", None),
        (
            "",
            "/Channel/Application/Nix",
            "the channel has no policy /Channel/Application/Nix",
        ),
        ("", "/Channel/Application/Endorsement", None),
    ],
)
async def test_a_policy_that_nobody_can_satisfy_is_found(
    members: Any, node: Any, signature: str, path: str, told: str | None
) -> None:
    policy = application_policy(signature, path, "the policy")
    assert policy is not None
    now = members.configuration
    found = unsatisfiable(
        policy.SerializeToString(), "trades", now.peers, now.policies.has
    )
    assert (found is None) == (told is None)
    assert (told or "") in (found or "")
