"""Find the programs of a toolchain on this machine, and their versions.

A program is asked for its version once, until its file changes. The answer outlives the
node, except that of a shell script: the script may be a version manager's, whose answer
depends on something else.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from chaindock.errors import ToolMissing
from chaindock.platforms.base import Tool
from chaindock.platforms.registry import TOOLS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

VERSION_LIMIT_S = 15.0
_KEPT_ANSWERS = 50


class Toolbox:
    """Programs on a PATH.

    Args:
        path: PATH value to look on.
        env: environment of version queries.
        memory: file that keeps the answers; None = only in this object.
    """

    def __init__(
        self, path: str, env: Mapping[str, str], memory: Path | None = None
    ) -> None:
        self._path, self._env, self._memory = path, env, memory
        self._versions: dict[str, str] | None = None
        self._kept: dict[str, str] = {}

    def find(self, name: str, language: str) -> str:
        """Return the path of a program.

        Raises:
            ToolMissing: it is not there; says for which language, and what to install.
        """
        found = shutil.which(name, path=self._path)
        if found is None:
            tool = TOOLS.get(name)
            install = tool.install if tool else f"install {name}"
            raise ToolMissing(
                f"program {name!r}, which {language} chaincode needs, is not on the "
                f"PATH ({self._path})",
                hint=f"{install}, or run this chaincode with --backend docker",
                tool=name,
                language=language,
            )
        return str(Path(found).absolute())

    async def versions(self, names: Sequence[str], language: str) -> dict[str, str]:
        """Return what each program prints for its version.

        Raises: ToolMissing.
        """
        answers = await asyncio.gather(*(self._version(n, language) for n in names))
        return dict(zip(names, answers, strict=True))

    async def _version(self, name: str, language: str) -> str:
        path = Path(self.find(name, language))
        identity = _identity(path)
        if self._versions is None:
            self._kept = self._load()
            self._versions = dict(self._kept)
        if identity not in self._versions:
            tool = TOOLS.get(name, Tool(name, ""))
            # A program without a version (a plain sh) is known by its file.
            answer = await self._ask(str(path), *tool.version) or identity
            self._versions[identity] = answer
            if not _is_shell_script(path):
                self._keep(identity, answer)
        return self._versions[identity]

    def _load(self) -> dict[str, str]:
        try:
            text = self._memory.read_text() if self._memory else "{}"
            return {str(key): str(value) for key, value in json.loads(text).items()}
        except (OSError, ValueError, AttributeError):
            return {}

    def _keep(self, identity: str, answer: str) -> None:
        self._kept[identity] = answer
        if self._memory is not None:
            newest = dict(list(self._kept.items())[-_KEPT_ANSWERS:])
            fresh = self._memory.with_suffix(".new")
            with contextlib.suppress(OSError):  # then the next start asks again
                fresh.write_text(json.dumps(newest))
                fresh.rename(self._memory)

    async def _ask(self, path: str, *arguments: str) -> str | None:
        try:
            process = await asyncio.create_subprocess_exec(
                path,
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env=self._env,
                cwd="/",
            )
        except OSError:
            return None
        try:
            async with asyncio.timeout(VERSION_LIMIT_S):
                output, _ = await process.communicate()
        except TimeoutError:
            return None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        return (
            output.decode(errors="replace").strip() if not process.returncode else None
        )


def _identity(path: Path) -> str:
    """Return what changes when the program behind `path` is replaced.

    Package managers may set the time of modification to anything.
    """
    real = path.resolve()
    status = real.stat()
    times = (status.st_mtime_ns, status.st_ctime_ns)
    return repr((str(path), str(real), status.st_ino, status.st_size, *times))


def _is_shell_script(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            first = file.readline(200)
    except OSError:
        return True
    words = first.removeprefix(b"#!").split() if first.startswith(b"#!") else []
    # The interpreter, or what `env` is to find: sh, bash, dash, zsh, ksh, fish.
    return any(word.rsplit(b"/", 1)[-1].endswith(b"sh") for word in words)
