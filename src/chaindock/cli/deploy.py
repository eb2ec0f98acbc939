"""`deploy`, `start`, `stop` and `rm`.

The client packages a directory, so that its id is the one that `chaindock package`
prints.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from chaindock.cli import show
from chaindock.cli.progress import watch_attempt
from chaindock.cli.session import Session, command, name_argument
from chaindock.errors import InvalidInput, NotFound, os_errors_as
from chaindock.ids import CHANNEL_ENDORSEMENT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from chaindock.cli.client import AdminClient


@command(
    "chaindock deploy . --name basic",
    "chaindock deploy basic.tar.gz --name basic --backend docker",
    "chaindock deploy ./token --init-required",
    "chaindock deploy ./deals --collections-config collections.json",
    "chaindock deploy ./deals --signature-policy \"OR('Org1MSP.peer')\"",
    "chaindock deploy --dev basic           # you start the program yourself",
    of_channel=True,
)
@click.argument(
    "source", metavar="[DIR|PACKAGE]", type=click.Path(path_type=Path), required=False
)
@click.option("--name", help="Chaincode name.  [default: the label without version]")
@click.option(
    "--label",
    help="Label of the package that is made of DIR.  [default: NAME_VERSION, where the "
    "directory's name and 1.0 stand for what is not given]",
)
@click.option("--version", help="Version of the definition.  [default: SEQUENCE.0]")
@click.option(
    "--backend",
    default="auto",
    show_default=True,
    help="Where it runs: docker (in containers), process (as local processes) or auto.",
)
@click.option("--init-required", is_flag=True, help="`invoke --init` must be first.")
@click.option(
    "--signature-policy",
    metavar="POLICY",
    help="Endorsement policy, e.g. \"AND('Org1MSP.peer','Org2MSP.peer')\".  "
    "[default: as before; at first that of the channel]",
)
@click.option(
    "--channel-config-policy",
    metavar="PATH",
    help=f"Endorsement policy of the channel, e.g. {CHANNEL_ENDORSEMENT}.",
)
@click.option(
    "--collections-config",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Private data collections: a JSON file as for the `peer` command.  "
    "[default: as before]",
)
@click.option(
    "--dev",
    metavar="NAME",
    help="Define NAME for a program that you start yourself (chaincode.mode: dev).",
)
@click.option("-v", "--verbose", is_flag=True, help="Show the output of the build.")
def deploy(
    session: Session,
    source: Path | None,
    *,
    dev: str | None,
    signature_policy: str | None,
    channel_config_policy: str | None,
    collections_config: Path | None,
    **options: Any,
) -> None:
    """Build a chaincode and start it.

    DIR is a source directory in Go, JavaScript, TypeScript or Python; PACKAGE is a file
    made by `chaindock package` or `peer lifecycle chaincode package`. Deploying under a
    name that exists replaces the version that runs; the state on the ledger stays.
    """
    if (source is None) == (dev is None):
        what = "a directory or a package file, or --dev NAME"
        found = "none" if dev is None else "both"
        raise click.UsageError(f"expected {what}; found {found}")
    if signature_policy and channel_config_policy:
        raise click.UsageError(
            "--signature-policy cannot be used with --channel-config-policy"
        )
    said = {
        "signature_policy": signature_policy,
        "channel_config_policy": channel_config_policy,
        "collections": collections_config and _read_collections(collections_config),
    }
    terms = {key: value for key, value in said.items() if value is not None}
    if dev is not None:
        _deploy_dev(session, dev, terms, options)
        return
    assert source is not None  # noqa: S101  # for mypy
    done = deploy_path(session.client(), source, terms=terms, **options)
    if session.emits(done):
        return
    same = "" if done["changed"] else "; its definition did not change"
    click.echo(describe(done) + same, err=True)
    _show_terms(done, terms)
    init = "--init " if options["init_required"] and done["changed"] else ""
    words = session.words(f"invoke {done['name']} {init}FUNCTION ARGS...")
    show.note("next", words, "cyan")


def _read_collections(path: Path) -> Any:
    """Return the parsed file after the checks that need no node."""
    import json

    from chaindock.lifecycle.terms import parse_collections

    name = f"the collections file {str(path)!r}"
    hint = "check the path; relative ones start at the current directory"
    with os_errors_as(InvalidInput, name, hint=hint, path=str(path)):
        text = path.read_bytes()
    parse_collections(text, name, show.warn)
    return json.loads(text)


def _show_terms(done: Mapping[str, Any], terms: Mapping[str, Any]) -> None:
    """Say under which policy and with which collections, and what was kept."""
    policy, collections = done.get("policy"), done.get("collections")
    if policy and ("signature_policy" in terms or policy != CHANNEL_ENDORSEMENT):
        given = {"signature_policy", "channel_config_policy"} & terms.keys()
        kept = "" if given else " (kept)"
        show.note("policy", show.visible(policy) + kept, "cyan")
    if collections:
        kept = "" if "collections" in terms else " (kept)"
        show.note("collections", show.visible(", ".join(collections)) + kept, "cyan")


def _deploy_dev(
    session: Session, name: str, terms: Mapping[str, Any], options: Mapping[str, Any]
) -> None:
    for option in ("name", "label"):
        if options[option] is not None:
            raise click.UsageError(f"--{option} cannot be used with --dev")
    client = session.client()
    asked = {key: options[key] for key in ("version", "init_required")}
    done = client.post("chaincodes", name=name, dev=True, **terms, **asked)
    if session.emits(done):
        return
    same = "" if done["changed"] else " already"
    text = f"{done['name']} is defined{same}: version {done['version']}"
    click.echo(click.style(text, fg="green"), err=True)
    _show_terms(done, terms)
    address = client.status()["endpoints"].get("chaincode", "")
    # With TLS the node keeps the files that the program needs in this directory.
    tls = str((client.home / "dev").is_dir()).lower()
    words = f"CORE_CHAINCODE_ID_NAME={done['name']}:{done['version']}"
    words += f" CORE_PEER_TLS_ENABLED={tls} ./PROGRAM"
    words += f" --peer.address {address.partition(',')[0].removeprefix('tcp://')}"
    show.note("next", words, "cyan")


def deploy_path(
    client: AdminClient,
    source: Path,
    *,
    label: str | None = None,
    init_required: bool = False,
    verbose: bool = False,
    terms: Mapping[str, Any] | None = None,
    **asked: str | None,
) -> dict[str, Any]:
    """Deploy a directory or package file and show the progress.

    `asked` has `name`, `version` and `backend`, as the user gave them; `terms` the
    fields of lifecycle.terms.Said.
    Returns: the fields of facade.Deployment.
    """
    from chaindock.ids import require_chaincode_name, require_version
    from chaindock.packaging.writer import default_label

    asked["init"] = "1" if init_required else None
    given = {key: value for key, value in asked.items() if value is not None}
    if "name" in given:
        require_chaincode_name(given["name"])
    if "version" in given:
        require_version(given["version"])
    # Nothing is packaged for a node that is not there, or would not take it.
    limits = client.status().get("limits", {})
    if label is None:
        name = given.get("name") or default_label(source).removesuffix("_1.0")
        label = f"{name}_{given.get('version', '1.0')}"
    with _package_file(source, label, limits) as package:
        return watch_attempt(
            client.deploy(package, given, terms or {}), verbose=verbose
        )


@contextlib.contextmanager
def _package_file(
    source: Path, label: str, known: Mapping[str, int]
) -> Iterator[BinaryIO]:
    """Yield the package file of `source`; `known` are the node's limits."""
    from chaindock.cli.packages import read
    from chaindock.packaging.rules import Limits
    from chaindock.packaging.writer import package_directory

    ours = {field.name for field in dataclasses.fields(Limits)}
    limits = Limits(**{name: known[name] for name in known if name in ours})
    if source.is_file():
        read(source, limits)
        with source.open("rb") as file:
            yield file
        return
    if not source.is_dir():
        raise NotFound(
            f"there is no {str(source)!r}: expected a source directory or a package file",
            hint="check the path; relative ones start at the current directory",
            path=str(source),
        )
    # It has no name, so nothing is left of it however this process ends.
    with tempfile.TemporaryFile() as file:
        info = package_directory(source, file, label, limits=limits, warn=show.warn)
        text = f"packaged {show.count(len(info.entries), 'file')} as"
        click.echo(click.style(f"{text} {show.shorten(info.id)}", dim=True), err=True)
        yield file


