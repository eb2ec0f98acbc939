"""Signature policies: their text and their evaluation.

A policy is evaluated greedily, as Fabric does it: a leaf takes the first
identity that fits and that no other leaf has taken. An identity satisfies one leaf.
Source: docs/fabric/policies.md
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final

from fabric_protos.common import policies_pb2
from fabric_protos.msp import identities_pb2
from fabric_protos.msp.msp_principal_pb2 import (
    CombinedPrincipal,
    MSPIdentityAnonymity,
    MSPPrincipal,
    MSPRole,
    OrganizationUnit,
)
from google.protobuf.message import DecodeError

from chaindock.errors import Denied, InvalidInput
from chaindock.identity.msp import Identity, Role, certificate_of

Evaluator = Callable[[Sequence[Identity]], bool]
"""Whether identities, each listed once, satisfy a policy together."""
_Rule = Callable[[Sequence[Identity], set[int]], bool]
"""As `Evaluator`; the set holds the positions of identities already taken."""
_Principal = Callable[[Identity], bool]

_Envelope = policies_pb2.SignaturePolicyEnvelope
_Signature = policies_pb2.SignaturePolicy
_CACHED: Final = 256
_SMALL: Final = 4096
"""Policies up to this number of bytes are remembered when compiled, the newest 256.

Chaincode writes policies of keys: larger ones would take memory without bounds.
"""
_MOST: Final = 256 * 1024
"""Bytes of a policy; a larger one is never satisfied. To compile it would take 0.5 s."""
_LARGEST: Final = 64 * 1024
"""Characters of a policy text."""
_DEEPEST: Final = 40
"""Gates, or combined principals, inside each other; a deeper policy is refused.

A parser of protobuf messages accepts about 45 gates. It does not limit principals: each
is a field of bytes that holds the next.
"""


# --- evaluation of signature policies -----------------------------------------------


def satisfied(
    envelope: policies_pb2.SignaturePolicyEnvelope, identities: Sequence[Identity]
) -> bool:
    """Tell whether `identities`, each once, satisfy it. Raises: as `evaluator`."""
    return evaluator(envelope.SerializeToString(deterministic=True))(identities)


def evaluator(serialized: bytes) -> Evaluator:
    """Return the test that a serialised SignaturePolicyEnvelope stands for.

    Raises: InvalidInput when it is none, its version is not 0, a gate or principal is of
        no known kind, a leaf names a principal that the envelope does not hold, or it
        has more than 256 KiB or 40 principals inside each other.
    """
    if (size := len(serialized)) > _MOST:
        raise InvalidInput(f"the policy has {size} bytes, the limit is {_MOST}")
    return _known(serialized) if size <= _SMALL else _compile(serialized)


def _compile(serialized: bytes) -> Evaluator:
    try:
        envelope = _Envelope.FromString(serialized)
        if envelope.version:
            raise InvalidInput(
                "This evaluator only understands messages of version 0, but version "
                f"was {envelope.version}"
            )
        principals = [_principal(one, 0) for one in envelope.identities]
        rule = _rule(envelope.rule, principals)
    except DecodeError as error:
        raise InvalidInput(
            f"error unmarshalling SignaturePolicyEnvelope: {error}"
        ) from error
    return lambda identities: rule(identities, set())


_known = lru_cache(_CACHED)(_compile)


def _rule(policy: policies_pb2.SignaturePolicy, known: Sequence[_Principal]) -> _Rule:
    kind = policy.WhichOneof("Type")
    if kind == "signed_by":
        if not 0 <= policy.signed_by < len(known):
            raise InvalidInput(
                f"identity index out of range, requested {policy.signed_by}, but "
                f"identities length is {len(known)}"
            )
        return _leaf(known[policy.signed_by])
    if kind == "n_out_of":
        rules = [_rule(one, known) for one in policy.n_out_of.rules]
        return _gate(policy.n_out_of.n, rules)
    raise InvalidInput("Empty policy element")


def _leaf(fits: _Principal) -> _Rule:
    def test(identities: Sequence[Identity], taken: set[int]) -> bool:
        for position, identity in enumerate(identities):
            if position not in taken and fits(identity):
                taken.add(position)
                return True
        return False

    return test


def _gate(wanted: int, rules: Sequence[_Rule]) -> _Rule:
    def test(identities: Sequence[Identity], taken: set[int]) -> bool:
        passed = 0
        for rule in rules:
            tried = set(taken)
            if rule(identities, tried):
                passed += 1
                taken.update(tried)
        return passed >= wanted

    return test


def _principal(principal: MSPPrincipal, depth: int) -> _Principal:
    """Return a principal's test, in `depth` others. Raises: InvalidInput, DecodeError."""
    if depth > _DEEPEST:
        raise InvalidInput(f"more than {_DEEPEST} principals are inside each other")
    kind, raw = principal.principal_classification, principal.principal
    if kind == MSPPrincipal.ROLE:
        role = MSPRole.FromString(raw)
        return _has_role(role.msp_identifier, role.role)
    if kind == MSPPrincipal.ORGANIZATION_UNIT:
        unit = OrganizationUnit.FromString(raw)
        return lambda identity: (
            identity.mspid == unit.msp_identifier
            and unit.organizational_unit_identifier in identity.units
            and unit.certifiers_identifier == identity.certifiers
        )
    if kind == MSPPrincipal.IDENTITY:
        wanted = identities_pb2.SerializedIdentity.FromString(raw)
        try:
            certificate = certificate_of(wanted)
        except Denied:
            return lambda _: False
        return lambda identity: (
            identity.mspid == wanted.mspid and identity.certificate == certificate
        )
    if kind == MSPPrincipal.ANONYMITY:
        nominal = MSPIdentityAnonymity.NOMINAL
        known = MSPIdentityAnonymity.FromString(raw).anonymity_type == nominal
        return lambda _: known
    if kind == MSPPrincipal.COMBINED:
        held = CombinedPrincipal.FromString(raw).principals
        parts = [_principal(one, depth + 1) for one in held]
        return lambda identity: bool(parts) and all(part(identity) for part in parts)
    raise InvalidInput(f"invalid principal type {kind}")


