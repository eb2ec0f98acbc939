"""What each organisation has approved, in its implicit collection on the ledger.

An organisation approves the parameters of a definition for one sequence, and the package
that its peers run then. Others see hashes alone.
Source: docs/fabric/lifecycle.md#approvals
"""

from __future__ import annotations

from hashlib import sha256
from typing import Final

from fabric_protos.peer.lifecycle import db_pb2, lifecycle_pb2

from chaindock.errors import InvalidInput
from chaindock.ledger.simulator import Simulator
from chaindock.lifecycle.collections import IMPLICIT
from chaindock.lifecycle.definitions import (
    DEFINITIONS,
    NAMESPACE,
    PARAMETERS,
    SOURCES,
    Definition,
    Records,
    from_fields,
    names_in,
    parameters,
    read_definition,
    read_sequence,
)

_PACKAGE: Final = "PackageID"


class Approvals:
    """The approvals of one organisation."""

    def __init__(self, channel: str, mspid: str) -> None:
        self._channel, self._collection = channel, IMPLICIT + mspid
        self._parameters = Records(
            DEFINITIONS, "ChaincodeParameters", PARAMETERS, self._collection
        )
        self._sources = Records(
            SOURCES, "ChaincodeLocalPackage", (_PACKAGE,), self._collection
        )

    def approve(
        self, simulator: Simulator, definition: Definition, package_id: str
    ) -> None:
        """Approve a definition whose defaults are set; "" = without a package.

        Raises:
            InvalidInput: neither the committed sequence nor the next one, other
                parameters than the committed ones, or nothing new.
        """
        name, sequence = definition.name, definition.sequence
        committed = read_sequence(simulator, name)
        if committed == sequence == 0:
            raise InvalidInput(
                "requested sequence is 0, but first definable sequence number is 1"
            )
        if sequence < committed:
            raise InvalidInput(
                f"currently defined sequence {committed} is larger than requested "
                f"sequence {sequence}"
            )
        if sequence > committed + 1:
            raise InvalidInput(
                f"requested sequence {sequence} is larger than the next available "
                f"sequence number {committed + 1}"
            )
        current = read_definition(simulator, name) if sequence == committed else None
        if current is not None and (wrong := _difference(current, definition)):
            raise InvalidInput(
                "attempted to redefine the current committed sequence "
                f"({sequence}) for namespace {name} with different parameters: {wrong}"
            )
        key, fields = f"{name}#{sequence}", parameters(definition)
        source = _source(package_id)
        if (
            self._parameters.read(simulator, key) == fields
            and self._sources.read(simulator, key) == source
        ):
            which = f"the current committed sequence ({sequence}) for namespace {name}"
            if current is None:
                which = (
                    f"uncommitted sequence ({sequence}) for namespace {name} with "
                    "unchanged content"
                )
            raise InvalidInput(f"attempted to redefine {which}")
        self._parameters.write(simulator, key, fields)
        self._sources.write(simulator, key, source)

    def holds(
        self, simulator: Simulator, definition: Definition, package_id: str
    ) -> bool:
        """Whether exactly this is approved."""
        key, source = f"{definition.name}#{definition.sequence}", _source(package_id)
        wrong = self._sources.differing(simulator, key, source)
        return not (wrong or self.differing(simulator, definition))

    def package(self, simulator: Simulator, definition: Definition) -> str:
        """Return the package that was approved with exactly this definition; "" = none."""
        if self.differing(simulator, definition):
            return ""
        key = f"{definition.name}#{definition.sequence}"
        source = self._sources.read(simulator, key)
        return "" if source is None else source[_PACKAGE].String

    def differing(self, simulator: Simulator, definition: Definition) -> list[str]:
        """Return in what the approval differs from `definition`; [] = approved.

        Without an approval, that is `ChaincodeParameters`.
        """
        key = f"{definition.name}#{definition.sequence}"
        return self._parameters.differing(simulator, key, parameters(definition))

    def find(
        self, simulator: Simulator, name: str, sequence: int = 0
    ) -> tuple[Definition, str]:
        """Return what was approved, and the package; 0 = latest. Raises: InvalidInput."""
        wanted = sequence
        if not sequence:
            wanted = read_sequence(simulator, name)
            if self._parameters.exists(simulator, f"{name}#{wanted + 1}"):
                wanted += 1
        key = f"{name}#{wanted}"
        fields = self._parameters.read(simulator, key)
        source = None if fields is None else self._sources.read(simulator, key)
        if fields is None or source is None:
            raise InvalidInput(
                f"could not fetch approved chaincode definition (name: '{name}', "
                f"sequence: '{sequence}') on channel '{self._channel}'"
            )
        found = from_fields(name, fields)
        found.sequence = wanted
        return found, source[_PACKAGE].String

    def all(self, simulator: Simulator) -> list[tuple[Definition, str]]:
        """Return every approval with its package, by name and sequence."""
        prefix = self._parameters.key("")
        rows = simulator.open_private_range(
            NAMESPACE, self._collection, prefix, f"{prefix}\x7f"
        )
        parts = [key.rpartition("#") for key in names_in(rows, prefix)]
        wanted = sorted((name, int(sequence)) for name, _, sequence in parts)
        return [self.find(simulator, *one) for one in wanted]


def keys_of(name: str, sequence: int) -> list[bytes]:
    """Return the hashes of the keys that an approval of a sequence may write."""
    kinds = Records(DEFINITIONS, "", PARAMETERS), Records(SOURCES, "", (_PACKAGE,))
    keys = [
        one.key(f"{name}#{sequence}", field)
        for one in kinds
        for field in (None, *one.fields)
    ]
    return [sha256(key.encode()).digest() for key in keys]


def _source(package_id: str) -> dict[str, db_pb2.StateData]:
    return {_PACKAGE: db_pb2.StateData(String=package_id)}


def source_of(package_id: str) -> lifecycle_pb2.ChaincodeSource:
    """Return a package id as answers have it; "" = there is no package."""
    if not package_id:
        unavailable = lifecycle_pb2.ChaincodeSource.Unavailable()
        return lifecycle_pb2.ChaincodeSource(unavailable=unavailable)
    local = lifecycle_pb2.ChaincodeSource.Local(package_id=package_id)
    return lifecycle_pb2.ChaincodeSource(local_package=local)


def _difference(expected: Definition, passed: Definition) -> str:
    """Return Fabric's sentence about the first parameter that differs; "" = none."""
    for key, name in (
        ("version", "Version"),
        ("endorsement_plugin", "EndorsementPlugin"),
        ("init_required", "InitRequired"),
        ("validation_plugin", "ValidationPlugin"),
        ("validation_parameter", "ValidationParameter"),
    ):
        ours, theirs = _go(getattr(expected, key)), _go(getattr(passed, key))
        if ours != theirs:
            return f"expected {name} '{ours}' does not match passed {name} '{theirs}'"
    same = expected.collections == passed.collections
    return "" if same else "Collections do not match"


def _go(value: str | bytes | bool) -> str:
    if isinstance(value, bytes):
        return value.hex()
    return str(value).lower() if isinstance(value, bool) else value
