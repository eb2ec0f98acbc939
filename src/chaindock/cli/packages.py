"""`package`, `inspect`, `package-id`: package files for people; `packages`: of a node.

A package file appears complete or not at all.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from chaindock.cli import show
from chaindock.cli.session import Session, command
from chaindock.errors import PackageInvalid

if TYPE_CHECKING:
    from chaindock.packaging.format import PackageInfo
    from chaindock.packaging.rules import Limits

_SHOWN_ENTRIES = 40


@command("chaindock package . -o basic.tar.gz --label basic_1.0")
@click.argument("source", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="The package file to write.",
)
@click.option("--label", help="Label of the package.  [default: DIR_1.0]")
def package(session: Session, source: Path, output: Path, label: str | None) -> None:
    """Write the package of a source directory.

    The same source and label give the same bytes everywhere. Prints the package id.
    """
    from chaindock.errors import InvalidInput, NotFound, os_errors_as
    from chaindock.packaging.writer import package_directory

    if not source.is_dir():
        raise NotFound(
            f"there is no source directory {str(source)!r}",
            hint="check the path",
            path=str(source),
        )
    part = output.with_name(f".{output.name}.part")
    facts = {"hint": "choose another place with -o FILE", "path": str(output)}
    what = f"package file {str(output)!r}"
    try:
        with os_errors_as(InvalidInput, what, "written", **facts):
            with part.open("w+b") as file:
                info = package_directory(source, file, label, warn=show.warn)
            part.replace(output)
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
    if session.emits({**_as_json(info), "file": str(output)}):
        return
    click.echo(info.id)
    for warning in info.warnings:
        show.warn(warning)


def read(file: Path, limits: Limits | None = None) -> PackageInfo:
    """Return what a package file holds. Raises: as `read_package`; names the file."""
    from chaindock.packaging.format import read_package

    try:
        return read_package(file, limits)
    except PackageInvalid as error:
        raise PackageInvalid(
            f"{str(file)!r} is no package: {error.message}",
            hint=error.hint or "make one of a directory: chaindock package DIR -o FILE",
            **error.facts,
        ) from error


@command("chaindock inspect basic.tar.gz")
@click.argument("file", type=click.Path(path_type=Path))
def inspect(session: Session, file: Path) -> None:
    """Show what is in a package."""
    info = read(file)
    if session.emits(_as_json(info)):
        return
    show.pairs(
        [
            ("id", info.id),
            ("label", info.label),
            ("type", show.visible(info.package_type)),
            *([("path", show.visible(info.import_path))] if info.import_path else []),
            ("size", f"{info.size} bytes"),
            ("code", f"sha256 {info.code_digest}"),
            ("files", str(len(info.entries))),
        ]
    )
    for entry in info.entries[:_SHOWN_ENTRIES]:
        click.echo(f"{entry.size:>12}  {show.visible(entry.name)}")
    if (more := len(info.entries) - _SHOWN_ENTRIES) > 0:
        click.echo(f"{'':>12}  … and {more} more (--json)")
    for warning in info.warnings:
        show.warn(warning)


@command("chaindock package-id basic.tar.gz")
@click.argument("file", type=click.Path(path_type=Path))
def package_id(session: Session, file: Path) -> None:
    """Print the id of a package."""
    info = read(file)
    session.says({"id": info.id}, info.id, err=False)


@click.group()
def packages() -> None:
    """List and remove the packages of the node."""


@command("chaindock packages ls", group=packages)
def packages_ls(session: Session) -> None:
    """List the packages of the node and the chaincodes that run them.

    A package that was installed (peer lifecycle chaincode install) stays until it is
    removed. A package that `deploy` brought is removed with the last chaincode that runs it.
    """
    session.shows(
        session.client().get("packages")["packages"],
        PACKAGE=lambda one: one["package_id"],
        INSTALLED_BY=lambda one: ", ".join(one["installed_by"]) or "deploy",
        CHAINCODES=lambda one: (
            ", ".join(
                f"{user['name']} on {user['channel']}" for user in one["chaincodes"]
            )
            or "-"
        ),
    )


@command("chaindock packages rm basic_1.0:c99e…", group=packages)
@click.argument("package_id", metavar="ID")
def packages_rm(session: Session, package_id: str) -> None:
    """Remove a package that no chaincode runs, and its builds.

    ID is a package id, or the beginning of one.
    """
    client = session.client()
    found = [one["package_id"] for one in client.get("packages")["packages"]]
    fits = [one for one in found if one.startswith(package_id)]
    chosen = fits[0] if len(fits) == 1 else package_id
    client.delete("packages", chosen)
    session.says({"package_id": chosen}, f"removed {chosen}", err=False)


def _as_json(info: PackageInfo) -> dict[str, Any]:
    return {
        "id": info.id,
        "label": info.label,
        "type": info.package_type,
        "path": info.import_path,
        "size": info.size,
        "code_sha256": info.code_digest,
        "files": [{"name": entry.name, "size": entry.size} for entry in info.entries],
        "indexes": list(info.indexes),
        "warnings": list(info.warnings),
    }
