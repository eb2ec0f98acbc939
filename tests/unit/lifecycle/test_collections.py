"""The collections file, the rules of a commit, and who may use a collection."""

import base64
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fabric_protos.common import policies_pb2
from fabric_protos.msp.msp_principal_pb2 import MSPPrincipal
from fabric_protos.peer import collection_pb2
from fabric_protos.peer.lifecycle import lifecycle_pb2

from chaindock.errors import Denied, InvalidInput, NotFound
from chaindock.identity.msp import Role
from chaindock.identity.policies import parse_policy
from chaindock.lifecycle.collections import (
    Collections,
    check_collections,
    find_collection,
)
from chaindock.lifecycle.terms import application_policy, parse_collections

FABRIC = Path(__file__).parents[2] / "fixtures" / "fabric31"
RECORDED = (FABRIC / "collections.json").read_text()
ORGS = ("Org1MSP",)


def client(role: Any = Role.CLIENT, mspid: str = "Org1MSP") -> Any:
    return SimpleNamespace(mspid=mspid, role=role)


def one(**keys: Any) -> str:
    return json.dumps([{"name": "c", "policy": "OR('Org1MSP.member')", **keys}])


def refused(text: str, **keys: Any) -> Any:
    with pytest.raises(InvalidInput) as caught:
        parse_collections(text, "'c.json'", **keys)
    return caught.value


# --- the file


def test_the_file_gives_the_bytes_that_the_peer_cli_sent():
    calls = json.loads((FABRIC / "lifecycle_calls.json").read_text())
    sent = next(call for call in calls if call["name"] == "approveformyorg vec")
    args = lifecycle_pb2.ApproveChaincodeDefinitionForMyOrgArgs.FromString(
        base64.b64decode(sent["args"])
    )
    ours = parse_collections(RECORDED)
    assert ours.SerializeToString() == args.collections.SerializeToString()


def test_what_is_left_out_has_the_peers_defaults():
    config = parse_collections(one()).config[0].static_collection_config
    assert (config.required_peer_count, config.maximum_peer_count) == (0, 1)
    assert config.block_to_live == 0
    assert not config.member_only_read
    assert not config.HasField("endorsement_policy")
    assert parse_collections(one(maxPeerCount=0, blockToLive=None)).config[
        0
    ].static_collection_config == collection_pb2.StaticCollectionConfig(
        name="c", member_orgs_policy=config.member_orgs_policy
    )


def test_keys_match_in_any_case_and_unknown_ones_are_told():
    told: list[str] = []
    text = one(MEMBERONLYREAD=True, memberOnlyReed=True)
    package = parse_collections(text, "'c.json'", told.append)
    assert package.config[0].static_collection_config.member_only_read
    assert told == [
        "'c.json', collection 'c': key 'memberOnlyReed' is unknown and has no effect"
    ]


def test_an_endorsement_policy_is_a_text_or_a_reference():
    text = one(endorsementPolicy={"signaturePolicy": "OR('Org1MSP.peer')"})
    config = parse_collections(text).config[0].static_collection_config
    assert config.endorsement_policy.signature_policy == parse_policy(
        "OR('Org1MSP.peer')"
    )
    text = one(endorsementPolicy={"channelConfigPolicy": "/Channel/X"})
    config = parse_collections(text).config[0].static_collection_config
    assert config.endorsement_policy.channel_config_policy_reference == "/Channel/X"
    text = one(endorsementPolicy={})
    config = parse_collections(text).config[0].static_collection_config
    assert not config.HasField("endorsement_policy")
    assert application_policy("", "", "here") is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "'c.json' is not JSON: "),
        ("[" * 100_000, "'c.json' is not JSON: "),
        ("{}", "'c.json': expected an array of collections, found {}"),
        ("[1]", "'c.json', item 1: expected an object, found 1"),
        (
            one(maxPeerCount="3"),
            "'c.json', collection 'c': key 'maxPeerCount': expected `int`, found `str`",
        ),
        (one(maxPeerCount=2**31), "key 'maxPeerCount': expected `int` <= 2147483647"),
        (one(blockToLive=-1), "key 'blockToLive': expected `int` >= 0"),
        (one(endorsementPolicy="x"), "key 'endorsementPolicy': expected `object"),
        (one(policy="nonsense"), "'c.json', collection 'c', key 'policy': "),
        (one(policy=""), "'c.json', collection 'c', key 'policy': "),
        (
            one(endorsementPolicy={"signaturePolicy": "x"}),
            "'c.json', collection 'c', key 'endorsementPolicy': ",
        ),
        (
            one(endorsementPolicy={"signaturePolicy": "x", "channelConfigPolicy": "y"}),
            "expected a signature policy or the name of a channel policy, found both",
        ),
    ],
)
def test_an_error_names_file_collection_and_key(text, said):
    assert said in refused(text).message


