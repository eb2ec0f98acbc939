"""A node that a test starts as a user does, and may kill at any instant."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from base64 import b64decode
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlencode

import aiohttp
import psutil

from chaindock.errors import ChaindockError
from chaindock.operations.address import find_socket
from chaindock.operations.facade import Call
from chaindock.operations.wire import call_json, rebuild_error

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

LOST = (aiohttp.ClientError, ConnectionError, FileNotFoundError)
"""What a client sees when the node is gone."""
UP_S = 60.0
GONE_S = 20.0


class Admin:
    """The admin API for many calls at once, each on a connection of its own."""

    def __init__(self, home: Path) -> None:
        connector = aiohttp.UnixConnector(
            str(find_socket(home)), limit=0, force_close=True
        )
        self._session = aiohttp.ClientSession("http://localhost", connector=connector)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def get(self, target: str) -> dict[str, Any]:
        """Return the answer. Raises: ChaindockError; one of LOST."""
        async with self._session.get(target) as answer:
            return await _body(answer)

    async def post(self, target: str) -> dict[str, Any]:
        """Return the answer. Raises: as `get`."""
        async with self._session.post(target) as answer:
            return await _body(answer)

    async def call(
        self, verb: str, name: str, *args: str, timeout_s: float | None = None
    ) -> dict[str, Any]:
        """Invoke or query; return the answer. Raises: as `get`."""
        call = Call(name, [arg.encode() for arg in args], timeout_s=timeout_s)
        body, target = call_json(call), f"/chaincodes/{name}/{verb}"
        async with self._session.post(target, json=body) as answer:
            return await _body(answer)

    async def value(self, name: str, *args: str) -> str:
        """Query; return the payload as text."""
        answer = await self.call("query", name, *args)
        assert answer["status"] < 400, answer
        return b64decode(answer["payload"]).decode()

    async def deploy(
        self, package: Path, name: str, **asked: str
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield the events of a deployment. Raises: ChaindockError when it failed."""
        query = urlencode({"name": name, **asked})
        data = package.read_bytes()
        limit = aiohttp.ClientTimeout(total=None)
        async with self._session.post(
            f"/deploy?{query}", data=data, timeout=limit
        ) as answer:
            if answer.status != 200:
                await _body(answer)
            async for line in answer.content:
                event = json.loads(line)
                if event["event"] == "error":
                    raise rebuild_error(event["error"])
                yield event


async def _body(answer: aiohttp.ClientResponse) -> dict[str, Any]:
    body: dict[str, Any] = await answer.json(content_type=None)
    if answer.status != 200:
        raise rebuild_error(body)
    return body


class CrashNode:
    """The node of one home; ended for certain when it is left.

    Args:
        env: its environment (support.nodes.node.environment).
        backend: process or docker.
        settings: more of them, KEY=VALUE.
    """

    def __init__(
        self,
        home: Path,
        env: Mapping[str, str],
        backend: str,
        settings: Sequence[str] = (),
    ) -> None:
        self.home, self.env = home, env
        self.backend, self._settings = backend, settings
        self.pid: int | None = None
        self._foreground: list[asyncio.subprocess.Process] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.take_down()
        for process in self._foreground:
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def take_down(self) -> None:
        """End it in whatever state it is. Idempotent."""
        with contextlib.suppress(ChaindockError, TimeoutError):
            await self.run("down", "--timeout", "20", "--force")

    @property
    def node_id(self) -> str:
        """What marks everything that belongs to it."""
        return str(json.loads((self.home / "node.json").read_text())["node_id"])

    def admin(self) -> Admin:
        """Return a client."""
        return Admin(self.home)

    async def run(self, *words: str, limit_s: float = UP_S) -> dict[str, Any]:
        """Run the command line with --json; return what it says.

        Raises: ChaindockError as it reports it.
        """
        process = await self._spawn(*words, "--json", stdout=asyncio.subprocess.PIPE)
        try:
            async with asyncio.timeout(limit_s):
                out, _ = await process.communicate()
        except BaseException:
            process.kill()
            await process.wait()
            raise
        found: dict[str, Any] = json.loads(out)
        if process.returncode != 0:
            raise rebuild_error(found)
        return found

    async def up(self) -> float:
        """`up -d`; return how many seconds it took."""
        began = time.monotonic()
        status = await self.run("up", "-d", *self._words())
        self.pid = status["pid"]
        return time.monotonic() - began

    async def up_here(self) -> asyncio.subprocess.Process:
        """`up` without waiting for anything: the node is a child of the test."""
        process = await self._spawn(
            "up", *self._words(), stdout=asyncio.subprocess.DEVNULL
        )
        self._foreground.append(process)
        self.pid = process.pid
        return process

    def kill(self) -> None:
        """SIGKILL the node's process; it may have ended by itself."""
        assert self.pid is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    async def gone(self) -> None:
        """Wait until the process has ended."""
        assert self.pid is not None
        async with asyncio.timeout(GONE_S):
            while alive(self.pid):  # noqa: ASYNC110  # it is not our child
                await asyncio.sleep(0.01)

    @property
    def scratch(self) -> Path:
        """Where it keeps temporary files, and nobody else does."""
        return Path(self.env["TMPDIR"])

    def _words(self) -> list[str]:
        words = ["--backend", self.backend]
        for setting in self._settings:
            words += ["--set", setting]
        return words

    async def _spawn(self, *words: str, stdout: int) -> asyncio.subprocess.Process:
        log = (self.scratch.parent / "commands.err").open("ab")
        with log:
            return await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "chaindock", "--home", str(self.home)),
                *words,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=stdout,
                stderr=log,
                env=self.env,
            )


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
