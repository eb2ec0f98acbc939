"""Which language a source directory or a package is of.

Owns:    the list of platforms; the choice between several that match.
Not:     anything of one language.
Entry:   platform_for, recognise
Holds:   a new language is one more element of PLATFORMS.
Source:  launch.md §2.3
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from chaindock.errors import SourceInvalid, Unsupported
from chaindock.platforms.golang import Golang
from chaindock.platforms.node import Node
from chaindock.platforms.python import Python

if TYPE_CHECKING:
    from pathlib import Path

    from chaindock.platforms.base import Platform

PLATFORMS: tuple[Platform, ...] = (Golang(), Node(), Python())


def platform_for(package_type: str) -> Platform:
    """Return the platform that builds packages of this type, whatever its case.

    Raises:
        Unsupported: there is none.
    """
    wanted = package_type.lower()
    for platform in PLATFORMS:
        if wanted in platform.package_types:
            return platform
    known = ", ".join(name for one in PLATFORMS for name in one.package_types)
    raise Unsupported(
        f"chaincode type {package_type!r} cannot be built: the known types are {known}",
        package_type=package_type,
    )


def recognise(source: Path) -> Platform:
    """Return the platform of a source directory.

    When several match, the one whose manifest names a Fabric shim is taken.

    Raises:
        SourceInvalid: no directory; none matches; it stays open which.
    """
    if not source.is_dir():
        raise SourceInvalid(
            f"source {str(source)!r} is not a directory", path=str(source)
        )
    reasons = {
        platform: reason
        for platform in PLATFORMS
        if (reason := platform.recognise(source)) is not None
    }
    if len(reasons) > 1:
        named = {one: why for one, why in reasons.items() if one.names_shim(source)}
        reasons = named if len(named) == 1 else reasons
    if len(reasons) == 1:
        return next(iter(reasons))
    if not reasons:
        raise SourceInvalid(
            f"no chaincode found in {str(source)!r}: looked for go.mod and *.go, "
            "package.json, requirements.txt, pyproject.toml and *.py",
            hint="name the directory that holds the chaincode's source",
            path=str(source),
        )
    found = "; ".join(f"{one.name}: {why}" for one, why in reasons.items())
    raise SourceInvalid(
        f"source {str(source)!r} could be of several languages ({found})",
        hint="put each chaincode into a directory of its own and name that one",
        path=str(source),
        languages=[one.name for one in reasons],
    )
