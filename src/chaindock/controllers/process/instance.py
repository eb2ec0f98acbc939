"""One built chaincode as a local process: its directory, environment, TLS files, address.

At most one run at a time. Private keys lie in a directory of the run that ends with it.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from chaindock.container.attempt import Attempt, Phase
from chaindock.container.contracts import Cause, Dial, Exit, PeerConnection, RunSettings
from chaindock.container.environment import peer_variables, server_variables
from chaindock.controllers.process.builds import Build, Builds
from chaindock.controllers.process.options import ProcessOptions
from chaindock.errors import ImageNotFound, StartFailed, is_retryable
from chaindock.ids import Ccid
from chaindock.platforms.base import Connection, Places
from chaindock.processes.child import Child, Output, Program
from chaindock.processes.folders import (
    Sockets,
    base_environment,
    remove_tree,
    write_tls,
)
from chaindock.processes.sandbox import PEER, find_bwrap, in_sandbox
from chaindock.processes.spawner import Spawner
from chaindock.processes.table import Bounds, LimitWatch
from chaindock.processes.toolbox import SYSTEM_PATH, Toolbox
from chaindock.telemetry import get_logger
from chaindock.values import MIB

_log = get_logger("process")
LOOPBACK = "127.0.0.1"
REPLACE_GRACE_S = 2.0
MOST_PROCESSES = 512
"""Processes of one run in a sandbox; a run that has more is killed."""
SANDBOX = "sandbox: own files and processes, and no network but the node"
_UNMET = {"cpus", "pids", "network", "extraHosts", "user"}
"""Settings of one chaincode that only a container can enforce."""


@dataclass(frozen=True)
class Host:
    """Objects that all runs of one node share."""

    options: ProcessOptions
    builds: Builds
    spawner: Spawner
    toolbox: Toolbox
    sockets: Sockets
    watch: LimitWatch


class ProcessInstance:
    """Implements container.contracts.Instance.

    `tools` are the programs of its toolchain; `host` serves all runs of the node.
    """

    def __init__(
        self, ccid: Ccid, build: Build, tools: Sequence[str], host: Host
    ) -> None:
        self._ccid, self._build, self._tools, self._host = ccid, build, tools, host
        self._stream, self._isolation = "", "no isolation"
        self._turn = asyncio.Lock()
        self._child: Child | None = None
        self._settings = RunSettings()
        self._bounds = Bounds(0, 0, Path())

    @property
    def concurrency(self) -> int | None:
        """Transactions at a time on its stream; None = unlimited."""
        return self._build.launch.concurrency

    async def start(self, peer: PeerConnection, attempt: Attempt) -> Dial | None:
        """Start a run; see the contract.

        Raises:
            StartFailed: the program cannot be started. ToolMissing. ImageNotFound: the
                build is gone; build again.
        """
        async with self._turn:
            attempt.enter(Phase.CREATE)
            await self._host.spawner.end_runs_of(self._ccid, REPLACE_GRACE_S)
            with self._host.builds.claim(self._build.key) as claim:
                return await self._start(peer, attempt, claim)

    async def wait(self) -> Exit:
        """Wait until the current run has ended."""
        if self._child is None:
            return Exit(None, reason="was not started", cause=Cause.NOT_STARTED)
        return await self._child.wait()

    async def stop(self, grace_s: float) -> None:
        """SIGTERM the group, `grace_s`, SIGKILL it; return when it is gone."""
        async with self._turn:
            child = self._child
        if child is not None:
            await child.end(grace_s)

    async def probe(self) -> None:
        """Try nothing: a process and the node share one network."""

    def describe(self) -> Mapping[str, str]:
        """Return backend, isolation, build; while it runs pid, stream and `limits`.

        `settings` names those of this chaincode alone, `weaker` those not in force.
        """
        key, child = self._build.key, self._child
        facts = {"backend": "process", "isolation": self._isolation, "build": key[:12]}
        if child is None or not child.running:
            return facts
        limits = {
            "memory": self._bounds.memory_bytes,
            "tmp": self._bounds.tmp_bytes,
            "file size": child.program.max_file_bytes,
        }
        said = [f"{name} {size // MIB} MiB" for name, size in limits.items() if size]
        said.append(f"open files {child.program.max_open_files}")
        facts |= {"pid": str(child.pid), "stream": self._stream}
        facts["limits"] = ", ".join(said)
        if words := self._settings.words:
            facts["settings"] = words
        if unmet := [word for word in words.split(", ") if word in _UNMET]:
            facts["weaker"] = f"a process takes no {', '.join(unmet)}"
        return facts

    async def _start(
        self, peer: PeerConnection, attempt: Attempt, claim: int
    ) -> Dial | None:
        host, options, settings = self._host, self._host.options, peer.settings
        if host.builds.find(self._build.key) is None:
            raise ImageNotFound(
                f"build {self._build.key[:12]!r} of chaincode {self._ccid!r} is gone",
                image=self._build.key,
            )
        run_id, language = host.spawner.new_run_id(), self._build.language
        private = host.spawner.private_dir(run_id)
        memory, tmp = settings.memory_bytes, settings.tmp_bytes
        bounds = Bounds(
            options.memory_bytes if memory is None else memory,
            options.tmp_bytes if tmp is None else tmp,
            private,
            MOST_PROCESSES if await self._needs_sandbox(attempt) else 0,
        )
        takes = Output(
            partial(attempt.output, stream="stdout"),
            partial(attempt.output, stream="stderr"),
        )
        try:
            private.mkdir(mode=0o700, parents=True)
            sandbox = bool(bounds.processes)
            known = await self._address(peer, private, sandbox=sandbox)
            program = self._program(peer, attempt, private, known, claim)
            attempt.enter(Phase.START)
            if sandbox:
                seen = [Path(host.toolbox.find(n, language)) for n in self._tools]
                seen += [Path(program.argv[0]), self._build.output]
                serves = known.get("listen", "")
                program = in_sandbox(
                    program,
                    private,
                    seen,
                    None if serves else peer.listener,
                    serves,
                    bounds.tmp_bytes,
                )
            self._child = await host.spawner.spawn(run_id, program, attempt, takes)
            self._settings, self._bounds = settings, bounds
            host.watch.add(self._child, bounds)
        except BaseException as error:
            remove_tree(private)
            if not isinstance(error, OSError):
                raise
            raise StartFailed(
                f"chaincode {self._ccid!r} cannot be prepared: {error}",
                retryable=is_retryable(error),
                **attempt.facts(),
            ) from error
        return Dial(known["listen"]) if "listen" in known else None

    async def _address(
        self, peer: PeerConnection, private: Path, *, sandbox: bool
    ) -> dict[str, str]:
        if self._build.launch.connection is not Connection.CALLS_BACK:
            self._stream = "unix socket of this run"
            return {"listen": self._host.sockets.address_in(private)}
        self._stream = "mutual TLS" if peer.tls else "plain, on loopback"
        return {"peer": PEER if sandbox else await peer.listener.address_on(LOOPBACK)}

    async def _needs_sandbox(self, attempt: Attempt) -> bool:
        """Say whether a sandbox is made. Raises: StartFailed: required and impossible."""
        wanted = self._host.options.sandbox
        words, why = await asyncio.to_thread(find_bwrap, wanted)
        self._isolation = SANDBOX if words else f"no isolation (sandbox: {why})"
        if not words and wanted == "require":
            raise StartFailed(
                f"chaincode {self._ccid!r} needs a sandbox "
                f"(chaindock.process.sandbox: require): {why}",
                hint="install bubblewrap, and allow user namespaces",
                **attempt.facts(),
            )
        if not words and wanted == "auto":
            _log.warning(
                "chaincode runs without a sandbox", ccid=self._ccid, reason=why
            )
        return bool(words)

    def _program(
        self,
        peer: PeerConnection,
        attempt: Attempt,
        private: Path,
        known: dict[str, str],
        claim: int,
    ) -> Program:
        host, launch, language = self._host, self._build.launch, self._build.language
        places = Places(
            {**known, "output": str(self._build.output), "ccid": self._ccid},
            tool=lambda name: host.toolbox.find(name, language),
        )
        tools = [host.toolbox.find(name, language) for name in self._tools]
        # What is dialled serves on a socket of its own, without TLS.
        tls = peer.tls if "peer" in known else None
        path = [*(str(Path(tool).parent) for tool in tools), *SYSTEM_PATH]
        env = base_environment(private, path)
        files = private / "tls"
        env |= peer_variables(self._ccid, peer, str(files) if tls else None)
        if "listen" in known:
            env |= server_variables(self._ccid, known["listen"])
        if tls is not None:
            attempt.enter(Phase.UPLOAD)
            write_tls(tls, files)
        env |= places.fill_values(launch.env) | dict(peer.settings.env)
        name, *words = places.fill_all(launch.argv)
        found = shutil.which(name, path=env["PATH"])
        if found is None:
            there = os.path.lexists(name)
            why = "is not executable" if there else "does not exist"
            end = Exit(126 if there else 127)  # what a shell says
            raise StartFailed(
                f"program {name!r} of chaincode {self._ccid!r} {why}",
                hint="see what the build wrote to its output",
                **{**attempt.facts(), **end.facts},
            )
        return Program(
            argv=[found, *words],
            cwd=Path(places.fill(launch.cwd)),
            env=env,
            kind="run",
            inherits=(claim,),
            max_open_files=peer.settings.open_files or host.options.max_open_files,
            max_file_bytes=peer.settings.file_bytes or host.options.max_file_bytes,
        )
