"""Build a package in a container: fill it, run the plan's steps, take out the result."""

from __future__ import annotations

import asyncio
import contextlib
import io
import posixpath
import tarfile
import tempfile
from pathlib import Path
from typing import Any, BinaryIO

from chaindock.container.attempt import Attempt
from chaindock.container.contracts import BuildEnvironment, Exit
from chaindock.container.environment import CA_VARIABLES, merged_ca
from chaindock.container.plan import StepOutput, build_deadline, run_plan
from chaindock.controllers.docker import names
from chaindock.controllers.docker.images import BaseImage
from chaindock.controllers.docker.instance import EngineSession
from chaindock.controllers.docker.options import Ulimit
from chaindock.controllers.docker.sandbox import (
    assignments,
    killed_for_memory,
    limits,
    own_labels,
    ulimits,
)
from chaindock.controllers.docker.streams import OutputLines, chunks_of, pack_input
from chaindock.errors import BuildFailed, EngineError, NotFound
from chaindock.platforms.base import BuildPlan, Places, Platform, Step

INPUT, OUTPUT = "/chaincode/input", "/chaincode/output"
CACHE, HOME = "/chaincode/cache", "/chaincode/home"
CA_BUNDLE = "/chaincode/ca.pem"
_IMAGE_CA, _IMAGE_CA_S = "/etc/ssl/certs/ca-certificates.crt", 60.0
_MAX_LINKS = 4
_UNUSABLE = "the builder image does not stay up: it has no program 'sleep'"
_NOT_RUN, _KILLED, _TOO_LARGE = 126, 128 + 9, 128 + 25
_OPEN_FILES = 16 * 1024  # package managers open many at once


def build_places() -> Places:
    """Return the places of a build container; programs are on its PATH."""
    known = {"input": INPUT, "output": OUTPUT}
    return Places(known, tool=str, cache=f"{CACHE}/{{}}".format)