def _has_role(mspid: str, wanted: int) -> _Principal:
    if wanted == MSPRole.MEMBER:
        return lambda identity: identity.mspid == mspid
    if wanted not in MSPRole.MSPRoleType.values():
        raise InvalidInput(f"invalid MSP role type {wanted}")
    role = Role[MSPRole.MSPRoleType.Name(wanted)]
    return lambda identity: identity.mspid == mspid and identity.role is role


# --- text ---------------------------------------------------------------------------

_WORD: Final = re.compile(r"[A-Za-z]+|\d+|'[^']*'|\"[^\"]*\"|\S")
_LEAF: Final = re.compile(
    r"['\"]([A-Za-z0-9.-]+)\.(admin|member|client|peer|orderer)['\"]"
)
_NUMBER: Final = re.compile(r"(['\"]?)(\d{1,9})\1")
_GATES: Final = {
    spelling: name
    for name in ("And", "Or", "OutOf")
    for spelling in (name, name.lower(), name.upper())
}


def parse_policy(text: str) -> policies_pb2.SignaturePolicyEnvelope:
    """Return the policy that a text of the peer CLI stands for, with the same bytes.

    Gates are `AND(…)`, `OR(…)` and `OutOf(n, …)`, leaves `'MSPID.role'` with the role
    admin, member, client, peer or orderer. Principals are not merged, and those of an
    inner gate come before those of the gate around it, as the peer CLI writes them.

    Raises: InvalidInput.
    """
    if (size := len(text)) > _LARGEST:
        raise InvalidInput(f"the policy has {size} characters, the limit is {_LARGEST}")
    parser = _Parser(text)
    rule = parser.gate(parser.take(), 0)
    parser.expect("", "nothing more")
    return _Envelope(rule=rule, identities=parser.principals)


