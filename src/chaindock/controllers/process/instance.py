"""One built chaincode as a local process: its directory, environment, TLS files, address.

At most one run at a time. Private keys lie in a directory of the run that ends with it.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from chaindock.container.attempt import Phase
from chaindock.container.contracts import CallsBack, Cause, Dial, Exit, RunSettings
from chaindock.container.environment import peer_variables, server_variables
from chaindock.errors import ImageNotFound, StartFailed, is_retryable
from chaindock.platforms.base import Connection
from chaindock.platforms.placeholders import Places
from chaindock.processes.child import Output, Program
from chaindock.processes.environment import (
    base_environment,
    run_path,
    write_tls,
)
from chaindock.processes.removal import remove_tree
from chaindock.processes.watch import Bounds

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from chaindock.container.attempt import Attempt
    from chaindock.container.contracts import PeerConnection
    from chaindock.controllers.process.builds import Build, Builds
    from chaindock.controllers.process.options import ProcessOptions
    from chaindock.ids import Ccid
    from chaindock.processes.child import Child
    from chaindock.processes.sockets import Sockets
    from chaindock.processes.spawner import Spawner
    from chaindock.processes.toolbox import Toolbox
    from chaindock.processes.watch import LimitWatch

LOOPBACK = "127.0.0.1"
REPLACE_GRACE_S = 2.0
MIB = 1024 * 1024
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

    Args:
        ccid: what runs.
        build: what it runs from.
        tools: names of the programs of its toolchain.
        host: objects that all runs of the node share.
    """

    def __init__(
        self, ccid: Ccid, build: Build, tools: Sequence[str], host: Host
    ) -> None:
        self._ccid, self._build, self._tools = ccid, build, tools
        self._host, self._options = host, host.options
        self._stream = ""
        self._turn = asyncio.Lock()
        self._child: Child | None = None
        self._settings = RunSettings()
        self._bounds = Bounds(0, 0, Path())

    @property
    def concurrency(self) -> int | None:
        """Transactions at a time on its stream; None = unlimited."""
        return self._build.launch.concurrency

    async def start(self, peer: PeerConnection, attempt: Attempt) -> CallsBack | Dial:
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
        """Return backend, isolation, build; while it runs more, as `_run_facts`."""
        facts = {
            "backend": "process",
            "isolation": "no isolation",
            "build": self._build.key[:12],
        }
        if self._child is not None and self._child.running:
            facts["pid"] = str(self._child.pid)
            facts["stream"] = self._stream
            facts |= self._run_facts(self._child)
        return facts

    def _run_facts(self, child: Child) -> dict[str, str]:
        """Return `limits`; `settings` of it alone; `weaker`: settings not in force."""
        bounds, program = self._bounds, child.program
        limits = {
            "memory": bounds.memory_bytes,
            "tmp": bounds.tmp_bytes,
            "file size": program.max_file_bytes,
        }
        said = [f"{name} {size // MIB} MiB" for name, size in limits.items() if size]
        if program.max_open_files is not None:
            said.append(f"open files {program.max_open_files}")
        words = self._settings.words
        unmet = [word for word in words.split(", ") if word in _UNMET]
        facts = {"limits": ", ".join(said)}
        if words:
            facts["settings"] = words
        if unmet:
            facts["weaker"] = f"a process takes no {', '.join(unmet)}"
        return facts

    async def _start(
        self, peer: PeerConnection, attempt: Attempt, claim: int
    ) -> CallsBack | Dial:
        if self._host.builds.find(self._build.key) is None:
            raise ImageNotFound(
                f"build {self._build.key[:12]!r} of chaincode {self._ccid!r} is gone",
                image=self._build.key,
            )
        run_id = self._host.spawner.new_run_id()
        private = self._host.spawner.private_dir(run_id)
        try:
            private.mkdir(mode=0o700, parents=True)
            answer, known = await self._address(peer, private)
            self._stream = _told(peer, answer)
            program = self._program(peer, attempt, private, known, claim)
            attempt.enter(Phase.START)
            output = Output(
                partial(attempt.output, stream="stdout"),
                partial(attempt.output, stream="stderr"),
            )
            self._child = await self._host.spawner.spawn(
                run_id, program, attempt, output
            )
            self._settings, self._bounds = peer.settings, self._bounds_of(peer, private)
            self._host.watch.add(self._child, self._bounds)
        except OSError as error:
            remove_tree(private)
            raise StartFailed(
                f"chaincode {self._ccid!r} cannot be prepared: {error}",
                retryable=is_retryable(error),
                **attempt.facts(),
            ) from error
        except BaseException:
            remove_tree(private)
            raise
        return answer

    def _bounds_of(self, peer: PeerConnection, private: Path) -> Bounds:
        options, settings = self._options, peer.settings
        memory, tmp = settings.memory_bytes, settings.tmp_bytes
        return Bounds(
            memory_bytes=options.memory_bytes if memory is None else memory,
            tmp_bytes=options.tmp_bytes if tmp is None else tmp,
            folder=private,
        )

    async def _address(
        self, peer: PeerConnection, private: Path
    ) -> tuple[CallsBack | Dial, dict[str, str]]:
        if self._build.launch.connection is Connection.CALLS_BACK:
            return CallsBack(), {"peer": await peer.listener.address_on(LOOPBACK)}
        listen = self._host.sockets.address_in(private)
        return Dial(listen), {"listen": listen}

    def _program(
        self,
        peer: PeerConnection,
        attempt: Attempt,
        private: Path,
        known: dict[str, str],
        claim: int,
    ) -> Program:
        launch, language = self._build.launch, self._build.language
        places = Places(
            {**known, "output": str(self._build.output), "ccid": self._ccid},
            tool=lambda name: self._host.toolbox.find(name, language),
        )
        tools = [self._host.toolbox.find(name, language) for name in self._tools]
        # What is dialled serves on a socket of its own, without TLS.
        tls = peer.tls if "peer" in known else None
        env = base_environment(private, run_path(tools))
        files = private / "tls"
        env.update(peer_variables(self._ccid, peer, str(files) if tls else None))
        if "listen" in known:
            env.update(server_variables(self._ccid, known["listen"]))
        if tls is not None:
            attempt.enter(Phase.UPLOAD)
            write_tls(tls, files)
        env.update(places.fill_values(launch.env))
        env.update(peer.settings.env)
        argv = places.fill_all(launch.argv)
        return Program(
            argv=[self._executable(argv[0], env["PATH"], attempt), *argv[1:]],
            cwd=Path(places.fill(launch.cwd)),
            env=env,
            kind="run",
            inherits=(claim,),
            max_open_files=peer.settings.open_files or self._options.max_open_files,
            max_file_bytes=peer.settings.file_bytes or self._options.max_file_bytes,
        )

    def _executable(self, name: str, path: str, attempt: Attempt) -> str:
        found = shutil.which(name, path=path)
        if found is None:
            there = os.path.lexists(name)
            end = Exit(126 if there else 127)  # what a shell says
            why = "is not executable" if there else "does not exist"
            raise StartFailed(
                f"program {name!r} of chaincode {self._ccid!r} {why}",
                hint="see what the build wrote to its output",
                **{**attempt.facts(), **end.facts},
            )
        return found


def _told(peer: PeerConnection, answer: CallsBack | Dial) -> str:
    """Return who can connect to the stream, in words for `ps`."""
    if isinstance(answer, Dial):
        return "unix socket of this run"
    return "mutual TLS" if peer.tls is not None else "plain, on loopback"
