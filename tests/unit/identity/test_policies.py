"""Signature policies: against a simple model, and what is no policy."""

from contextlib import suppress
from dataclasses import replace
from itertools import permutations
from types import SimpleNamespace
from typing import Any

import pytest
from fabric_protos.common import policies_pb2
from fabric_protos.msp import identities_pb2, msp_principal_pb2
from hypothesis import given
from hypothesis import strategies as st

from chaindock.errors import InvalidInput
from chaindock.identity import policies
from chaindock.identity.ca import CertificateAuthority, certificate_pem, new_key
from chaindock.identity.msp import Identity, Msp, Role
from chaindock.identity.policies import evaluator, parse_policy, policy_text, satisfied

ROLES = ("member", "admin", "client", "peer", "orderer")
Principal = msp_principal_pb2.MSPPrincipal


def someone(mspid: str = "AMSP", role: Any = Role.PEER) -> Any:
    facts: Any = (None, None, None)
    return Identity(mspid, role, *facts)


LEAVES = st.tuples(st.sampled_from(("AMSP", "B.MSP", "C-1")), st.sampled_from(ROLES))
TREES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, min_size=1, max_size=4).flatmap(
        lambda rules: st.tuples(st.integers(0, len(rules) + 1), st.just(rules))
    ),
    max_leaves=8,
).filter(lambda tree: isinstance(tree[1], list))
PEOPLE = st.lists(
    st.builds(
        someone, st.sampled_from(("AMSP", "B.MSP", "C-1")), st.sampled_from(Role)
    ),
    max_size=6,
)


def text_of(tree: Any) -> Any:
    first, second = tree
    if isinstance(second, str):
        return f"'{first}.{second}'"
    return f"OutOf({first}, {', '.join(text_of(one) for one in second)})"


def fits(leaf: Any, identity: Any) -> Any:
    mspid, role = leaf
    return identity.mspid == mspid and role in {"member", str(identity.role)}


def model(tree: Any, people: Any) -> Any:
    """Return the people left after the tree took its own; None = not satisfied."""
    first, second = tree
    if isinstance(second, str):
        for place, one in enumerate(people):
            if fits(tree, one):
                return people[:place] + people[place + 1 :]
        return None
    passed = 0
    for rule in second:
        left = model(rule, people)
        if left is not None:
            people, passed = left, passed + 1
    return people if passed >= first else None


def choices(tree: Any) -> Any:
    """Every list of leaves that satisfies the tree."""
    first, second = tree
    if isinstance(second, str):
        return [[tree]]
    found: Any = [(0, [])]
    for rule in second:
        found += [(n + 1, had + one) for n, had in found for one in choices(rule)]
    return [leaves for n, leaves in found if n >= first]


@given(TREES, PEOPLE)
def test_evaluation_is_that_of_the_model(tree, people):
    assert satisfied(parse_policy(text_of(tree)), people) == (
        model(tree, people) is not None
    )


@given(TREES.filter(lambda tree: text_of(tree).count("'") <= 10), PEOPLE)
def test_whoever_satisfies_a_policy_gives_each_leaf_an_identity_of_its_own(
    tree, people
):
    if satisfied(parse_policy(text_of(tree)), people):
        assert any(
            all(map(fits, leaves, order))
            for leaves in choices(tree)
            for order in permutations(people, len(leaves))
        )


@given(TREES)
def test_the_text_of_a_policy_stands_for_the_same_bytes(tree):
    envelope = parse_policy(text_of(tree))
    assert parse_policy(policy_text(envelope)) == envelope


@given(st.text("AND(OR) OutOf,'.peer12\"", max_size=40))
def test_any_text_is_a_policy_or_refused(text):
    with suppress(InvalidInput):
        policy_text(parse_policy(text))


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("AND('A.peer','B.peer')", "AND('A.peer', 'B.peer')"),
        ('or("A.member" , and( \'B.admin\',"C.client"))',
         "OR('A.member', AND('B.admin', 'C.client'))"),
        ("OUTOF('2','A.peer','B.peer','C.orderer')",
         "OutOf(2, 'A.peer', 'B.peer', 'C.orderer')"),
        ("Or('Org1.sub-x.MSP.peer')", "OR('Org1.sub-x.MSP.peer')"),
        ("OutOf(0, 'A.peer')", "OutOf(0, 'A.peer')"),
        ("OutOf(2, 'A.peer')", "OutOf(2, 'A.peer')"),
    ],
)  # fmt: skip
def test_texts_of_the_peer_command(text, canonical):
    assert policy_text(parse_policy(text)) == canonical


