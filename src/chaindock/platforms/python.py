"""Python chaincode: it serves, and the node dials it.

The built directory can be moved: nothing is started through a console script.
Of the files that may start the chaincode the first that exists counts:
    1. `entry` in `[tool.chaindock]` of pyproject.toml: a .py file, or a module name
    2. main.py, chaincode.py, app.py, server.py
    3. the only .py file beside them that starts the shim
    4. the same two in src/
    5. the only package, here or in src/, that has a __main__.py
Source: docs/fabric/builds.md#python
"""

from __future__ import annotations

import posixpath
import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chaindock.errors import SourceInvalid
from chaindock.options import option
from chaindock.platforms.base import (
    BuildPlan,
    Connection,
    LanguageImages,
    LaunchCommand,
    Platform,
    Selection,
    Step,
    Tool,
)
from chaindock.platforms.tree import MAX_TEXT, Tree, collect

_MANIFEST = "pyproject.toml"
_USUAL = ("main.py", "chaincode.py", "app.py", "server.py")
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_FILE = re.compile(r"[^-{}][^{}]*\.py")
"""Not an option of python, and no placeholder of a plan."""
_REQUIREMENT = re.compile(r"\s*[A-Za-z0-9][^{}]*\Z")
_INCLUDES = re.compile(r"-r|-c|--r(e(q\w*)?)?|--c(o(n(s\w*)?)?)?")
"""Options of pip that name a file of requirements; pip takes any unique beginning."""
_REMOTE = re.compile(
    r"(?i:((git|hg|svn|bzr)\+)?(https?|ssh|git)://)|sha\d+:|md5:|[\w.-]+:\d+\Z"
)
"""What may have a colon: an address, a hash, a host with its port."""
_NAME = re.compile(r"\A[^:/@]*@")
_SCHEME = re.compile(r"[A-Za-z][\w.+-]*:")
_ON_HOST = re.compile(r"/|\.\.(/|\Z)|~[^/=]*(/|\Z)")
_COMMENT = re.compile(r"(^|\s+)#.*$")
_CODING = re.compile(r"#.*?coding[:=]\s*([-\w.]+)")
_UTF_8 = re.compile(r"(?i)utf[-_]?8([-_]sig)?|(us[-_]?)?ascii")
_SHIM = re.compile(r"\b(fabric_chaincode_python|fabric_shim|fabric_contract_api)\b")
_START = re.compile(r"(\.|\b)start\s*\(")
_DOTS = 1000
_HINT = 'name it in pyproject.toml: [tool.chaindock] entry = "contract.py"'
_PYTHON = "{output}/venv/bin/python"
_SOURCE = "{output}/src"
# pip says only in its log why an index did not answer, not that it is missing.
_RUN_PIP = """\
import runpy, sys, tempfile
with tempfile.NamedTemporaryFile("r", errors="replace") as log:
    sys.argv[:1] = ["pip", "--log", log.name]
    try:
        runpy.run_module("pip", run_name="__main__")
    except SystemExit as end:
        for line in log if end.code else ():
            if "Could not fetch URL" in line:
                print(line.partition(" ")[2], end="")
        raise
"""
_PIP = (
    _PYTHON,
    "-I",  # nothing of the source is taken for a module of Python
    "-c",
    _RUN_PIP,
    "install",
    "--disable-pip-version-check",
    "--no-input",
    "--no-warn-script-location",
)
_RUN_ENV = {
    "CHAINCODE_SERVER_ADDRESS": "{listen}",
    "CHAINCODE_ID": "{ccid}",
    "CORE_CHAINCODE_ID_NAME": "{ccid}",
    "PYTHONUNBUFFERED": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    # What pip installed "editable" names the build directory, so the source is found
    # by its place instead.
    "PYTHONPATH": f"{_SOURCE}:{_SOURCE}/src",
}


@dataclass(frozen=True)
class Images(LanguageImages):
    """The images of Python."""

    builder: str = option("python:3.12-slim-bookworm", "chaindock.python.builder")
    """Image in which Python chaincode is built."""
    runtime: str = option("", "chaindock.python.runtime")
    """Image in which Python chaincode runs; empty = chaindock.python.builder."""