def describe(done: Mapping[str, Any]) -> str:
    """Return the sentence that ends a deployment."""
    reason = show.visible(done["reason"].partition(";")[0])
    why = f" ({reason})" if reason else ""
    up = click.style(f"{done['name']} is running", fg="green")
    return (
        f"{up}: version {done['version']}, {show.shorten(done['package_id'])}, "
        f"on {done['backend']}{why}, in {show.seconds(done['seconds'])}"
    )


@command("chaindock start basic", "chaindock start basic token", of_channel=True)
@name_argument(many=True)
@click.option("-v", "--verbose", is_flag=True, help="Show the output of the build.")
def start(session: Session, names: Sequence[str], *, verbose: bool) -> None:
    """Start stopped chaincodes again.

    With --json one NAME gives an object and several give an array.
    """
    found = []
    for name in names:
        done = watch_attempt(session.client().start(name), verbose=verbose)
        found.append(done)
        if not session.json:
            click.echo(describe(done), err=True)
    session.emits(found[0] if len(found) == 1 else found)


@command("chaindock stop basic", "chaindock stop basic token", of_channel=True)
@name_argument(many=True)
def stop(session: Session, names: Sequence[str]) -> None:
    """Stop chaincodes; they stay deployed.

    `chaindock start NAME` starts them again.
    """
    _each(session, names, session.client().stop, "stopped")


@command("chaindock rm basic", "chaindock rm basic token", of_channel=True)
@name_argument(many=True)
def rm(session: Session, names: Sequence[str]) -> None:
    """Stop and remove chaincodes; the ledger keeps their state."""
    _each(session, names, session.client().remove, "removed")


def _each(
    session: Session, names: Sequence[str], act: Callable[[str], Any], done: str
) -> None:
    for name in names:
        act(name)
        if not session.json:
            click.echo(f"{name} {done}", err=True)
    session.emits({done: list(names)})
