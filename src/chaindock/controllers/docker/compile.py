"""Build a package in a container: fill it, run the plan's steps, take out the result."""

from __future__ import annotations

import asyncio
import contextlib
import io
import posixpath
import tarfile
import tempfile
from typing import TYPE_CHECKING, Any, BinaryIO

from chaindock.container.contracts import Exit
from chaindock.container.environment import CA_VARIABLES, merged_ca
from chaindock.container.plan import build_deadline, run_plan
from chaindock.controllers.docker import names
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
from chaindock.platforms.base import Places

if TYPE_CHECKING:
    from pathlib import Path

    from chaindock.container.attempt import Attempt
    from chaindock.container.contracts import BuildEnvironment, NodeLabels
    from chaindock.container.plan import StepCommand, StepOutput
    from chaindock.controllers.docker.engine import Engine
    from chaindock.controllers.docker.images import BaseImage
    from chaindock.controllers.docker.options import CompileOptions
    from chaindock.controllers.docker.sandbox import IsolationAudit
    from chaindock.platforms.base import BuildPlan, Platform

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
    """Builds packages of one node; only the steps of a plan get the `environment`."""

    def __init__(
        self,
        engine: Engine,
        node: NodeLabels,
        options: CompileOptions,
        environment: BuildEnvironment,
        audit: IsolationAudit,
    ) -> None:
        self._engine, self._node, self._options = engine, node, options
        self._environment, self._audit = environment, audit

    async def run(
        self,
        plan: BuildPlan,
        platform: Platform,
        tree: Path,
        image: BaseImage,
        attempt: Attempt,
        artifact: BinaryIO,
    ) -> None:
        """Build the package at `tree`; write a tar of {output} to `artifact`.

        Raises: BuildFailed, naming the step; ImageNotFound; EngineError.
        """
        for cache in plan.caches:
            volume = names.cache_volume(cache)
            await self._engine.create_volume(volume, {names.ROLE: "cache"})
        body = self._body(plan, image, attempt)
        async with (
            build_deadline(self._options.limit_s, attempt),
            self._engine.container(body) as container,
        ):
            await self._fill(container, plan, tree)
            await self._engine.start_container(container)
            found = await self._engine.inspect_container(container)
            for lacks in await self._audit.missing(body, found):
                attempt.note(f"the build has {lacks}")
            environment = self._step_environment()
            steps = _ContainerSteps(
                self._engine, container, self._options, environment, attempt
            )
            await run_plan(
                plan,
                platform,
                build_places(),
                steps.run,
                attempt,
                self._options.silence_s,
            )
            await self._take(container, attempt, artifact)

    def _body(
        self, plan: BuildPlan, image: BaseImage, attempt: Attempt
    ) -> dict[str, Any]:
        options = self._options
        host = limits(
            options.memory_bytes,
            options.cpus,
            options.pids,
            CpuShares=options.cpu_shares,
            CgroupParent=options.cgroup_parent,
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
            "NetworkMode": options.network or "default",
            "Dns": list(options.dns),
            "ExtraHosts": list(options.extra_hosts),
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
            "Labels": own_labels(self._node, attempt, "build"),
            "HostConfig": host,
        }

    async def _fill(self, container: str, plan: BuildPlan, tree: Path) -> None:
        places = build_places()
        folders = ["/chaincode", INPUT, OUTPUT, HOME, CACHE]
        folders += [f"{CACHE}/{cache}" for cache in plan.caches]
        folders += [places.fill(step.cwd) for step in plan.steps]
        files = {}
        if self._environment.ca_bundle is not None:
            trusted = await self._trusted(container)
            files[CA_BUNDLE] = merged_ca(self._environment.ca_bundle, trusted)
        owner = int(self._options.user.partition(":")[0] or 0)
        with tempfile.TemporaryFile() as packed:
            await asyncio.to_thread(
                pack_input, packed, tree, INPUT, owner, folders, files
            )
            await self._engine.put_archive(container, "/", chunks_of(packed))

    async def _trusted(self, container: str) -> bytes:
        """Return the certificates of the image; b"" when they are not found."""
        path = _IMAGE_CA
        with contextlib.suppress(NotFound, tarfile.TarError):
            for _ in range(_MAX_LINKS):
                parts = self._engine.get_archive(container, path, _IMAGE_CA_S)
                async with contextlib.aclosing(parts):
                    packed = io.BytesIO(b"".join([part async for part in parts]))
                with tarfile.open(fileobj=packed) as tar:
                    entry = tar.next()
                    if entry is None or not entry.issym():
                        found = entry and tar.extractfile(entry)
                        return found.read() if found else b""
                path = posixpath.join(posixpath.dirname(path), entry.linkname)
        return b""

    def _step_environment(self) -> dict[str, str]:
        found = {"HOME": HOME, **self._environment.variables}
        if self._environment.ca_bundle is not None:
            found |= dict.fromkeys(CA_VARIABLES, CA_BUNDLE)
        return found

    async def _take(self, container: str, attempt: Attempt, artifact: BinaryIO) -> None:
        size, limit, silence_s = (
            0,
            self._options.artifact_bytes,
            self._options.silence_s,
        )
        parts = self._engine.get_archive(container, f"{OUTPUT}/.", silence_s)
        async with contextlib.aclosing(parts):
            async for part in parts:
                size += len(part)
                if size > limit:
                    raise BuildFailed(
                        f"the build left more than {limit} bytes behind",
                        hint="see what it writes to the place of its result",
                        **attempt.facts(),
                    )
                await asyncio.to_thread(artifact.write, part)


class _ContainerSteps:
    """Runs the programs of a plan in a container."""

    def __init__(
        self,
        engine: Engine,
        container: str,
        options: CompileOptions,
        environment: dict[str, str],
        attempt: Attempt,
    ) -> None:
        self._engine, self._container, self._options = engine, container, options
        self._environment, self._attempt = environment, attempt

    async def run(self, command: StepCommand, output: StepOutput) -> Exit:
        """Run one program to its end."""
        body = {
            "Cmd": command.argv,
            "WorkingDir": command.cwd,
            "Env": assignments({**self._environment, **command.env}),
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
                        lines.feed(part)
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