class _Parser:
    """Reads one policy text from left to right."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._words = iter(_WORD.findall(text))
        self.principals: list[MSPPrincipal] = []

    def take(self) -> str:
        """Return the next word, "" at the end."""
        return next(self._words, "")

    def expect(self, word: str, name: str) -> None:
        """Raise InvalidInput when the next word is another one; `name` describes it."""
        if (found := self.take()) != word:
            raise self._refused(name, found)

    def _refused(self, expected: str, found: str) -> InvalidInput:
        return InvalidInput(
            f"invalid policy string {self._text!r}: expected {expected}, found "
            f"{found or 'its end'}",
            hint="e.g. AND('Org1MSP.peer', OR('Org2MSP.peer', 'Org3MSP.peer')) or "
            "OutOf(2, 'Org1MSP.member', 'Org2MSP.member', 'Org3MSP.member')",
        )

    def gate(self, word: str, depth: int) -> policies_pb2.SignaturePolicy:
        """Return the gate that begins with `word`."""
        name = _GATES.get(word)
        if name is None:
            raise self._refused("AND, OR or OutOf", word)
        if depth >= _DEEPEST:
            raise self._refused(f"at most {_DEEPEST} gates in each other", word)
        self.expect("(", "(")
        wanted = self._number() if name == "OutOf" else 1
        found = [self._argument(depth)]
        while (word := self.take()) == ",":
            found.append(self._argument(depth))
        if word != ")":
            raise self._refused("a comma or )", word)
        rules = [
            one if isinstance(one, _Signature) else self._leaf(one) for one in found
        ]
        count = len(rules) if name == "And" else wanted
        if count > len(rules) + 1:
            raise InvalidInput(
                f"invalid t-out-of-n predicate, t {count}, n {len(rules)}"
            )
        return _Signature(n_out_of=_Signature.NOutOf(n=count, rules=rules))

    def _argument(self, depth: int) -> policies_pb2.SignaturePolicy | MSPPrincipal:
        word = self.take()
        leaf = _LEAF.fullmatch(word)
        if leaf is None:
            if word[:1].isalpha():
                return self.gate(word, depth + 1)
            raise self._refused("'MSPID.role' or a gate", word)
        role = MSPRole.MSPRoleType.Value(leaf[2].upper())
        principal = MSPRole(msp_identifier=leaf[1], role=role)
        return MSPPrincipal(
            principal_classification=MSPPrincipal.ROLE,
            principal=principal.SerializeToString(),
        )

    def _leaf(self, principal: MSPPrincipal) -> policies_pb2.SignaturePolicy:
        self.principals.append(principal)
        return _Signature(signed_by=len(self.principals) - 1)

    def _number(self) -> int:
        word = self.take()
        number = _NUMBER.fullmatch(word)
        if number is None:
            raise self._refused("the number of OutOf", word)
        self.expect(",", "a comma")
        return int(number[2])


def policy_text(envelope: policies_pb2.SignaturePolicyEnvelope) -> str:
    """Return the policy as a text that `parse_policy` reads.

    A principal that such a text cannot name is shown as `'MSPID.ou:NAME'` or
    `'MSPID.certificate'`. Raises: InvalidInput as `evaluator`.
    """
    evaluator(envelope.SerializeToString(deterministic=True))  # for its checks
    names = [_principal_text(principal) for principal in envelope.identities]
    text = _text(envelope.rule, names)
    return text if text.endswith(")") else f"OR({text})"


def _text(rule: policies_pb2.SignaturePolicy, names: Sequence[str]) -> str:
    if rule.WhichOneof("Type") == "signed_by":
        return names[int(rule.signed_by)]
    inner = [_text(one, names) for one in rule.n_out_of.rules]
    count = rule.n_out_of.n
    gate = {len(inner): "AND(", 1: "OR("}.get(count, f"OutOf({count}, ")
    return f"{gate}{', '.join(inner)})"


def _principal_text(principal: MSPPrincipal) -> str:
    kind, raw = principal.principal_classification, principal.principal
    if kind == MSPPrincipal.ROLE:
        role = MSPRole.FromString(raw)
        return f"'{role.msp_identifier}.{MSPRole.MSPRoleType.Name(role.role).lower()}'"
    if kind == MSPPrincipal.ORGANIZATION_UNIT:
        unit = OrganizationUnit.FromString(raw)
        return f"'{unit.msp_identifier}.ou:{unit.organizational_unit_identifier}'"
    if kind == MSPPrincipal.IDENTITY:
        return (
            f"'{identities_pb2.SerializedIdentity.FromString(raw).mspid}.certificate'"
        )
    if kind == MSPPrincipal.COMBINED:
        parts = CombinedPrincipal.FromString(raw).principals
        return "'" + "+".join(_principal_text(one).strip("'") for one in parts) + "'"
    return "'anonymity'"