class Python(Platform):
    """Projects with requirements.txt or pyproject.toml."""

    name = "python"
    title = "Python"
    images = Images()
    looks_for = ("requirements.txt", "pyproject.toml", "*.py")
    shims = "fabric[-_]chaincode[-_]python"
    image_output = "/usr/local/src"
    build_variables = (
        "PIP_(INDEX_URL|EXTRA_INDEX_URL|TRUSTED_HOST|DEFAULT_TIMEOUT|RETRIES)"
    )
    tools = (
        Tool(
            "python3",
            "install Python 3 with its venv module",
            probe=("-c", "import venv, ensurepip"),
            lacks=(
                "it has no venv with pip",
                "install it; on Debian and Ubuntu: the package python3-venv",
            ),
        ),
    )
    error_lines = r"[\w.]*(Error|Exception)\b(:|$)|Fatal Python error|ERROR: |error: "
    retryable_output = (
        r"temporary failure in name resolution|name or service not known"
        r"|failed to establish a new connection|connection (refused|reset|broken|aborted)"
        r"|(read|connect)timeouterror|read timed out|remote end closed|incompleteread"
        r"|http error (429|5\d\d)|(429 client|5\d\d server) error"
        r"|too many (429|5\d\d) error responses|no space left"
    )

    def select(self, source: Path) -> Selection:
        """Return all but what Python and venv made of it. Raises: SourceInvalid."""
        _plan(Tree(source.resolve(), trusted=True))
        files = collect(source, skip_folders="*.egg-info", skip_files=(".pyc", ".pyo"))
        return Selection(files, "", "python")

    def plan(self, tree: Path, import_path: str) -> BuildPlan:  # noqa: ARG002
        """Return copy, virtual environment, and pip install. Raises: SourceInvalid."""
        return _plan(Tree(tree / "src"))


def _plan(source: Tree) -> BuildPlan:
    wanted, named = _read_project(source)
    entry = _find_entry(source, named)
    env = {"PIP_CACHE_DIR": "{cache:pip}"}
    venv = ("{tool:python3}", "-m", "venv", "{output}/venv")
    steps = [
        Step("dependencies", ("cp", "-R", "{input}/src/.", _SOURCE), _SOURCE),
        Step("dependencies", venv, "{output}"),
    ]
    if source.has_file("requirements.txt"):
        _check_requirements(source)
        wanted = ("-r", "requirements.txt")
    if wanted:
        title = " ".join(("pip install", *wanted))
        steps.append(Step("dependencies", (*_PIP, *wanted), _SOURCE, env, title))
    launch = LaunchCommand(
        argv=(_PYTHON, *entry),
        cwd=_SOURCE,
        connection=Connection.DIALLED,
        env=_RUN_ENV,
        concurrency=1,
    )
    return BuildPlan(tuple(steps), launch, ("pip",))


# --- what pip may read


