"""What a language must know, and the plans it hands to whoever runs them.

Owns:    Platform, Selection, BuildPlan, Step, LaunchCommand.
Not:     running anything (controllers), archives (packaging).
Entry:   Platform
Holds:   a plan names paths only through placeholders, so the same plan runs in a
         container and as a local process.
Source:  launch.md §2.5, §2.6, §3.5, §3.7; shim-protocol.md §1.5
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

# Placeholders in argv, cwd and env values of a plan (placeholders.py fills them):
#   {input}   the unpacked code archive (holds src/ and META-INF/)
#   {output}  what the build leaves behind; at run time the place where that lies
#   {cache:NAME}  a directory kept between builds (build steps only)
#   {tool:NAME}   a program of the toolchain; the executing controller finds it
#   {peer}    host:port that the chaincode dials (calls back)
#   {listen}  host:port that the chaincode serves on (is dialled)
#   {ccid}    the package id (at run time only: packages of equal code share a build)


class Connection(StrEnum):
    """Who opens the stream."""

    CALLS_BACK = "calls back"
    DIALLED = "is dialled"


@dataclass(frozen=True)
class SourceFile:
    """One file to package: name inside code.tar.gz, and where it is on disk."""

    name: str
    path: Path


@dataclass(frozen=True)
class Selection:
    """What is packaged of a source directory.

    Args:
        files: sorted by `name`; names start with `src/` or `META-INF/`.
        import_path: `path` in metadata.json (the Go import path; else "").
        package_type: `type` in metadata.json.
    """

    files: tuple[SourceFile, ...]
    import_path: str
    package_type: str


@dataclass(frozen=True)
class Step:
    """One program of a build. Steps run in order; the first that fails ends it.

    Args:
        phase: which phase of the attempt it belongs to.
        argv: with placeholders; never a shell line.
        cwd: with placeholders; created if it is missing.
        env: added to the environment, with placeholders in the values.
        title: what people read; "" = the command.
    """

    phase: Literal["dependencies", "compile"]
    argv: tuple[str, ...]
    cwd: str
    env: Mapping[str, str] = field(default_factory=dict)
    title: str = ""


@dataclass(frozen=True)
class LaunchCommand:
    """How the built chaincode is started.

    Args:
        argv, cwd, env: with placeholders (run-time ones only).
        connection: who opens the stream.
        concurrency: transactions at a time on one stream; None = unlimited
            (the Python shim allows one, shim-protocol.md §12.4).
    """

    argv: tuple[str, ...]
    cwd: str
    connection: Connection
    env: Mapping[str, str] = field(default_factory=dict)
    concurrency: int | None = None


@dataclass(frozen=True)
class BuildPlan:
    """Everything a controller needs to build and start one package.

    Args:
        steps: what to run, in order. Input is at {input}, the result goes to {output}.
        launch: how the result is started.
        tools: programs that must be there, e.g. ("go",); a local process build checks
            them before anything else.
        caches: names of the {cache:NAME} directories in use.
    """

    steps: tuple[Step, ...]
    launch: LaunchCommand
    tools: tuple[str, ...]
    caches: tuple[str, ...] = ()


class Platform(ABC):
    """One language.

    `package_types` are the values of `type` in metadata.json that it takes (lower
    case). `image_output` is where {output} lies in a runtime image (launch.md §3.2).
    """

    name: str
    package_types: tuple[str, ...]
    image_output: str

    @abstractmethod
    def recognise(self, source: Path) -> str | None:
        """Return why `source` is of this language ("has go.mod"), else None."""

    def names_shim(self, source: Path) -> bool:  # noqa: ARG002  # a default
        """Whether the manifest in `source` names a Fabric shim of this language.

        Settles which language it is when several recognise `source`.
        """
        return False

    @abstractmethod
    def select(self, source: Path) -> Selection:
        """Return what is packaged of `source`.

        Raises: SourceInvalid; ToolMissing.
        """

    @abstractmethod
    def plan(self, tree: Path, import_path: str) -> BuildPlan:
        """Return how the unpacked code archive at `tree` is built and started.

        Reads `tree` as hostile input: no link is followed, every read is bounded.

        Raises: SourceInvalid.
        """

    passing: ClassVar[str] = "(?!)"
    """What the tools print when a registry, a name server or space was missing: a
    regular expression, in any letter case."""

    def is_retryable(self, step: Step, output: Sequence[str]) -> bool:
        """Whether a step that failed may succeed later, from the last lines it wrote.

        Only what fetches can fail for a while: a compiler says the same tomorrow.
        """
        if step.phase != "dependencies":
            return False
        sign = re.compile(self.passing, re.IGNORECASE)
        return any(sign.search(line) for line in output)

    @abstractmethod
    def toolchain(self, tool_version: Mapping[str, str]) -> str:
        """Return the part of the tool versions that a build depends on, as text.

        `tool_version`: program to what it prints for its version.
        """
