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

    from chaindock.lifecycle.fleet import Fleet
    from chaindock.lifecycle.packages import Packages

    Function = Callable[[bytes], Awaitable[Any]]
    """Takes a serialised argument message; returns the answer."""

FUNCTIONS: Final = frozenset(
    {
        "GetInstalledChaincodePackage",
        "InstallChaincode",
        "QueryInstalledChaincode",
        "QueryInstalledChaincodes",
    }
)


class Installation:
    """Answers for all peers of the node, which have their packages in common."""

    def __init__(self, packages: Packages, fleet: Fleet) -> None:
        self._packages, self._fleet = packages, fleet
        self._functions: Mapping[str, Function] = {
            "GetInstalledChaincodePackage": self._content,
            "InstallChaincode": self._install,
            "QueryInstalledChaincode": self._query,
            "QueryInstalledChaincodes": self._query_all,
        }

    async def answer(self, function: str, raw: bytes) -> Any:
        """Return the answer to a call of one of `FUNCTIONS`, a message.

        `raw`: the serialised argument message.
        Raises: InvalidInput, AlreadyExists, TooManyRequests, StorageError. NotFound: as
            a peer tells it with status 404. DecodeError.
        """
        return await self._functions[function](raw)

    async def _install(self, raw: bytes) -> Any:
        parse = partial(lifecycle_pb2.InstallChaincodeArgs.FromString, raw)
        args = await off_loop(len(raw), parse)
        try:
            stored = await self._packages.install(args.chaincode_install_package)
        except PackageInvalid as error:
            raise InvalidInput(
                f"could not parse as a chaincode install package: {error.message}"
            ) from error
        return lifecycle_pb2.InstallChaincodeResult(
            package_id=stored.ccid, label=stored.label
        )

    async def _content(self, raw: bytes) -> Any:
        args = lifecycle_pb2.GetInstalledChaincodePackageArgs.FromString(raw)
        try:
            content = await self._packages.content(self._require(args.package_id))
        except NotFound as error:
            raise InvalidInput(
                f"could not load cc install package: {error.message}"
            ) from error
        return await off_loop(
            len(content),
            partial(
                lifecycle_pb2.GetInstalledChaincodePackageResult,
                chaincode_install_package=content,
            ),
        )

    async def _query(self, raw: bytes) -> Any:
        args = lifecycle_pb2.QueryInstalledChaincodeArgs.FromString(raw)
        ccid = self._require(args.package_id)
        (one,) = [one for one in self._packages.list() if one["package_id"] == ccid]
        found = lifecycle_pb2.QueryInstalledChaincodeResult()
        _fill(found, one)
        return found

    async def _query_all(self, raw: bytes) -> Any:
        lifecycle_pb2.QueryInstalledChaincodesArgs.FromString(raw)
        found = lifecycle_pb2.QueryInstalledChaincodesResult()
        for one in self._packages.list():
            _fill(found.installed_chaincodes.add(), one)
        return found

    def _require(self, package_id: str) -> Ccid:
        ccid = Ccid(package_id)
        if ccid not in self._fleet.installed:
            raise NotFound(f"chaincode install package '{package_id}' not found")
        return ccid


def _fill(found: Any, package: Mapping[str, Any]) -> None:
    """Set the fields that both answers have: who runs the package, too."""
    found.package_id = package["package_id"]
    found.label, _ = split_ccid(Ccid(found.package_id))
    for one in package["chaincodes"]:
        chaincodes = found.references[one["channel"]].chaincodes
        chaincodes.add(name=one["name"], version=one["version"])