def test_principals_of_inner_gates_come_first():
    """As the peer CLI writes OR('A.member', AND('B.member', 'C.member'))."""
    envelope = parse_policy("OR('A.member', AND('B.member', 'C.member'))")
    roles = [
        msp_principal_pb2.MSPRole.FromString(one.principal).msp_identifier
        for one in envelope.identities
    ]
    assert roles == ["B", "C", "A"]
    assert envelope.rule.n_out_of.n == 1
    assert envelope.rule.n_out_of.rules[0].signed_by == 2


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "expected AND, OR or OutOf, found its end"),
        ("'A.peer'", "expected AND, OR or OutOf, found 'A.peer'"),
        ("AND()", "expected 'MSPID.role' or a gate, found \\)"),
        ("AND('A.peer'", r"expected a comma or \), found its end"),
        ("AND('A.peer' 'B.peer')", r"expected a comma or \), found 'B.peer'"),
        ("AND('A.boss')", "expected 'MSPID.role' or a gate, found 'A.boss'"),
        ("AND('A_1.peer')", "expected 'MSPID.role'"),
        ("XOR('A.peer')", "expected AND, OR or OutOf, found XOR"),
        ("OutOf('A.peer')", "expected the number of OutOf, found 'A.peer'"),
        ("OutOf(4,'A.peer','B.peer')", "invalid t-out-of-n predicate, t 4, n 2"),
        ("OR('A.peer') OR", "expected nothing more, found OR"),
        ("OR(" * 60, "at most 40 gates in each other"),
        ("OR('A.peer')" + " " * 70_000, "the limit is 65536"),
    ],
)
def test_texts_that_are_refused(text, why):
    with pytest.raises(InvalidInput, match=why):
        parse_policy(text)


def test_one_identity_satisfies_one_leaf():
    policy = parse_policy("AND('AMSP.peer', 'AMSP.member')")
    assert not satisfied(policy, [someone()])
    assert satisfied(policy, [someone(), someone()])
    # Greedy, as Fabric: the member's leaf takes the only peer.
    greedy = parse_policy("AND('AMSP.member', 'AMSP.peer')")
    assert not satisfied(greedy, [someone(), someone(role=Role.CLIENT)])
    assert satisfied(greedy, [someone(role=Role.CLIENT), someone()])


def test_the_leaves_of_a_gate_that_fails_stay_free():
    policy = parse_policy(
        "OR(AND('AMSP.peer', 'B.peer'), OutOf(1, 'AMSP.peer', 'C.peer'))"
    )
    assert satisfied(policy, [someone()])


# --- principals of every class ------------------------------------------------------


@pytest.fixture(scope="module")
def peer() -> Any:
    ca = CertificateAuthority.create("a.example.com")
    pem = certificate_pem(ca.issue(new_key().public_key(), "peer0", "peer"))
    creator = identities_pb2.SerializedIdentity(mspid="AMSP", id_bytes=pem)
    raw = creator.SerializeToString()
    return SimpleNamespace(
        raw=raw, identity=Msp.of_ca("AMSP", ca.certificate).identify(raw), ca=ca
    )


def one(kind: Any, message: Any) -> Any:
    raw = message if isinstance(message, bytes) else message.SerializeToString()
    return Principal(
        principal_classification=Principal.Classification.Value(kind), principal=raw
    )


def holds(principal: Any, identity: Any) -> Any:
    signed = policies_pb2.SignaturePolicy(signed_by=0)
    envelope = policies_pb2.SignaturePolicyEnvelope(rule=signed, identities=[principal])
    policy_text(envelope)  # every principal has a text
    return satisfied(envelope, [identity])


