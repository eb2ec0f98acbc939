"""Python chaincode: it serves, and the node dials it.

The built directory can be moved: nothing is started through a console script.
Source: docs/fabric/builds.md#python
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from chaindock.options import option
from chaindock.platforms.base import (
    BuildPlan,
    Connection,
    LaunchCommand,
    Platform,
    Selection,
    Step,
    Tool,
    ToolCheck,
)
from chaindock.platforms.images import LanguageImages, LanguagePull
from chaindock.platforms.python_entry import find_entry, find_project
from chaindock.platforms.tree import Tree, collect

if TYPE_CHECKING:
    from pathlib import Path

_SHIM = "fabric-chaincode-python"
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
class PythonImages(LanguageImages):
    """The images of Python."""

    builder: str = option(
        "python:3.12-slim-bookworm",
        "chaindock.python.builder",
        "Image in which Python chaincode is built.",
    )
    runtime: str = option(
        "",
        "chaindock.python.runtime",
        "Image in which Python chaincode runs; empty = chaindock.python.builder.",
    )
    pull: LanguagePull = option(
        "default",
        "chaindock.python.pull",
        "When the images of Python are fetched; default = as chaindock.docker.pull.",
    )


class Python(Platform):
    """Projects with requirements.txt or pyproject.toml."""

    name = "python"
    title = "Python"
    images = PythonImages()
    package_types = ("python",)
    looks_for = ("requirements.txt", "pyproject.toml", "*.py")
    image_output = "/usr/local/src"
    build_variables = (
        "PIP_(INDEX_URL|EXTRA_INDEX_URL|TRUSTED_HOST|DEFAULT_TIMEOUT|RETRIES)"
    )
    tools = (
        Tool(
            "python3",
            "install Python 3 with its venv module",
            checks=(
                ToolCheck(
                    "venv",
                    ("-c", "import venv, ensurepip"),
                    "python3 can make environments",
                    "python3 has no venv with pip",
                    "install it; on Debian and Ubuntu: the package python3-venv",
                ),
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

    def recognise(self, source: Path) -> str | None:
        """Return "has requirements.txt" and the like, else None."""
        tree = Tree(source, trusted=True)
        for name in ("requirements.txt", "pyproject.toml"):
            if tree.has_file(name):
                return f"has {name}"
        if any(name.endswith(".py") for name in tree.names()):
            return "has Python files"
        return None

    def names_shim(self, source: Path) -> bool:
        """Whether the requirements name the Fabric shim."""
        tree = Tree(source, trusted=True)
        return any(
            _SHIM in (tree.find_text(name) or "").lower().replace("_", "-")
            for name in ("requirements.txt", "pyproject.toml")
        )

    def select(self, source: Path) -> Selection:
        """Return everything but virtual environments and what Python compiled.

        Raises:
            SourceInvalid: it could not be built or started either.
        """
        _plan(Tree(source.resolve(), trusted=True))
        files = collect(
            source,
            skip_folder=lambda name: name.endswith(".egg-info"),
            skip_file=lambda name: name.endswith((".pyc", ".pyo")),
        )
        return Selection(files, "", "python")

    def plan(self, tree: Path, import_path: str) -> BuildPlan:  # noqa: ARG002
        """Return copy, virtual environment, and pip install.

        Raises:
            SourceInvalid: no file to start, or requirements that cannot be read.
        """
        return _plan(Tree(tree / "src"))


def _plan(source: Tree) -> BuildPlan:
    project = find_project(source)
    entry = find_entry(source, project)
    env = {"PIP_CACHE_DIR": "{cache:pip}"}
    steps = [
        Step("dependencies", ("cp", "-R", "{input}/src/.", _SOURCE), _SOURCE),
        Step(
            "dependencies",
            ("{tool:python3}", "-m", "venv", "{output}/venv"),
            "{output}",
        ),
    ]
    if source.has_file("requirements.txt"):
        wanted: tuple[str, ...] = ("-r", "requirements.txt")
    elif project is not None and project.builds:
        wanted = (".",)
    else:
        wanted = ("--", *project.dependencies) if project else ()
    if wanted and wanted != ("--",):
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
