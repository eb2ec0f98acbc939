"""Run the steps of a build plan in a container and take out what they leave.

Owns:    the build container: its body, input, steps, limits, removal.
Not:     what the steps are (platforms), the image made of the result (images.py).
Entry:   Compiler.run
Holds:   output is read while a step runs; registry settings and certificates reach the
         steps and nothing else; the container never outlives the call.
Source:  launch.md §3.4, §9 W24, W25, W28, W31, W39; needs.md rows 2, 5, 35
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import posixpath
import ssl
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from chaindock.aio import finish
from chaindock.container.attempt import Phase
from chaindock.container.contracts import Exit
from chaindock.container.environment import CA_VARIABLES
from chaindock.controllers.docker import names
from chaindock.controllers.docker.archives import pack_input
from chaindock.controllers.docker.body import (
    assignments,
    limits,
    own_labels,
    ulimits,
)
from chaindock.controllers.docker.kernel import ended_for_memory
from chaindock.controllers.docker.options import Ulimit
from chaindock.controllers.docker.places import (
    CA_BUNDLE,
    CACHE,
    HOME,
    INPUT,
    OUTPUT,
    build_places,
)
from chaindock.controllers.docker.streams import OutputLines, chunks_of
from chaindock.errors import (
    BuildFailed,
    BuildSilent,
    ConfigInvalid,
    EngineError,
    EngineTimeout,
    NotFound,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from chaindock.container.attempt import Attempt
    from chaindock.container.contracts import BuildEnvironment, NodeLabels
    from chaindock.controllers.docker.engine import Engine
    from chaindock.controllers.docker.images import BaseImage
    from chaindock.controllers.docker.options import CompileOptions
    from chaindock.controllers.docker.walls import Walls
    from chaindock.platforms.base import BuildPlan, Step

    MayPass = Callable[[Step, Sequence[str]], bool]

_IMAGE_CA, _IMAGE_CA_S = "/etc/ssl/certs/ca-certificates.crt", 60.0
_MOST_LINKS = 4
_UNUSABLE = "the builder image does not stay up: it has no program 'sleep'"
_NOT_RUN, _KILLED, _TOO_LARGE = 126, 128 + 9, 128 + 25
_BUILD_FILES = 16 * 1024  # package managers open many at once


class Compiler:
    """Builds packages of one node.

    Args:
        environment: what the steps need to reach package registries.
        walls: looks whether a build container is as confined as asked; None = nobody.
    """

    def __init__(
        self,
        engine: Engine,
        node: NodeLabels,
        options: CompileOptions,
        environment: BuildEnvironment,
        walls: Walls | None = None,
    ) -> None:
        self._engine, self._node, self._options = engine, node, options
        self._environment, self._walls = environment, walls

    async def run(
        self,
        plan: BuildPlan,
        tree: Path,
        image: BaseImage,
        attempt: Attempt,
        artifact: BinaryIO,
        is_retryable: MayPass = lambda _step, _lines: False,
    ) -> None:
        """Build the unpacked package at `tree`; write a tar of {output} to `artifact`.

        `is_retryable` tells from the last lines whether a failed step may succeed later.

        Raises: BuildFailed, naming the step; ImageNotFound; EngineError.
        Cancelled, or any error: the container is gone.
        """
        for cache in plan.caches:
            volume = names.cache_volume(cache)
            await self._engine.create_volume(volume, {names.ROLE: "cache"})
        body = self._body(plan, image, attempt)
        container = ""
        try:
            async with asyncio.timeout(self._options.limit_s):
                container = await finish(
                    self._engine.create_container(None, body),
                    self._engine.remove_container,
                )
                await self._fill(container, plan, tree)
                await self._engine.start_container(container)
                if self._walls is not None:
                    found = await self._engine.inspect_container(container)
                    for lacks in await self._walls.missing(body, found):
                        attempt.note(f"the build has {lacks}")
                for step in plan.steps:
                    await self._step(container, step, attempt, is_retryable)
                await self._take(container, attempt, artifact)
        except TimeoutError as error:
            raise self._failed(
                attempt, f"the build took longer than {self._options.limit_s:g} s"
            ) from error
        finally:
            if container:
                await finish(self._engine.remove_container(container))

    def _body(
        self, plan: BuildPlan, image: BaseImage, attempt: Attempt
    ) -> dict[str, Any]:
        options = self._options
        host = limits(options.memory_bytes, options.cpus, options.pids)
        if options.cpu_shares:
            host["CpuShares"] = options.cpu_shares
        if options.cgroup_parent:
            host["CgroupParent"] = options.cgroup_parent
        host |= {
            "Init": True,
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"],
            "Ulimits": ulimits(
                Ulimit("core", 0, 0),
                Ulimit("nofile", _BUILD_FILES, _BUILD_FILES),
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
            # Ends by itself should we be gone; the steps are run beside it.
            "Entrypoint": [],
            "Cmd": ["sleep", str(int(options.limit_s) + 60)],
            "User": options.user,
            "WorkingDir": "/",
            "Labels": own_labels(self._node, attempt, "build"),
            "HostConfig": host,
        }

    async def _fill(self, container: str, plan: BuildPlan, tree: Path) -> None:
        places = build_places()
        folders = ["/chaincode", INPUT, OUTPUT]
        folders += [HOME, CACHE]
        folders += [f"{CACHE}/{cache}" for cache in plan.caches]
        folders += [places.fill(step.cwd) for step in plan.steps]
        files = {}
        if self._environment.ca_bundle is not None:
            files[CA_BUNDLE] = await self._certificates(container)
        owner = int(self._options.user.partition(":")[0] or 0)
        with tempfile.TemporaryFile() as packed:
            await asyncio.to_thread(
                pack_input,
                packed,
                tree,
                under=INPUT,
                owner=owner,
                folders=folders,
                files=files,
            )
            await self._engine.put_archive(container, "/", lambda: chunks_of(packed))

    async def _certificates(self, container: str) -> bytes:
        """Return the user's extra certificates and those that the image trusts.

        Most tools take one file instead of their own list, so it must hold both.
        """
        path = self._environment.ca_bundle
        assert path is not None  # noqa: S101  # the caller looked
        try:
            extra = path.read_bytes()
        except OSError as error:
            raise ConfigInvalid(
                f"CA bundle {str(path)!r} cannot be read: {error.strerror}",
                hint="name a readable PEM file",
                key="ca_bundle",
            ) from error
        trusted = await self._trusted(container)
        if not trusted:
            known = ssl.get_default_verify_paths().cafile
            trusted = Path(known).read_bytes() if known else b""
        return extra.rstrip() + b"\n" + trusted

    async def _trusted(self, container: str) -> bytes:
        """Return the certificates of the image; b"" when they are not found."""
        path, links = _IMAGE_CA, 0
        while links < _MOST_LINKS:
            try:
                parts = self._engine.get_archive(container, path, _IMAGE_CA_S)
                async with contextlib.aclosing(parts):
                    packed = io.BytesIO(b"".join([part async for part in parts]))
                with tarfile.open(fileobj=packed) as tar:
                    entry = tar.next()
                    if entry is None or not entry.issym():
                        found = entry and tar.extractfile(entry)
                        return found.read() if found else b""
            except (NotFound, tarfile.TarError):
                break
            links += 1
            path = posixpath.join(posixpath.dirname(path), entry.linkname)
        return b""

    def _environ(self, step: Step) -> list[str]:
        environment = dict(self._environment.variables)
        if self._environment.ca_bundle is not None:
            environment |= dict.fromkeys(CA_VARIABLES, CA_BUNDLE)
        environment |= build_places().fill_values(step.env)
        return [f"HOME={HOME}", *assignments(environment)]

    async def _step(
        self, container: str, step: Step, attempt: Attempt, is_retryable: MayPass
    ) -> None:
        attempt.enter(Phase(step.phase))
        places = build_places()
        argv = places.fill_all(step.argv)
        body = {
            "Cmd": argv,
            "WorkingDir": places.fill(step.cwd),
            "Env": self._environ(step),
            "User": self._options.user,
            "AttachStdout": True,
            "AttachStderr": True,
        }
        lines = OutputLines(lambda line, _: attempt.output(line, "build"))
        code, name = 0, step.title or " ".join(argv)
        run = self._engine.execute(container, body, self._options.silence_s)
        try:
            async with contextlib.aclosing(run):
                async for part in run:
                    if isinstance(part, bytes):
                        lines.feed(part)
                    else:
                        code = part
        except EngineTimeout as error:
            raise BuildSilent(
                f"build step {name!r} printed nothing for {self._options.silence_s:g} s",
                hint="look at its last lines; a registry may be unreachable. The limit "
                "is chaindock.build.silence",
                step=name,
                limit_s=self._options.silence_s,
                retryable=step.phase == "dependencies",
                **attempt.facts(),
            ) from error
        except EngineError as error:
            # Engines tell this in several ways, so the container is looked at.
            if (await self._state(container)).get("Running", True):
                raise
            raise self._failed(attempt, _UNUSABLE) from error
        finally:
            lines.end()
        if code != 0:
            retryable = is_retryable(step, attempt.tail())
            raise await self._ended(container, name, code, attempt, retryable=retryable)

    async def _ended(
        self,
        container: str,
        name: str,
        code: int,
        attempt: Attempt,
        *,
        retryable: bool,
    ) -> BuildFailed:
        unclear = code in {_KILLED, _NOT_RUN}
        state = await self._state(container) if unclear else {}
        oom = bool(state.get("OOMKilled"))
        if code == _KILLED and not oom:
            oom = await ended_for_memory(container)
        why = f"build step {name!r} ended with exit code {code}"
        if code == _NOT_RUN and not state.get("Running", True):
            why = _UNUSABLE
        if code == _TOO_LARGE:
            limit = self._options.artifact_bytes
            why = f"build step {name!r} wrote a file of more than {limit} bytes"
        if oom:
            limit = self._options.memory_bytes
            why = f"build step {name!r} needed more than its {limit} bytes of memory"
        facts = Exit(code, oom=oom).facts
        return self._failed(attempt, why, step=name, retryable=retryable, **facts)

    async def _state(self, container: str) -> dict[str, Any]:
        with contextlib.suppress(NotFound):
            found = (await self._engine.inspect_container(container)).get("State")
            return dict(found or {})
        return {}

    async def _take(self, container: str, attempt: Attempt, artifact: BinaryIO) -> None:
        size, limit = 0, self._options.artifact_bytes
        parts = self._engine.get_archive(
            container, f"{OUTPUT}/.", self._options.silence_s
        )
        async with contextlib.aclosing(parts):
            async for part in parts:
                size += len(part)
                if size > limit:
                    raise self._failed(
                        attempt, f"the build left more than {limit} bytes behind"
                    )
                await asyncio.to_thread(artifact.write, part)

    def _failed(
        self, attempt: Attempt, why: str, hint: str = "", **facts: Any
    ) -> BuildFailed:
        last = attempt.tail()[-1:]
        return BuildFailed(
            f"{why}; its last line: {last[0]!r}" if last else why,
            hint=hint or "read the whole output of the build",
            **{**attempt.facts(), **facts},
        )
