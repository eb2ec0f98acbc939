"""The system chaincode `_lifecycle`, as the peer of the caller's organisation has it.

Texts, reads and writes are those of a peer.
Source: docs/fabric/lifecycle.md
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, Final

from fabric_protos.peer.lifecycle import lifecycle_pb2
from fabric_protos.peer.proposal_response_pb2 import Response
from google.protobuf.message import DecodeError

from chaindock.aio import off_loop
from chaindock.errors import (
    ChaindockError,
    Denied,
    InvalidInput,
    NotFound,
    PackageInvalid,
)
from chaindock.identity.msp import Identity, require_local
from chaindock.ids import (
    SYSTEM_NAMES,
    Ccid,
    require_chaincode_name,
    require_version,
    split_ccid,
)
from chaindock.ledger.encoding import field as encoded
from chaindock.ledger.simulator import Simulator
from chaindock.lifecycle.approvals import Approvals, source_of
from chaindock.lifecycle.collections import check_collections
from chaindock.lifecycle.definitions import (
    Definition,
    defined_names,
    read_definition,
    read_sequence,
    set_defaults,
    write_definition,
)
from chaindock.lifecycle.packages import Packages
from chaindock.values import KIB

Function = Callable[[Simulator, bytes, str], Any]
"""Takes a serialised argument message and the peer's MSP id; returns the answer."""
PackageFunction = Callable[[bytes, str], Awaitable[Any]]

_LARGEST: Final = 128 * KIB
"""Bytes of an argument that holds no package: it is read on the event loop."""


