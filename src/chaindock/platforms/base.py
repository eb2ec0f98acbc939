"""The interface of a language, and the plans that controllers run.

A plan names paths only through placeholders, so the same plan runs in a container and as
a local process. A platform never runs anything.
Source: docs/fabric/builds.md
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

    from chaindock.platforms.images import LanguageImages

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
        warnings: what the user should know about the choice.
    """

    files: tuple[SourceFile, ...]
    import_path: str
    package_type: str
    warnings: tuple[str, ...] = ()


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
            (the Python shim allows one).
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
        caches: names of the {cache:NAME} directories in use.
    """

    steps: tuple[Step, ...]
    launch: LaunchCommand
    caches: tuple[str, ...] = ()


@dataclass(frozen=True)
class ToolCheck:
    """Something else that a tool must be able to do, for `doctor`.

    Args:
        name: of the check.
        arguments: of the tool; it ends with 0 when all is well.
        good, bad, remedy: what `doctor` says.
    """

    name: str
    arguments: tuple[str, ...]
    good: str
    bad: str
    remedy: str


@dataclass(frozen=True)
class Tool:
    """A program that builds and runs of a language need on the host.

    Args:
        name: of the program; {tool:NAME} in plans.
        install: what to do when it is missing.
        version: arguments with which it prints its version.
        checks: what else it must be able to do.
    """

    name: str
    install: str
    version: tuple[str, ...] = ("--version",)
    checks: tuple[ToolCheck, ...] = ()


class Platform(ABC):
    """One language: everything that the rest of the system knows about it.

    Attributes:
        name: of the platform, also in settings.
        title: how people call the language.
        package_types: values of `type` in metadata.json that it takes, lower case.
        looks_for: files that mark a source directory of the language.
        images: its images and their settings.
        image_output: where {output} lies in a runtime image.
        build_variables: regular expression: variables of the user's environment that
            builds get, such as the address of a package registry.
        tools: programs that a local build needs; a container has its own.
        retryable_output: regular expression, in any letter case: what the tools print
            when a registry, a name server or disk space was missing.
        error_lines: regular expression of lines, from their start, in which a build or
            the chaincode says what went wrong.
    """

    name: str
    title: str
    package_types: tuple[str, ...]
    images: LanguageImages
    looks_for: tuple[str, ...] = ()
    image_output: str
    build_variables: ClassVar[str] = "(?!)"
    tools: tuple[Tool, ...] = ()
    retryable_output: ClassVar[str] = "(?!)"
    error_lines: ClassVar[str] = "(?!)"

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

    def is_retryable(self, step: Step, output: Sequence[str]) -> bool:
        """Whether a step that failed may succeed later, from the last lines it wrote.

        Only what fetches can fail for a while: a compiler says the same tomorrow.
        """
        if step.phase != "dependencies":
            return False
        sign = re.compile(self.retryable_output, re.IGNORECASE)
        return any(sign.search(line) for line in output)
