"""`deploy` and `start`.

Owns:    from a source directory or package file to a running chaincode.
Not:     building and starting (the node), the form of progress (progress.py).
Entry:   deploy, start, deploy_path
Holds:   a directory is packaged here, by the client, so that its id is the one that
         `chaindock package` prints.
Source:  needs.md rows 2, 9
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from chaindock.cli import show
from chaindock.cli.ps import count
from chaindock.cli.session import Session, home_option, json_option, pass_session

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from chaindock.cli.client import AdminClient


@click.command()
@click.argument("source", metavar="DIR|PACKAGE", type=click.Path(path_type=Path))
@click.option("--name", help="Name to call it by.  [default: from the label]")
@click.option("--label", help="Label of the package of DIR.  [default: NAME_VERSION]")
@click.option("--version", help="Version of the definition.  [default: counted]")
@click.option(
    "--backend",
    default="auto",
    show_default=True,
    help="What runs it: auto, docker, process.",
)
@click.option("--init-required", is_flag=True, help="Callers must invoke --init first.")
@click.option("-v", "--verbose", is_flag=True, help="Show the output of the build.")
@json_option
@home_option
@pass_session
def deploy(
    session: Session,
    source: Path,
    *,
    name: str | None,
    label: str | None,
    version: str | None,
    backend: str,
    init_required: bool,
    verbose: bool,
) -> None:
    """Build a chaincode and bring it up.

    DIR is a source directory in Go, JavaScript, TypeScript or Python; PACKAGE is a file
    made by `chaindock package` or `peer lifecycle chaincode package`. Deploying under a
    name that exists replaces what runs; the state on the ledger stays.
    """
    done = deploy_path(
        session.client(),
        source,
        name=name,
        label=label,
        version=version,
        backend=backend,
        init_required=init_required,
        verbose=verbose,
    )
    _show_done(session, done)


@click.command()
@click.argument("name")
@click.option("-v", "--verbose", is_flag=True, help="Show the output of the build.")
@json_option
@home_option
@pass_session
def start(session: Session, name: str, *, verbose: bool) -> None:
    """Bring a stopped chaincode up again."""
    from chaindock.cli.progress import watch_attempt

    done = watch_attempt(session.client().start(name), verbose=verbose)
    _show_done(session, done)


def deploy_path(
    client: AdminClient,
    source: Path,
    *,
    name: str | None = None,
    label: str | None = None,
    version: str | None = None,
    backend: str = "auto",
    init_required: bool = False,
    verbose: bool = False,
) -> dict[str, Any]:
    """Deploy a directory or package file and show the progress.

    Returns: the fields of facade.Deployment.
    """
    from chaindock.cli.progress import watch_attempt
    from chaindock.ids import name_from_label, require_chaincode_name, require_version

    if name is not None:
        require_chaincode_name(name)
    if version is not None:
        require_version(version)
    # Nothing is packaged for a node that is not there, or would not take it.
    limits = client.status().get("limits", {})
    if label is None and name is not None:
        label = f"{name}_{version or '1.0'}"
    with _package_file(source, label, limits) as (package, packed_as):
        events = client.deploy(
            package,
            name=name or name_from_label(packed_as),
            version=version,
            backend=backend,
            init_required=init_required,
        )
        return watch_attempt(events, verbose=verbose)


@contextlib.contextmanager
def _package_file(
    source: Path, label: str | None, known: Mapping[str, int]
) -> Iterator[tuple[BinaryIO, str]]:
    """Yield the package file of `source` and its label; `known` are the node's limits."""
    from chaindock.errors import NotFound
    from chaindock.packaging.format import read_package
    from chaindock.packaging.rules import Limits
    from chaindock.packaging.writer import package_directory

    ours = {field.name for field in dataclasses.fields(Limits)}
    limits = Limits(**{name: known[name] for name in known if name in ours})
    if source.is_file():
        with source.open("rb") as file:
            yield file, read_package(source, limits).label
        return
    if not source.is_dir():
        raise NotFound(
            f"there is no {str(source)!r}: expected a source directory or a package file",
            hint="check the path; relative ones start at the current directory",
            path=str(source),
        )
    # It has no name, so nothing is left of it however this process ends.
    with tempfile.TemporaryFile() as file:
        info = package_directory(source, file, label, limits=limits)
        click.echo(
            click.style(
                f"packaged {count(len(info.entries), 'file')} as {show.shorten(info.id)}",
                dim=True,
            ),
            err=True,
        )
        yield file, info.label


def _show_done(session: Session, done: Mapping[str, Any]) -> None:
    if session.json:
        show.emit_json(done)
        return
    click.echo(describe(done), err=True)
    words = f"chaindock invoke{session.home_words()} {done['name']} FUNCTION ARGS..."
    click.echo(click.style("next: ", fg="cyan") + words, err=True)


def describe(done: Mapping[str, Any]) -> str:
    """Return the sentence that ends a deployment."""
    reason = show.visible(done["reason"].partition(";")[0])
    why = f" ({reason})" if reason else ""
    up = click.style(f"{done['name']} is up", fg="green")
    return (
        f"{up}: version {done['version']}, {show.shorten(done['package_id'])}, "
        f"on {done['backend']}{why}, in {show.seconds(done['seconds'])}"
    )