def test_an_organizational_unit_counts_with_its_certifier(peer):
    unit = msp_principal_pb2.OrganizationUnit(
        msp_identifier="AMSP",
        organizational_unit_identifier="peer",
        certifiers_identifier=peer.identity.certifiers,
    )
    assert holds(one("ORGANIZATION_UNIT", unit), peer.identity)
    assert not holds(one("ORGANIZATION_UNIT", unit), replace(peer.identity, mspid="B"))
    unit.certifiers_identifier = b"other"
    assert not holds(one("ORGANIZATION_UNIT", unit), peer.identity)


def test_an_identity_counts_by_its_certificate(peer):
    assert holds(one("IDENTITY", peer.raw), peer.identity)
    assert not holds(one("IDENTITY", peer.raw), someone())
    nobody = identities_pb2.SerializedIdentity(mspid="AMSP", id_bytes=b"x")
    assert not holds(one("IDENTITY", nobody), peer.identity)


def test_anonymity_and_combined_principals(peer):
    kind = msp_principal_pb2.MSPIdentityAnonymity
    nominal = one("ANONYMITY", kind(anonymity_type=kind.NOMINAL))
    hidden = one("ANONYMITY", kind(anonymity_type=kind.ANONYMOUS))
    combined = msp_principal_pb2.CombinedPrincipal
    identity = one("IDENTITY", peer.raw)
    assert holds(nominal, peer.identity)
    assert not holds(hidden, peer.identity)
    both = combined(principals=[nominal, identity])
    assert holds(one("COMBINED", both), peer.identity)
    assert not holds(one("COMBINED", both), someone())
    assert not holds(one("COMBINED", combined(principals=[])), peer.identity)


def nested(depth: int) -> Any:
    """A combined principal that holds another one, and so on."""
    found = one("ANONYMITY", b"")
    for _ in range(depth):
        held = msp_principal_pb2.CombinedPrincipal(principals=[found])
        found = one("COMBINED", held)
    return found


def test_combined_principals_have_a_depth(peer):
    """Each is bytes in the one around it, so that protobuf does not limit the depth."""
    assert holds(nested(40), peer.identity)
    for depth in (41, 600, 5000):
        with pytest.raises(InvalidInput, match="more than 40 principals"):
            holds(nested(depth), peer.identity)


@pytest.mark.parametrize(
    ("envelope", "why"),
    [
        (b"\xff\xff", "error unmarshalling SignaturePolicyEnvelope"),
        (b"", "Empty policy element"),
        (b"\x08\x01", "only understands messages of version 0, but version was 1"),
        (
            policies_pb2.SignaturePolicyEnvelope(
                rule=policies_pb2.SignaturePolicy(signed_by=1), identities=[Principal()]
            ).SerializeToString(),
            "identity index out of range, requested 1, but identities length is 1",
        ),
        (
            policies_pb2.SignaturePolicyEnvelope(
                rule=policies_pb2.SignaturePolicy(signed_by=-1)
            ).SerializeToString(),
            "identity index out of range, requested -1, but identities length is 0",
        ),
        (
            policies_pb2.SignaturePolicyEnvelope(
                identities=[Principal(principal_classification=9)]
            ).SerializeToString(),
            "invalid principal type 9",
        ),
    ],
)
def test_envelopes_that_are_no_policy(envelope, why):
    with pytest.raises(InvalidInput, match=why):
        evaluator(envelope)


def test_large_policies_are_not_kept_and_very_large_ones_are_refused():
    """Contracts write policies of keys: each costs the node a bounded amount."""
    text = "OR(" + ", ".join(f"'Org{n}MSP.peer'" for n in range(2000)) + ")"
    raw = parse_policy(text).SerializeToString()
    assert len(raw) > 4096
    before = policies._known.cache_info().currsize
    assert evaluator(raw)([someone("Org1999MSP")])
    assert not evaluator(raw)([someone("OrgMSP")])
    assert policies._known.cache_info().currsize == before
    with pytest.raises(InvalidInput, match="the limit is 262144"):
        evaluator(raw * 10)