# --- the rules


def package(*configs: Any) -> Any:
    found = collection_pb2.CollectionConfigPackage()
    for config in configs:
        found.config.add().static_collection_config.CopyFrom(config)
    return found


def static(name: str = "c", policy: str = "OR('Org1MSP.member')", **fields: Any) -> Any:
    fields = {"maximum_peer_count": 1, **fields}
    config = collection_pb2.StaticCollectionConfig(name=name, **fields)
    config.member_orgs_policy.signature_policy.CopyFrom(parse_policy(policy))
    return config


def with_principal(kind: Any) -> Any:
    config = static()
    principal = config.member_orgs_policy.signature_policy.identities[0]
    principal.principal_classification = kind
    return config


def test_the_recorded_collections_pass():
    check_collections(parse_collections(RECORDED), ORGS)
    check_collections(package(), ORGS)


NO_POLICY = collection_pb2.StaticCollectionConfig(name="c")
EMPTY_POLICY = collection_pb2.StaticCollectionConfig(
    name="c", member_orgs_policy=collection_pb2.CollectionPolicyConfig()
)
BAD_INDEX = static()
BAD_INDEX.member_orgs_policy.signature_policy.rule.n_out_of.rules[0].signed_by = 7


@pytest.mark.parametrize(
    ("configs", "text"),
    [
        (
            [static("_x")],
            (
                "invalid collection name '_x'. Names can only consist of alphanumerics, "
                "'_', and '-' and cannot begin with '_'"
            ),
        ),
        ([static("x\n")], "invalid collection name 'x\n'. Names"),
        ([static(""), static("")], "invalid collection name ''. Names"),
        (
            [static("colX"), static("colX")],
            "collection-name: colX -- found duplicate in collection configuration",
        ),
        (
            [static(required_peer_count=2)],
            (
                "collection-name: c -- maximum peer count (1) cannot be less than the "
                "required peer count (2)"
            ),
        ),
        (
            [static(required_peer_count=-2)],
            "collection-name: c -- requiredPeerCount (-2) cannot be less than zero",
        ),
        ([NO_POLICY], "collection member policy is not set for collection 'c'"),
        ([EMPTY_POLICY], "collection member org policy is empty for collection 'c'"),
        ([BAD_INDEX], "invalid member org policy for collection 'c': identity index "),
        (
            [static(policy="AND('Org1MSP.member', 'Org1MSP.admin')")],
            (
                "collection-name: c -- error in member org policy: signature policy is not "
                "an OR concatenation, NOutOf 2"
            ),
        ),
        (
            [static(policy="OR('Org1MSP.peer', AND('Org1MSP.peer', 'Org1MSP.admin'))")],
            "not an OR concatenation, NOutOf 2",
        ),
        (
            [static("colX", policy="OR('Org2MSP.member')")],
            (
                "collection-name: colX -- collection member 'Org2MSP' is not part of the "
                "channel"
            ),
        ),
        (
            [with_principal(MSPPrincipal.ANONYMITY)],
            "collection-name: c -- principal type ANONYMITY is not supported",
        ),
    ],
)
def test_a_package_that_breaks_a_rule_is_refused_with_fabrics_text(configs, text):
    with pytest.raises(InvalidInput) as caught:
        check_collections(package(*configs), ORGS)
    assert caught.value.message.startswith(text) or text in caught.value.message


def test_a_configuration_of_another_kind_is_refused():
    found = collection_pb2.CollectionConfigPackage()
    found.config.add()
    with pytest.raises(InvalidInput, match="unexpected payload type"):
        check_collections(found, ORGS)


