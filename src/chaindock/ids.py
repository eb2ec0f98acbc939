"""Names that travel through the whole system, and their rules.

Source: docs/fabric/packages.md, docs/fabric/ledger.md
"""

from __future__ import annotations

import re
from typing import NewType

from chaindock.errors import InvalidInput

Ccid = NewType("Ccid", str)
"""`label:sha256hex`: the package id, and the name a chaincode registers under."""
TxId = NewType("TxId", str)
"""64 lower-case hex characters: SHA-256 of nonce and creator."""
ChannelId = NewType("ChannelId", str)
SpaceName = tuple[str, str]
"""Namespace, and collection; "" = the public state."""

CHANNEL_ENDORSEMENT = "/Channel/Application/Endorsement"
"""The policy of definitions that carry no other."""
CHANNEL_WRITERS = "/Channel/Application/Writers"
LIFECYCLE = "_lifecycle"

_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
_NAME = re.compile(r"[a-zA-Z0-9]+([-_][a-zA-Z0-9]+)*")
_VERSION = re.compile(r"[A-Za-z0-9_.+-]+")
_CHANNEL = re.compile(r"[a-z][a-z0-9.-]{0,248}")
_CCID = re.compile(r"(?P<label>[A-Za-z0-9][A-Za-z0-9_.+-]*):(?P<hash>[0-9a-f]{64})")
_VERSION_PART = re.compile(r"_v?\d[A-Za-z0-9.+-]*$")
_NOT_NAME = re.compile(r"[^A-Za-z0-9]+")
SYSTEM_NAMES = frozenset({"cscc", "escc", "lscc", "qscc", "vscc"})


def _require(ok: object, what: str, text: str, expected: str, hint: str = "") -> None:
    if not ok:
        said = f"invalid {what} {text!r}: expected {expected}"
        raise InvalidInput(said, hint=hint or None)


def require_label(label: str) -> str:
    """Return `label` if Fabric accepts it, else raise InvalidInput."""
    rule = "a letter or digit, then letters, digits and the symbols . + - _"
    hint = "choose another one with --label"
    _require(_LABEL.fullmatch(label), "label", label, rule, hint)
    return label


def require_chaincode_name(name: str) -> str:
    """Return `name` if a definition may carry it, else raise InvalidInput."""
    ok = _NAME.fullmatch(name) and name not in SYSTEM_NAMES
    rule = "letters and digits, joined by single - or _, and not the name of a system "
    hint = "choose another one with --name"
    _require(ok, "chaincode name", name, f"{rule}chaincode", hint)
    return name


def name_from_label(label: str) -> str:
    """Return the chaincode name that a label suggests: `parcels_1.0` is `parcels`.

    It may be the name of a system chaincode; nothing else forbids its use.
    """
    name = _NOT_NAME.sub("-", _VERSION_PART.sub("", label)).strip("-")
    return name or "chaincode"


def require_version(version: str) -> str:
    """Return `version` if a definition may carry it, else raise InvalidInput."""
    rule = "letters, digits and . _ + -"
    _require(_VERSION.fullmatch(version), "chaincode version", version, rule)
    return version


def require_channel(channel: str) -> ChannelId:
    """Return `channel` as an id if it follows the rule, else raise InvalidInput."""
    rule = "a lower-case letter, then up to 248 lower-case letters, digits, . or -"
    _require(_CHANNEL.fullmatch(channel), "channel", channel, rule)
    return ChannelId(channel)


def require_ccid(text: str) -> Ccid:
    """Return `text` as a ccid if it is a package id, else raise InvalidInput."""
    rule = "LABEL:SHA256 (64 hex digits)"
    _require(_CCID.fullmatch(text), "package id", text, rule)
    return Ccid(text)


def split_ccid(ccid: Ccid) -> tuple[str, str]:
    """Return (label, hash)."""
    label, _, digest = ccid.rpartition(":")
    return label, digest


def at_peer(ccid: Ccid, mspid: str) -> Ccid:
    """Return the name of what runs a package for the peer of another organisation.

    `label:sha256hex@Org2MSP`: what has a process of its own has a name of its own. With
    the MSP id "" it is the package id, under which the node's first organisation runs it.
    """
    return Ccid(f"{ccid}@{mspid}") if mspid else ccid


def split_peer(ccid: Ccid) -> tuple[Ccid, str]:
    """Return the package id and the MSP id that `at_peer` was given."""
    package, _, mspid = ccid.partition("@")
    return Ccid(package), mspid