def _check_requirements(tree: Tree) -> None:
    """Raise SourceInvalid if pip would read a file that is not part of the package."""
    waiting, seen, left = ["requirements.txt"], set[str](), MAX_TEXT
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        text = tree.find_text(name) or ""
        left -= len(text)
        if left < 0:
            before = "and the requirement files read before it have more than"
            raise _invalid(f"{before} {MAX_TEXT} characters together", name=name)
        for line in text.split("\n")[:2]:
            if (coding := _CODING.match(line)) and not _UTF_8.fullmatch(coding[1]):
                what = f"declares the encoding {coding[1]!r}: expected UTF-8"
                raise _invalid(what, name=name)
        for number, line in _logical_lines(text):
            waiting += _check_line(f"{name}:{number}", line, posixpath.dirname(name))


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a file of requirements and their numbers, as pip joins them."""
    joined = ""
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        is_comment = _COMMENT.match(line) is not None
        if line.endswith("\\") and not is_comment:
            joined += line.strip("\\")
            if number < len(lines):
                continue
        else:
            joined += f" {line}" if is_comment else line
        yield number, _COMMENT.sub("", joined)
        joined = ""


def _check_line(place: str, line: str, folder: str = "") -> list[str]:
    """Return the files that a line of requirements includes, relative to `folder`.

    Every word counts, whatever pip makes of it, since options can be shortened.

    Raises: SourceInvalid: a word names what is outside of the package.
    """
    included: list[str] = []
    option = ""
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise SourceInvalid(f"{place}: {error}", path=place) from error
    for word in words:
        value = word
        if word.startswith("--"):
            option, _, value = word.partition("=")
        elif word.startswith("-"):
            option, value = word[:2], word[2:]
        includes = bool(value and _INCLUDES.fullmatch(option))
        if includes:
            included.append(posixpath.normpath(posixpath.join(folder, value)))
        named = _NAME.sub("", value)
        if _SCHEME.match(named):
            outside = includes or not _REMOTE.match(named)
        else:
            path = posixpath.join(folder if includes else "", named)
            outside = "$" in path or bool(_ON_HOST.match(posixpath.normpath(path)))
        if outside:
            raise SourceInvalid(
                f"{place}: {value!r} is refused: expected a path inside the package, a package "
                "name or an http, https, ssh or git address (no address after -r and -c)",
                hint="put the file into the source directory and name it by a relative "
                "path, without file: and without variables",
                path=place,
            )
    return included


# --- the file that starts the chaincode


def _read_project(tree: Tree) -> tuple[tuple[str, ...], str | None]:
    """Return what pip installs and `entry` of [tool.chaindock], as pyproject.toml says.

    Raises: SourceInvalid: it is not TOML, or an entry is not text.
    """
    text = tree.find_text(_MANIFEST) or ""
    if any(line.count(".") > _DOTS for line in text.splitlines()):
        # The time that tomllib takes grows with the square of the parts of a key.
        raise _invalid(f"has a line with more than {_DOTS} dots")
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise _invalid(f"is not TOML: {str(error)[:200]}") from error
    dependencies = _table(document, "project").get("dependencies", [])
    if not isinstance(dependencies, list) or not all(
        isinstance(one, str) and _REQUIREMENT.match(one) for one in dependencies
    ):
        raise _invalid("sets [project] dependencies: expected a list of requirements")
    for dependency in dependencies:
        _check_line(f"{_MANIFEST}: dependencies", dependency)
    entry = _table(_table(document, "tool"), "chaindock").get("entry")
    if entry is not None and not isinstance(entry, str):
        raise _invalid("sets [tool.chaindock] entry: expected text")
    if "build-system" in document:
        return (".",), entry
    return ("--", *dependencies) if dependencies else (), entry


def _find_entry(tree: Tree, named: str | None) -> tuple[str, ...]:
    """Return arguments of python that start it. Raises: SourceInvalid: none, or several."""
    if named is not None:
        return _named(tree, named)
    for folder in ("", "src/"):
        for name in _USUAL:
            if tree.has_file(folder + name):
                return (folder + name,)
        starters = _starters(tree, folder)
        if len(starters) == 1:
            return (starters[0],)
        if starters:
            raise _several("files that start the shim", starters)
    packages = [
        name
        for folder in ("", "src")
        for name in tree.names(folder)
        if _MODULE.fullmatch(name)
        and tree.has_file(f"{folder}/{name}/__main__.py".lstrip("/"))
    ]
    if len(packages) == 1:
        return ("-m", packages[0])
    if packages:
        raise _several("packages with a __main__.py", packages)
    raise SourceInvalid(
        "no Python file that starts the chaincode: looked for main.py, chaincode.py, "
        "app.py, server.py, a file that starts the shim, each also in src/, and a "
        "package with a __main__.py",
        hint=_HINT,
        path=str(tree.root),
    )


def _named(tree: Tree, entry: str) -> tuple[str, ...]:
    if _FILE.fullmatch(entry) and tree.has_file(entry):
        return (entry,)
    if _MODULE.fullmatch(entry) and not entry.endswith(".py"):
        path = entry.replace(".", "/")
        for folder in ("", "src/"):
            if tree.has_file(f"{folder}{path}.py") or tree.has_file(
                f"{folder}{path}/__main__.py"
            ):
                return ("-m", entry)
    what = f"names {entry[:200]!r} as entry in [tool.chaindock]"
    what += ", which is neither a .py file nor a module of the project"
    raise _invalid(what, _HINT)


def _starters(tree: Tree, folder: str) -> list[str]:
    found: list[str] = []
    for name in tree.names(folder):
        text = tree.find_head(folder + name) if _FILE.fullmatch(name) else ""
        if _SHIM.search(text) and _START.search(text):
            found.append(folder + name)
    return found


def _invalid(
    what: str, hint: str | None = None, name: str = _MANIFEST
) -> SourceInvalid:
    return SourceInvalid(f"source file {name!r} {what}", hint=hint, path=name)


def _several(what: str, found: list[str]) -> SourceInvalid:
    listed = ", ".join(repr(name) for name in found[:10])
    return SourceInvalid(
        f"several {what}: {listed}", hint=_HINT, path=found[0], found=found
    )


def _table(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = document.get(name)
    return value if isinstance(value, Mapping) else {}