def test_an_upgrade_keeps_collections_and_their_time_to_live():
    former = package(static("a", block_to_live=3), static("b"))
    more = package(static("b"), static("a", block_to_live=3), static("new"))
    check_collections(more, ORGS, former)
    changed = package(static("a", block_to_live=4), static("b"))
    for proposed, text in (
        (
            package(),
            "the proposed collection config does not contain previously defined",
        ),
        (
            package(static("a", block_to_live=3)),
            "existing collection [b] missing in the proposed collection configuration",
        ),
        (
            changed,
            "the BlockToLive in an existing collection [a] modified. Existing value [3]",
        ),
    ):
        with pytest.raises(InvalidInput) as caught:
            check_collections(proposed, ORGS, former)
        assert caught.value.message.startswith(text)
        assert (": a, b" in (caught.value.hint or "")) is ("BlockToLive" not in text)


# --- use


def use(creator: Any, *at: str) -> Any:
    """Return what a call at the peer of an organisation may do, the first one by itself."""
    found = parse_collections(RECORDED)
    return Collections("mychannel", "gv", found, at or ORGS, creator, (at or ORGS)[0])


@pytest.mark.parametrize("write", [False, True])
@pytest.mark.statement(25, 26, of="client")
def test_a_collection_of_members_admits_members_alone(write):
    access = "write" if write else "read"
    use(client()).require("colA", write=write)
    use(client(mspid="Org2MSP")).require("colA", write=write)
    use(client()).require("colB", write=write)
    use(client(Role.ADMIN)).require("colC", write=write)
    for creator, collection in ((client(mspid="Org2MSP"), "colB"), (client(), "colC")):
        with pytest.raises(Denied) as caught:
            use(creator).require(collection, write=write)
        assert caught.value.message == (
            f"tx creator does not have {access} access permission on privatedata in "
            f"chaincodeName:gv collectionName: {collection}"
        )


@pytest.mark.statement(26, of="client")
def test_read_and_write_are_decided_apart():
    config = static(policy="OR('Org1MSP.admin')", member_only_write=True)
    found = Collections("mychannel", "gv", package(config), ORGS, client(), "Org1MSP")
    found.require("c", write=False)
    with pytest.raises(Denied):
        found.require("c", write=True)


@pytest.mark.statement(30, of="client")
def test_unknown_collections_have_the_text_of_the_step_that_finds_them():
    found = use(client())
    for write in (False, True, True):
        with pytest.raises(NotFound) as caught:
            found.require("nocol", write=write)
        assert (
            caught.value.message == "collection mychannel/gv/nocol could not be found"
        )
    unknown = "_implicit_org_NoMSP"
    for collection in ("nocol", unknown):
        with pytest.raises(NotFound) as caught:
            found.require_known(collection)
        assert caught.value.message == (
            f"collection [{collection}] not defined in the collection config for "
            "chaincode [gv]"
        )
    with pytest.raises(NotFound) as caught:
        found.require(unknown, write=True)
    assert caught.value.message == (
        f"collection [{unknown}] not defined in the collection config for chaincode [gv]"
    )


@pytest.mark.statement(24, of="client")
def test_a_hash_is_for_everybody():
    use(client()).require_known("colC")


@pytest.mark.statement(31, of="client")
def test_implicit_collections_admit_everybody():
    found = use(client(mspid="Org2MSP"))
    found.require("_implicit_org_Org1MSP", write=True)
    found.require_known("_implicit_org_Org1MSP")
    implicit = find_collection(package(), "_implicit_org_Org1MSP", ORGS)
    assert implicit is not None
    policy = policies_pb2.SignaturePolicyEnvelope()
    policy.CopyFrom(parse_policy("OR('Org1MSP.member')"))
    assert implicit.member_orgs_policy.signature_policy == policy
    assert not implicit.member_only_read
    assert not implicit.block_to_live


def test_a_peer_has_the_values_of_collections_whose_policy_names_its_organisation():
    """In whatever role: the recorded peer has colC, whose members are admins alone."""
    for at in (("Org1MSP", "Org2MSP"), ("Org2MSP", "Org1MSP")):
        first, found = at[0] == "Org1MSP", use(client(Role.ADMIN), *at)
        for write in (False, True):
            for name in ("colA", "colB", "colC", "_implicit_org_Org1MSP"):
                assert found.require(name, write=write) == first
            assert found.require("_implicit_org_Org2MSP", write=write) != first