class Compiler:
    """One build in a container; only its steps get the `environment`."""

    def __init__(
        self, session: EngineSession, environment: BuildEnvironment, attempt: Attempt
    ) -> None:
        self._session, self._engine = session, session.engine
        self._options, self._container = session.options.compile, ""
        self._environment, self._attempt = environment, attempt

    async def run(
        self,
        plan: BuildPlan,
        platform: Platform,
        tree: Path,
        image: BaseImage,
        artifact: BinaryIO,
    ) -> None:
        """Build the package at `tree`; write a tar of {output} to `artifact`.

        Raises: BuildFailed, naming the step; ImageNotFound; EngineError.
        """
        options, attempt = self._options, self._attempt
        for cache in plan.caches:  # one that is there stays
            labels = {names.ROLE: "cache"}
            volume = {"Name": names.cache_volume(cache), "Labels": labels}
            await self._engine.call("POST", "volumes/create", volume)
        body = self._body(plan, image)
        network = options.network or await self._session.networks.for_builds()
        body["HostConfig"]["NetworkMode"] = network
        async with (
            build_deadline(options.limit_s, attempt),
            self._engine.container(body) as self._container,
        ):
            await self._fill(plan, tree)
            if not options.network:  # made again if somebody pruned it meanwhile
                await self._session.networks.for_builds()
            await self._engine.start_container(self._container)
            found = await self._engine.inspect_container(self._container)
            for lacks in await self._session.audit.missing(body, found):
                attempt.note(f"the build is less isolated than asked: {lacks}")
            places, silence_s = build_places(), options.silence_s
            await run_plan(plan, platform, places, self._step, attempt, silence_s)
            await self._take(artifact)

    def _body(self, plan: BuildPlan, image: BaseImage) -> dict[str, Any]:
        options, sandbox = self._options, self._session.options.sandbox
        host = limits(
            options.memory_bytes,
            options.pids,
            CpuShares=options.cpu_shares,
            CgroupParent=sandbox.cgroup_parent,
        )
        host |= {
            "Init": True,
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"],
            "Ulimits": ulimits(
                Ulimit("core", 0, 0),
                Ulimit("nofile", _OPEN_FILES, _OPEN_FILES),
                Ulimit("fsize", options.artifact_bytes, options.artifact_bytes),
            ),
            "LogConfig": {"Type": "json-file", "Config": {"max-size": "1m"}},
            "Dns": list(sandbox.dns),
            "ExtraHosts": list(sandbox.extra_hosts),
            "Mounts": [
                {
                    "Type": "volume",
                    "Source": names.cache_volume(cache),
                    "Target": f"{CACHE}/{cache}",
                }
                for cache in plan.caches
            ],
        }
        return {
            "Image": image.id,
            # It ends by itself when this process does not; the steps run beside it.
            "Entrypoint": [],
            "Cmd": ["sleep", str(int(options.limit_s) + 60)],
            "User": options.user,
            "WorkingDir": "/",
            "Labels": own_labels(self._session.node, self._attempt, "build"),
            "HostConfig": host,
        }

    async def _fill(self, plan: BuildPlan, tree: Path) -> None:
        places = build_places()
        folders = ["/chaincode", INPUT, OUTPUT, HOME, CACHE]
        folders += [f"{CACHE}/{cache}" for cache in plan.caches]
        folders += [places.fill(step.cwd) for step in plan.steps]
        files = {}
        if self._environment.ca_bundle is not None:
            trusted = await self._trusted()
            files[CA_BUNDLE] = merged_ca(self._environment.ca_bundle, trusted)
        owner = int(self._options.user.partition(":")[0] or 0)
        with tempfile.TemporaryFile() as packed:
            await asyncio.to_thread(
                pack_input, packed, tree, INPUT, owner, folders, files
            )
            await self._engine.put_archive(self._container, "/", chunks_of(packed))

    async def _trusted(self) -> bytes:
        """Return the certificates of the image; b"" when they are not found."""
        path = _IMAGE_CA
        with contextlib.suppress(NotFound, tarfile.TarError):
            for _ in range(_MAX_LINKS):
                parts = self._engine.get_archive(self._container, path, _IMAGE_CA_S)
                async with contextlib.aclosing(parts):
                    packed = io.BytesIO(b"".join([part async for part in parts]))
                with tarfile.open(fileobj=packed) as tar:
                    entry = tar.next()
                    if entry is None or not entry.issym():
                        found = entry and tar.extractfile(entry)
                        return found.read() if found else b""
                path = posixpath.join(posixpath.dirname(path), entry.linkname)
        return b""

    async def _take(self, artifact: BinaryIO) -> None:
        size, limit = 0, self._options.artifact_bytes
        silence_s = self._options.silence_s
        parts = self._engine.get_archive(self._container, f"{OUTPUT}/.", silence_s)
        async with contextlib.aclosing(parts):
            async for part in parts:
                size += len(part)
                if size > limit:
                    raise BuildFailed(
                        f"the build left more than {limit} bytes behind",
                        hint="see what it writes to the place of its result",
                        **self._attempt.facts(),
                    )
                await asyncio.to_thread(artifact.write, part)

    async def _step(self, command: Step, output: StepOutput) -> Exit:
        given = {"HOME": HOME, **self._environment.variables}
        if self._environment.ca_bundle is not None:
            given |= dict.fromkeys(CA_VARIABLES, CA_BUNDLE)
        body = {
            "Cmd": command.argv,
            "WorkingDir": command.cwd,
            "Env": assignments({**given, **command.env}),
            "User": self._options.user,
            "AttachStdout": True,
            "AttachStderr": True,
        }
        lines, code = OutputLines(lambda line, _: output.line(line)), 0
        run = self._engine.execute(self._container, body)
        try:
            async with contextlib.aclosing(run):
                async for part in run:
                    if isinstance(part, bytes):
                        output.active()
                        await lines.feed(part)
                    else:
                        code = part
        except EngineError as error:
            # Engines tell this in several ways, so the container is looked at.
            if (await self._state()).get("Running", True):
                raise
            raise self._unusable() from error
        finally:
            lines.end()
        return await self._judge(code)

    async def _judge(self, code: int) -> Exit:
        state = await self._state() if code in {_KILLED, _NOT_RUN} else {}
        oom = bool(state.get("OOMKilled"))
        if code == _KILLED and not oom:
            oom = await killed_for_memory(self._container)
        if code == _NOT_RUN and not state.get("Running", True):
            raise self._unusable()
        reason = ""
        if oom:
            reason = f"it needed more than its {self._options.memory_bytes} bytes"
        elif code == _TOO_LARGE:
            limit = self._options.artifact_bytes
            reason = f"it wrote a file of more than {limit} bytes"
        return Exit(code, oom=oom, reason=reason)

    async def _state(self) -> dict[str, Any]:
        with contextlib.suppress(NotFound):
            found = await self._engine.inspect_container(self._container)
            return dict(found.get("State") or {})
        return {}

    def _unusable(self) -> BuildFailed:
        hint = "name another builder image"
        return BuildFailed(_UNUSABLE, hint=hint, **self._attempt.facts())