class LifecycleContract:
    """Answers calls of `_lifecycle` on one channel.

    `mspids` returns the organisations of the channel; their peers share the files of
    `packages`. `acl` takes `_lifecycle/FUNCTION` and an identity, and raises Denied
    unless it may call a function that is not for admins of the peer alone.
    """

    def __init__(
        self,
        channel: str,
        mspids: Callable[[], Collection[str]],
        packages: Packages,
        acl: Callable[[str, Identity], object],
    ) -> None:
        self._channel, self._mspids = channel, mspids
        self._packages, self._acl = packages, acl
        self._functions: Mapping[str, tuple[Function, bool]] = {
            "ApproveChaincodeDefinitionForMyOrg": (self._approve, True),
            "QueryApprovedChaincodeDefinition": (self._query_approved, True),
            "QueryApprovedChaincodeDefinitions": (self._query_all_approved, True),
            "CheckCommitReadiness": (self._check, False),
            "CommitChaincodeDefinition": (self._commit, False),
            "QueryChaincodeDefinition": (self._query, False),
            "QueryChaincodeDefinitions": (self._query_all, False),
        }
        """The function, and whether admins of the organisation alone may call it."""
        self._of_packages: Mapping[str, PackageFunction] = {
            "GetInstalledChaincodePackage": self._content,
            "InstallChaincode": self._install,
            "QueryInstalledChaincode": self._query_installed,
            "QueryInstalledChaincodes": self._query_all_installed,
        }
        """They need no channel; admins of the organisation alone may call them."""

    async def execute(
        self,
        simulator: Simulator | None,
        args: Sequence[bytes],
        identity: Identity,
        mspid: str,
    ) -> Response:
        """Return the answer to a call; never raises for what a caller can send.

        `args`: name of the function, serialised argument message. `identity`: who signed.
        `mspid`: organisation of the peer that is asked.
        """
        if len(args) != 2:
            return failed(
                "lifecycle scc operations require exactly two arguments but received "
                f"{len(args)}"
                if args
                else "lifecycle scc must be invoked with arguments"
            )
        name = args[0].decode(errors="replace")
        words = f"failed to invoke backing implementation of '{name}': "
        try:
            self._require_allowed(name, identity, mspid)
            if name in self._of_packages:
                answer = await self._of_packages[name](args[1], mspid)
            else:
                function, _ = self._functions[name]
                if len(args[1]) > _LARGEST:
                    raise InvalidInput(f"the argument has more than {_LARGEST} bytes")
                answer = function(_require_channel(simulator), args[1], mspid)
        except NotFound as error:
            return failed(error.message, 404)
        except Denied as error:
            return failed(
                f"Failed to authorize invocation due to failed ACL check: {error.message}"
            )
        except DecodeError:
            return failed(
                f"{words}could not decode input arg for *lifecycle.Invocation.{name}: "
                "proto: cannot parse invalid wire-format data"
            )
        except ChaindockError as error:
            return failed(words + error.message)
        if not isinstance(answer, bytes):
            answer = await off_loop(answer.ByteSize(), answer.SerializeToString)
        return await off_loop(len(answer), partial(succeeded, answer))

    def _require_allowed(self, name: str, identity: Identity, mspid: str) -> None:
        """Raise Denied unless the identity may call a function."""
        for_admins = name in self._of_packages
        if not for_admins:
            if name not in self._functions:
                raise Denied(f"Unmapped policy for _lifecycle/{name}")
            _, for_admins = self._functions[name]
        if for_admins:
            require_local("Admins", identity, mspid)
        else:
            self._acl(f"_lifecycle/{name}", identity)

    # ---- definitions

    def _approve(self, simulator: Simulator, raw: bytes, mspid: str) -> Any:
        args = lifecycle_pb2.ApproveChaincodeDefinitionForMyOrgArgs.FromString(raw)
        definition = _definition(args)
        self._validate(simulator, definition)
        set_defaults(definition)
        package_id = args.source.local_package.package_id
        Approvals(self._channel, mspid).approve(simulator, definition, package_id)
        return lifecycle_pb2.ApproveChaincodeDefinitionForMyOrgResult()

    def _check(self, simulator: Simulator, raw: bytes, _mspid: str) -> Any:
        definition = _definition(lifecycle_pb2.CheckCommitReadinessArgs.FromString(raw))
        result = lifecycle_pb2.CheckCommitReadinessResult()
        for mspid, wrong in self._readiness(simulator, definition).items():
            result.approvals[mspid] = not wrong
            if wrong:
                result.mismatches[mspid].items.extend(wrong)
        return result

    def _commit(self, simulator: Simulator, raw: bytes, mspid: str) -> Any:
        definition = Definition.FromString(raw)
        self._validate(simulator, definition)
        if self._readiness(simulator, definition)[mspid]:
            raise InvalidInput(
                f"chaincode definition not agreed to by this org ({mspid})"
            )
        write_definition(simulator, definition)
        return lifecycle_pb2.CommitChaincodeDefinitionResult()

    def _readiness(
        self, simulator: Simulator, definition: Definition
    ) -> dict[str, list[str]]:
        """Return by organisation in what its approval differs; sets the defaults."""
        expected = read_sequence(simulator, definition.name) + 1
        if definition.sequence != expected:
            raise InvalidInput(
                f"requested sequence is {definition.sequence}, but new definition must "
                f"be sequence {expected}"
            )
        set_defaults(definition)
        return self._agreement(simulator, definition)

    def _agreement(
        self, simulator: Simulator, definition: Definition
    ) -> dict[str, list[str]]:
        return {
            mspid: Approvals(self._channel, mspid).differing(simulator, definition)
            for mspid in self._mspids()
        }

    def _validate(self, simulator: Simulator, definition: Definition) -> None:
        """Check name, version and collections, as before an approval and a commit."""
        try:
            _check_names(definition)
            mspids = self._mspids()
            check_collections(definition.collections, mspids)
            former = read_definition(simulator, definition.name)
            if former is None:
                # As a peer does: the definition may be of the former lifecycle.
                simulator.get_state("lscc", definition.name)
            else:
                check_collections(definition.collections, mspids, former.collections)
        except InvalidInput as error:
            raise InvalidInput(
                f"error validating chaincode definition: {error.message}"
            ) from error

    def _query(self, simulator: Simulator, raw: bytes, _mspid: str) -> Any:
        name = lifecycle_pb2.QueryChaincodeDefinitionArgs.FromString(raw).name
        found = read_definition(simulator, name)
        if found is None:
            raise NotFound(f"namespace {name} is not defined")
        agreement = self._agreement(simulator, found)
        return lifecycle_pb2.QueryChaincodeDefinitionResult(
            **_shown(found),
            approvals={mspid: not wrong for mspid, wrong in agreement.items()},
        )

    def _query_all(self, simulator: Simulator, raw: bytes, _mspid: str) -> Any:
        lifecycle_pb2.QueryChaincodeDefinitionsArgs.FromString(raw)
        result = lifecycle_pb2.QueryChaincodeDefinitionsResult()
        for name in defined_names(simulator):
            found = read_definition(simulator, name)
            if found is not None:
                result.chaincode_definitions.add(name=name, **_shown(found))
        return result

    def _query_approved(self, simulator: Simulator, raw: bytes, mspid: str) -> Any:
        args = lifecycle_pb2.QueryApprovedChaincodeDefinitionArgs.FromString(raw)
        approvals = Approvals(self._channel, mspid)
        found, package_id = approvals.find(simulator, args.name, args.sequence)
        return lifecycle_pb2.QueryApprovedChaincodeDefinitionResult(
            **_shown(found), source=source_of(package_id)
        )

    def _query_all_approved(self, simulator: Simulator, raw: bytes, mspid: str) -> Any:
        lifecycle_pb2.QueryApprovedChaincodeDefinitionsArgs.FromString(raw)
        result = lifecycle_pb2.QueryApprovedChaincodeDefinitionsResult()
        for found, package_id in Approvals(self._channel, mspid).all(simulator):
            result.approved_chaincode_definitions.add(
                name=found.name, **_shown(found), source=source_of(package_id)
            )
        return result

    # ---- packages

    async def _install(self, raw: bytes, mspid: str) -> Any:
        parse = lifecycle_pb2.InstallChaincodeArgs.FromString
        package = await off_loop(len(raw), lambda: parse(raw).chaincode_install_package)
        try:
            stored = await self._packages.install(package, mspid)
        except PackageInvalid as error:
            raise InvalidInput(
                f"could not parse as a chaincode install package: {error.message}"
            ) from error
        return lifecycle_pb2.InstallChaincodeResult(
            package_id=stored.ccid, label=stored.label
        )

    async def _content(self, raw: bytes, mspid: str) -> Any:
        args = lifecycle_pb2.GetInstalledChaincodePackageArgs.FromString(raw)
        try:
            ccid = Ccid(self._find(args.package_id, mspid)["package_id"])
            content = await self._packages.content(ccid)
        except NotFound as error:
            raise InvalidInput(
                f"could not load cc install package: {error.message}"
            ) from error
        # Of a GetInstalledChaincodePackageResult.
        return await off_loop(len(content), partial(encoded, 1, content))

    async def _query_installed(self, raw: bytes, mspid: str) -> Any:
        args = lifecycle_pb2.QueryInstalledChaincodeArgs.FromString(raw)
        found = lifecycle_pb2.QueryInstalledChaincodeResult()
        _fill(found, self._find(args.package_id, mspid))
        return found

    async def _query_all_installed(self, raw: bytes, mspid: str) -> Any:
        lifecycle_pb2.QueryInstalledChaincodesArgs.FromString(raw)
        found = lifecycle_pb2.QueryInstalledChaincodesResult()
        for one in self._packages.list(mspid):
            _fill(found.installed_chaincodes.add(), one)
        return found

    def _find(self, package_id: str, mspid: str) -> Mapping[str, Any]:
        for one in self._packages.list(mspid):
            if one["package_id"] == package_id:
                return one
        raise NotFound(f"chaincode install package '{package_id}' not found")


