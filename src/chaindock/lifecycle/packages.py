"""The packages of a node: how they come, and how one goes that nobody runs any more.

A package that a deployment brought goes with the last name that runs it; one that was
installed stays until somebody removes it.
Source: docs/fabric/lifecycle.md#packages
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    ExitStack,
    asynccontextmanager,
    suppress,
)
from pathlib import Path
from typing import Any, Final

from chaindock.aio import Tasks, finish
from chaindock.errors import (
    AlreadyExists,
    ChaindockError,
    InvalidInput,
    NotFound,
    StorageError,
    TooManyRequests,
)
from chaindock.ids import Ccid
from chaindock.lifecycle.custodian import Custodian
from chaindock.lifecycle.definitions import Definition
from chaindock.lifecycle.deployments import Fleet, Name
from chaindock.lifecycle.states import Target
from chaindock.packaging.format import collection_of
from chaindock.packaging.store import PackageStore, StoredPackage
from chaindock.telemetry import get_logger

_log = get_logger("deployer")
_AT_ONCE: Final = 4
"""Packages of clients that are in memory at once, while they come or go."""


class Packages(AbstractAsyncContextManager["Packages"]):
    """Keeps `fleet.installed` true. Use it on the event loop.

    `purge` removes what back ends keep of a chaincode that is uninstalled. Each function
    in `arrived` is called with every package that was installed.
    """

    def __init__(
        self,
        store: PackageStore,
        fleet: Fleet,
        custodian: Custodian,
        purge: Callable[[Ccid], Awaitable[None]],
    ) -> None:
        self._store, self._fleet = store, fleet
        self._custodian, self._purge = custodian, purge
        self.arrived: list[Callable[[Ccid], None]] = []
        # A package must not be deleted between its arrival and the count of its users.
        self._storing = asyncio.Lock()
        self._installing = 0
        self._arriving: dict[Ccid, StoredPackage] = {}
        self._reading = asyncio.Semaphore(_AT_ONCE)
        self._tasks = Tasks("packages")

    async def __aexit__(self, *_: object) -> None:
        await self._tasks.aclose()

    async def restore(self) -> None:
        """After a start, when all channels are loaded: clear away what nobody needs."""
        fleet, targets = self._fleet, self._fleet.targets
        used = fleet.ccids()
        spare: Sequence[Ccid] = []
        try:
            fleet.installed |= set(await asyncio.to_thread(self._store.list))
            await asyncio.to_thread(
                targets.drop_placements, lambda one: one not in used
            )
            wanted = used | targets.kept.keys()
            spare = await asyncio.to_thread(self._store.sweep, wanted)
        except StorageError as error:
            _log.warning("packages not cleaned up", error=error.message)
        for ccid in spare:
            _log.info("removing a package that no chaincode uses", ccid=ccid)
            _ = self.retire(ccid, purge=True)

    # ---- what clients and users ask

    async def install(self, package: bytes, mspid: str) -> StoredPackage:
        """Keep a package until it is removed; it is launched if a definition names it.

        Raises: PackageInvalid. AlreadyExists: the organisation has it. TooManyRequests:
            too many packages come at once. StorageError.
        Cancelled: it is installed all the same.
        """
        if self._installing >= _AT_ONCE:
            raise TooManyRequests(
                f"{self._installing} packages are being installed already",
                hint="install it again when these are done",
                limit=_AT_ONCE,
            )
        self._installing += 1
        try:
            return await finish(self._install(package, mspid))
        finally:
            self._installing -= 1

    async def _install(self, package: bytes, mspid: str) -> StoredPackage:
        fleet, targets = self._fleet, self._fleet.targets
        async with self._storing:
            stored = await asyncio.to_thread(self._store.add, package)
            ccid = stored.ccid
            if self._has(ccid, mspid):
                raise AlreadyExists(
                    f"chaincode already successfully installed (package ID '{ccid}')",
                    ccid=ccid,
                )
            await asyncio.to_thread(targets.keep, ccid, mspid)
            if is_new := ccid not in fleet.installed:
                await asyncio.to_thread(targets.revive, ccid)
                fleet.installed.add(ccid)
        if is_new:
            for tell in self.arrived:
                tell(ccid)
        return stored

    def _has(self, ccid: Ccid, mspid: str) -> bool:
        """Whether an organisation has a package; what `deploy` brought, all have."""
        kept = self._fleet.targets.kept.get(ccid, {mspid})
        return ccid in self._fleet.installed and mspid in kept

    def list(self, mspid: str | None = None) -> list[dict[str, Any]]:
        """Return the packages that an organisation has, or all, by id.

        Each has `package_id`, `installed_by` (MSP ids; [] = `deploy` brought it) and
        `chaincodes`, {"channel", "name", "version"} of those that run it.
        """
        users: dict[Ccid, list[dict[str, Any]]] = {}
        for one in self._fleet.all():
            user = {"channel": one.channel, "name": one.name}
            user["version"] = one.approval.version
            users.setdefault(one.ccid, []).append(user)
        return [
            {
                "package_id": ccid,
                "installed_by": sorted(self._fleet.targets.kept.get(ccid, ())),
                "chaincodes": users.get(ccid, []),
            }
            for ccid in sorted(self._fleet.installed)
            if mspid is None or self._has(ccid, mspid)
        ]

    async def content(self, ccid: Ccid) -> bytes:
        """Return the bytes of a package as they came. Raises: NotFound, StorageError."""
        async with self._reading:
            return await asyncio.to_thread(self._store.read, ccid)

    async def remove(self, ccid: Ccid) -> None:
        """Remove an installed package, and its builds, for good.

        Raises: NotFound. InvalidInput: a name runs it. StorageError.
        """
        if ccid not in self._fleet.installed:
            raise NotFound(
                f"package {ccid!r} is not installed",
                hint="list what is: chaindock packages ls",
                ccid=ccid,
            )
        if names := self._fleet.names_of(ccid):
            raise InvalidInput(
                f"package {ccid!r} is what {', '.join(names)} runs",
                hint=f"remove that first: chaindock rm {names[0]}",
                ccid=ccid,
            )
        await asyncio.to_thread(self._fleet.targets.keep_no_more, ccid)
        await self.retire(ccid, purge=True)

    # ---- what deployers ask

    @asynccontextmanager
    async def arriving(
        self, package: bytes | Path, name: Name
    ) -> AsyncIterator[StoredPackage]:
        """Store a package for a deployment; if nobody needs it at the end, it goes.

        It is also taken down then: the deployment failed, or its channel was removed.
        """
        with ExitStack() as until_over:
            async with self._storing:
                stored = await asyncio.to_thread(self._store.add, package)
                ccid = stored.ccid
                self._fleet.installed.add(ccid)
                until_over.callback(self._over, ccid)
                self._arriving[ccid] = stored
                until_over.callback(self._arriving.pop, ccid, None)
                until_over.enter_context(self._fleet.expecting(ccid, name))
            yield stored

    async def indexes(self, ccid: Ccid, definition: Definition) -> dict[str, bytes]:
        """Return the index definitions in a package, by their names in its code archive.

        One for a collection that the definition does not have is logged and left out.

        Raises: NotFound, PackageInvalid, StorageError.
        """
        if (stored := self._arriving.get(ccid)) is None:
            stored = await asyncio.to_thread(self._store.get, ccid)
        if not stored.index_names:
            return {}
        files = await asyncio.to_thread(stored.indexes)
        configs = definition.collections.config
        known = {"", *(one.static_collection_config.name for one in configs)}
        for file in [one for one in files if collection_of(one) not in known]:
            name = definition.name
            _log.warning("no collection for an index", chaincode=name, file=file)
            del files[file]
        return files

    def retire(self, ccid: Ccid, *, purge: bool = False) -> asyncio.Task[None]:
        """Stop a package that no name runs and remove it; with `purge` its builds too.

        The package goes last: while it is there, the next start knows what is left to do.
        """
        return self._tasks.start(self._retire(ccid, purge=purge), f"retire {ccid}")

    async def _retire(self, ccid: Ccid, *, purge: bool) -> None:
        # Others may approve any text as the id of a package.
        known = self._fleet.is_installed(ccid) or self._custodian.find(ccid)
        if not known or self._fleet.runs(ccid) or self._fleet.coming(ccid):
            return
        if await self.take_down(ccid, purge=purge):
            await self._discard(ccid)

    async def take_down(self, ccid: Ccid, *, purge: bool = False) -> bool:
        """Stop a package and remove its build; return whether that was done."""
        try:
            await self._custodian.stop(ccid, Target.REMOVED)
            if purge and not self._fleet.names_of(ccid):
                await self._purge(ccid)
        except ChaindockError as error:
            _log.warning(
                "stop or removal of the build failed", ccid=ccid, error=error.message
            )
            return False
        return True

    def _over(self, ccid: Ccid) -> None:
        # Later would be too late: a removal may be under way, which does more.
        if not self._fleet.names_of(ccid):
            _ = self._tasks.start(self._end(ccid), f"discard {ccid}")

    async def _end(self, ccid: Ccid) -> None:
        if self._custodian.find(ccid) and not self._fleet.names_of(ccid):
            _ = await self.take_down(ccid)
        await self._discard(ccid)

    async def _discard(self, ccid: Ccid) -> None:
        targets = self._fleet.targets
        async with self._storing:
            if self._fleet.names_of(ccid):
                return
            try:
                if ccid in self._fleet.installed - targets.kept.keys():
                    self._fleet.installed.discard(ccid)  # before a definition comes
                    with suppress(NotFound):
                        await asyncio.to_thread(self._store.remove, ccid)
                await asyncio.to_thread(targets.drop_placements, ccid.__eq__)
            except ChaindockError as error:
                _log.warning("package not deleted", ccid=ccid, error=error.message)
