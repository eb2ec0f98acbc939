"""Which language a source directory or a package is of.

A new language is one module and one more element of PLATFORMS.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from chaindock.errors import SourceInvalid, Unsupported
from chaindock.platforms.base import Platform, Tool
from chaindock.platforms.golang import Golang
from chaindock.platforms.node import Node
from chaindock.platforms.python import Python

PLATFORMS: tuple[Platform, ...] = (Golang(), Node(), Python())
TOOLS: Mapping[str, Tool] = {
    tool.name: tool for platform in PLATFORMS for tool in platform.tools
}
_ERROR_LINE = re.compile(
    "|".join(
        [*(platform.error_lines for platform in PLATFORMS), "Exception in thread "]
    )
)
_FOREIGN = {
    "pom.xml": "java",
    "build.gradle": "java",
    "build.gradle.kts": "java",
    "connection.json": "ccaas",
}
"""Files that mark chaincode of a kind that is known and not supported."""
_START_BY_HAND = (
    "start the chaincode yourself and have it served by a node with "
    "chaincode.mode: dev (chaindock deploy --dev NAME)"
)


def looks_like_error(line: str) -> bool:
    """Whether a line of a build or a chaincode says what went wrong, in any language."""
    return _ERROR_LINE.match(line) is not None


def platform_for(package_type: str) -> Platform:
    """Return the platform of a package type, whatever its case. Raises: Unsupported."""
    for platform in PLATFORMS:
        if platform.name == package_type.lower():
            return platform
    raise _unsupported(f"chaincode type {package_type!r} cannot be built", package_type)


def recognise(source: Path) -> Platform:
    """Return the platform of a source directory.

    When several match, the one whose manifest names a Fabric shim is taken.

    Raises:
        SourceInvalid: no directory; none matches; it stays open which.
        Unsupported: Java, or chaincode as a service.
    """
    if not source.is_dir():
        raise SourceInvalid(
            f"source {str(source)!r} is not a directory", path=str(source)
        )
    found = [(one, why) for one in PLATFORMS if (why := one.recognise(source))]
    if len(found) > 1:
        named = [pair for pair in found if pair[0].names_shim(source)]
        found = named if len(named) == 1 else found
    if len(found) == 1:
        return found[0][0]
    if not found:
        for name, kind in _FOREIGN.items():
            if (source / name).is_file():
                raise _unsupported(f"{str(source)!r} has {name}", kind)
        looked = ", ".join(name for one in PLATFORMS for name in one.looks_for)
        raise SourceInvalid(
            f"no chaincode found in {str(source)!r}: looked for {looked}",
            hint="name the directory that holds the chaincode's source",
            path=str(source),
        )
    listed = "; ".join(f"{one.name}: {why}" for one, why in found)
    raise SourceInvalid(
        f"source {str(source)!r} could be of several languages ({listed})",
        hint="put each chaincode into a directory of its own and name that one",
        path=str(source),
        languages=[one.name for one, _ in found],
    )


def _unsupported(what: str, package_type: str) -> Unsupported:
    kind, names = package_type.lower(), [one.name for one in PLATFORMS]
    why = f"the known types are {', '.join(names)}"
    hint = f"package the contract as {' or '.join(names)}"
    if kind == "java":
        why = f"Java chaincode is not supported yet; {why}"
        hint = _START_BY_HAND
    elif kind in {"ccaas", "external"}:
        why = f"chaincode as a service is not supported; {why}"
        hint = f"deploy the directory of its source, or {_START_BY_HAND}"
    return Unsupported(f"{what}: {why}", hint=hint, package_type=package_type)
