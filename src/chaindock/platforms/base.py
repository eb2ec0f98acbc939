"""The interface of a language, and the plans that controllers run.

A plan names paths only through placeholders, so the same plan runs in a container and as
a local process. A platform never runs anything.
Source: docs/fabric/builds.md
"""

from __future__ import annotations

import functools
import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import ClassVar, Literal

from chaindock.errors import SourceInvalid
from chaindock.platforms.tree import SourceFile, Tree

Pull = Literal["missing", "never", "always"]

# Placeholders in argv, cwd and env values of a plan (Places fills them):
#   {input}   the unpacked code archive (holds src/ and META-INF/)
#   {output}  what the build leaves behind; at run time the place where that lies
#   {cache:NAME}  a directory kept between builds (build steps only)
#   {tool:NAME}   a program of the toolchain; the executing controller finds it
#   {peer}    host:port that the chaincode dials (calls back)
#   {listen}  host:port that the chaincode serves on (is dialled)
#   {ccid}    the package id (at run time only: packages of equal code share a build)
_PLACEHOLDER = re.compile(
    r"\{(?:(input|output|peer|listen|ccid)|(tool|cache):(\w[\w.+-]*))\}"
)


class Connection(StrEnum):
    """Who opens the stream."""

    CALLS_BACK = "calls back"
    DIALLED = "is dialled"


@dataclass(frozen=True)
class Selection:
    """What is packaged of a source directory."""

    files: tuple[SourceFile, ...]
    """Sorted by `name`; names start with `src/` or `META-INF/`."""
    import_path: str
    """`path` in metadata.json (the Go import path; else "")."""
    package_type: str
    """`type` in metadata.json."""
    warnings: tuple[str, ...] = ()
    """What the user should know about the choice."""


@dataclass(frozen=True)
class Step:
    """One program of a build; `argv`, `cwd` and values of `env` have placeholders."""

    phase: Literal["dependencies", "compile"]
    """Which phase of the attempt it belongs to."""
    argv: tuple[str, ...]
    cwd: str
    """Created if it is missing."""
    env: Mapping[str, str] = field(default_factory=dict)
    title: str = ""
    """What people read; "" = the command."""


@dataclass(frozen=True)
class LaunchCommand:
    """How the built chaincode is started; all have run-time placeholders."""

    argv: tuple[str, ...]
    cwd: str
    connection: Connection
    env: Mapping[str, str] = field(default_factory=dict)
    concurrency: int | None = None
    """Transactions at a time on one stream; None = unlimited (the Python shim allows
    one)."""


@dataclass(frozen=True)
class BuildPlan:
    """Everything a controller needs to build and start one package.

    Steps run in order; the first that fails ends the build. `caches` are the names of the
    {cache:NAME} directories in use.
    """

    steps: tuple[Step, ...]
    launch: LaunchCommand
    caches: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tool:
    """A program that builds and runs of a language need on the host: {tool:NAME} in plans."""

    name: str
    install: str
    """What to do when it is missing."""
    version: tuple[str, ...] = ("--version",)
    """Arguments with which it prints its version."""
    probe: tuple[str, ...] = ()
    """Arguments with which it ends with 0 if nothing of it is missing."""
    lacks: tuple[str, str] = ("", "")
    """What it lacks otherwise, and what to do: for `doctor`."""


@dataclass(frozen=True)
class LanguageImages:
    """Images that a language is built and runs in, settings; `runtime` "" = `builder`."""

    builder: str
    runtime: str = ""


class Platform(ABC):
    """One language: everything that the rest of the system knows about it.

    Attributes:
        name: `type` in metadata.json, lower case; also in settings.
        title: how people call the language.
        looks_for: manifests and sources of the language; "*.go" = any.
        hints: other files that suggest it.
        shims: regular expression, in any letter case: what a manifest that depends on a
            Fabric shim holds.
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
    images: LanguageImages
    looks_for: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()
    shims: ClassVar[str] = "(?!)"
    image_output: str
    build_variables: ClassVar[str] = "(?!)"
    tools: tuple[Tool, ...] = ()
    retryable_output: ClassVar[str] = "(?!)"
    error_lines: ClassVar[str] = "(?!)"

    def recognise(self, source: Path) -> str | None:
        """Return why `source` is of this language ("has go.mod"), else None."""
        tree = Tree(source, trusted=True)
        for wanted in (*self.looks_for, *self.hints):
            if wanted.startswith("*"):
                if any(name.endswith(wanted[1:]) for name in tree.names()):
                    return f"has {self.title} files"
            elif tree.has_file(wanted):
                return f"has {wanted}"
        return None

    def names_shim(self, source: Path) -> bool:
        """Whether a manifest in `source` names a Fabric shim of this language.

        Settles which language it is when several recognise `source`.
        """
        tree = Tree(source, trusted=True)
        return any(
            re.search(self.shims, tree.find_head(name), re.IGNORECASE)
            for name in self.looks_for
        )

    @abstractmethod
    def select(self, source: Path) -> Selection:
        """Return what is packaged of `source`. Raises: SourceInvalid, ToolMissing."""

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


class Places:
    """Values of the placeholders in one place: a build, or a run.

    A placeholder without a value is an error. What was filled in is not filled again.

    `known` has input, output, peer, listen, ccid, as far as they have a value here.
    `tool` gives what a program is called by, `cache` a directory; None at run time.
    """

    def __init__(
        self,
        known: Mapping[str, str],
        *,
        tool: Callable[[str], str],
        cache: Callable[[str], str] | None = None,
    ) -> None:
        self._known, self._tool, self._cache = known, tool, cache

    def fill(self, text: str) -> str:
        """Return `text` with placeholders replaced. Raises: SourceInvalid; as `tool`."""
        return _PLACEHOLDER.sub(self._value, text)

    def fill_all(self, texts: Sequence[str]) -> list[str]:
        """Fill each."""
        return [self.fill(text) for text in texts]

    def fill_values(self, env: Mapping[str, str]) -> dict[str, str]:
        """Fill the values of an environment."""
        return {name: self.fill(value) for name, value in env.items()}

    def _value(self, match: re.Match[str]) -> str:
        plain, kind, what = match.groups()
        if kind == "tool":
            return self._tool(what)
        if kind == "cache" and self._cache is not None:
            return self._cache(what)
        if plain in self._known:
            return self._known[plain]
        raise SourceInvalid(f"{match[0]!r} has no value here, in {match.string!r}")


@functools.cache
def modules_hash(folder: Path) -> str:
    """Return a hash of the modules in a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def planner_fingerprint(planner: type[Platform]) -> str:
    """Return what differs between planners, and after an edit of this package.

    A plan that was made before an edit of its planner is never used after the edit.
    """
    return f"{planner.__qualname__} {modules_hash(Path(__file__).parent)}"