def _fill(found: Any, package: Mapping[str, Any]) -> None:
    """Set what is told of an installed package: also who runs it."""
    found.package_id = package["package_id"]
    found.label, _ = split_ccid(Ccid(found.package_id))
    for one in package["chaincodes"]:
        chaincodes = found.references[one["channel"]].chaincodes
        chaincodes.add(name=one["name"], version=one["version"])


def _require_channel(simulator: Simulator | None) -> Simulator:
    if simulator is None:
        raise Denied("Failed to get policy manager for channel []")
    return simulator


def _definition(args: Any) -> Definition:
    """Return the definition in a message that has the fields of one."""
    return Definition(name=args.name, **_shown(args))


def _shown(found: Any) -> dict[str, Any]:
    """Return the fields that answers to queries have, too."""
    names = (field.name for field in Definition.DESCRIPTOR.fields)
    return {name: getattr(found, name) for name in names if name != "name"}


def _check_names(definition: Definition) -> None:
    name, version = definition.name, definition.version
    if name in SYSTEM_NAMES:
        raise InvalidInput(f"chaincode name '{name}' is the name of a system chaincode")
    try:
        require_chaincode_name(name)
    except InvalidInput as error:
        raise InvalidInput(
            f"invalid chaincode name '{name}'. Names can only consist of alphanumerics, "
            "'_', and '-' and can only begin with alphanumerics"
        ) from error
    try:
        require_version(version)
    except InvalidInput as error:
        raise InvalidInput(
            f"invalid chaincode version '{version}'. Versions can only consist of "
            "alphanumerics, '_', '-', '+', and '.'"
        ) from error


def succeeded(payload: bytes = b"") -> Response:
    """Return the answer of a system chaincode that did what was asked."""
    return Response(status=200, payload=payload)


def failed(message: str, status: int = 500) -> Response:
    """Return the answer of a system chaincode that names an error."""
    return Response(status=status, message=message)
