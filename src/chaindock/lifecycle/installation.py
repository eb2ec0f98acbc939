"""The functions of `_lifecycle` about the packages of a peer. They need no channel.

Source: docs/fabric/lifecycle.md#packages
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

from fabric_protos.peer.lifecycle import lifecycle_pb2

from chaindock.aio import off_loop
from chaindock.errors import InvalidInput, NotFound, PackageInvalid
from chaindock.ids import Ccid, split_ccid

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from chaindock.lifecycle.packages import Packages

    Function = Callable[[bytes, str], Awaitable[Any]]
    """Takes a serialised argument message and the peer's MSP id; returns the answer."""

FUNCTIONS: Final = frozenset(
    {
        "GetInstalledChaincodePackage",
        "InstallChaincode",
        "QueryInstalledChaincode",
        "QueryInstalledChaincodes",
    }
)


class Installation:
    """Answers for the peers of the node, which share the files of packages."""

    def __init__(self, packages: Packages) -> None:
        self._packages = packages
        self._functions: Mapping[str, Function] = {
            "GetInstalledChaincodePackage": self._content,
            "InstallChaincode": self._install,
            "QueryInstalledChaincode": self._query,
            "QueryInstalledChaincodes": self._query_all,
        }

    async def answer(self, function: str, raw: bytes, mspid: str) -> Any:
        """Return the answer of the peer of `mspid` to one of `FUNCTIONS`, a message.

        `raw`: the serialised argument message.
        Raises: InvalidInput, AlreadyExists, TooManyRequests, StorageError. NotFound: as
            a peer tells it with status 404. DecodeError.
        """
        return await self._functions[function](raw, mspid)

    async def _install(self, raw: bytes, mspid: str) -> Any:
        parse = partial(lifecycle_pb2.InstallChaincodeArgs.FromString, raw)
        args = await off_loop(len(raw), parse)
        try:
            package = args.chaincode_install_package
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
        result = lifecycle_pb2.GetInstalledChaincodePackageResult
        made = partial(result, chaincode_install_package=content)
        return await off_loop(len(content), made)

    async def _query(self, raw: bytes, mspid: str) -> Any:
        args = lifecycle_pb2.QueryInstalledChaincodeArgs.FromString(raw)
        found = lifecycle_pb2.QueryInstalledChaincodeResult()
        _fill(found, self._find(args.package_id, mspid))
        return found

    async def _query_all(self, raw: bytes, mspid: str) -> Any:
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
    """Set the fields that both answers have: who runs the package, too."""
    found.package_id = package["package_id"]
    found.label, _ = split_ccid(Ccid(found.package_id))
    for one in package["chaincodes"]:
        chaincodes = found.references[one["channel"]].chaincodes
        chaincodes.add(name=one["name"], version=one["version"])
