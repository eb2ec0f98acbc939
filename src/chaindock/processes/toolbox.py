"""Find the programs of a toolchain on this machine, and know when one was replaced.

A program is known by its file. A shell script may be a version manager's, whose program
depends on something else, so a script is asked for its version as well.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from chaindock.aio import run_program
from chaindock.errors import ToolMissing
from chaindock.platforms.base import Tool
from chaindock.platforms.registry import TOOLS

SYSTEM_PATH = ("/usr/local/bin", "/usr/bin", "/bin")
VERSION_LIMIT_S = 15.0


class Toolbox:
    """Programs on `path`, a PATH; `env` is the environment of version queries."""

    def __init__(self, path: str, env: Mapping[str, str]) -> None:
        self._path, self._env = path, env
        self._versions: dict[str, str | None] = {}

    def find(self, name: str, language: str) -> str:
        """Return the path of a program. Raises: ToolMissing."""
        found = shutil.which(name, path=self._path)
        if found is None:
            raise ToolMissing(
                f"program {name!r}, which {language} chaincode needs, is not on the "
                f"PATH ({self._path})",
                hint=f"{_tool(name).install}, or run this chaincode with "
                "--backend docker",
                tool=name,
                language=language,
            )
        return str(Path(found).absolute())

    async def identify(self, names: Sequence[str], language: str) -> list[str]:
        """Return what changes when one of the programs is replaced. Raises: ToolMissing."""
        return await asyncio.gather(*(self._identify(name, language) for name in names))

    async def version(self, name: str, language: str) -> str | None:
        """Return what a program prints for its version; None when it prints none.

        It is asked once, until its file changes. Raises: ToolMissing.
        """
        path = self.find(name, language)
        identity = _identity(Path(path))
        if identity not in self._versions:
            self._versions[identity] = await self.ask(path, *_tool(name).version)
        return self._versions[identity]

    async def _identify(self, name: str, language: str) -> str:
        path = Path(self.find(name, language))
        identity = _identity(path)
        if _is_shell_script(path):
            identity += f" {await self.version(name, language)}"
        return identity

    async def ask(self, path: str, *arguments: str) -> str | None:
        """Return what a program prints; None when it fails."""
        limit_s, env = VERSION_LIMIT_S, self._env
        try:
            code, output, _ = await run_program(
                path, *arguments, text=b"", limit_s=limit_s, env=env, cwd="/"
            )
        except OSError:  # a time-out is one, too
            return None
        return None if code else output.decode(errors="replace").strip()


def _tool(name: str) -> Tool:
    return TOOLS.get(name) or Tool(name, f"install {name}")


def _identity(path: Path) -> str:
    """Return what changes when the program behind `path` is replaced; times may not."""
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
