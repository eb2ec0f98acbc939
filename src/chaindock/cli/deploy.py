"""`deploy`, `start`, `stop` and `rm`, and the progress of an attempt.

The client packages a directory, so that its id is the one that `chaindock package`
prints. Progress goes to standard error: plain lines where there is no terminal.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click
from typing_extensions import override

from chaindock.cli import show
from chaindock.cli.session import Session, command, name_argument
from chaindock.cli.show import is_terminal, seconds, visible
from chaindock.errors import ChaindockError, NodeError, NotFound
from chaindock.operations import wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from rich.console import RenderableType

    from chaindock.cli.client import AdminClient


@command(
    "chaindock deploy . --name basic",
    "chaindock deploy basic.tar.gz --name basic --backend docker",
    "chaindock deploy ./token --init-required",
    "chaindock deploy --dev basic           # you start the program yourself",
)
@click.argument(
    "source", metavar="[DIR|PACKAGE]", type=click.Path(path_type=Path), required=False
)
@click.option("--name", help="Name of the chaincode.  [default: the label's name]")
@click.option(
    "--label",
    help="Label of the package that is made of DIR.  [default: NAME_VERSION; "
    "if not given, the directory's name and 1.0]",
)
@click.option("--version", help="Version of the definition.  [default: SEQUENCE.0]")
@click.option(
    "--backend",
    default="auto",
    show_default=True,
    help="Back end: auto, docker or process.",
)
@click.option("--init-required", is_flag=True, help="Callers must invoke --init first.")
@click.option(
    "--dev",
    metavar="NAME",
    help="Define NAME for a program that you start yourself (chaincode.mode: dev).",
)
@click.option("-v", "--verbose", is_flag=True, help="Show the output of the build.")
def deploy(
    session: Session, source: Path | None, *, dev: str | None, **options: Any
) -> None:
    """Build a chaincode and start it.

    DIR is a source directory in Go, JavaScript, TypeScript or Python; PACKAGE is a file
    made by `chaindock package` or `peer lifecycle chaincode package`. Deploying under a
    name that exists replaces the version that runs; the state on the ledger stays.
    """
    if (source is None) == (dev is None):
        raise click.UsageError("expected a directory, a package file, or --dev NAME")
    if dev is not None:
        _deploy_dev(session, dev, options)
        return
    assert source is not None  # noqa: S101  # for mypy
    done = deploy_path(session.client(), source, **options)
    if session.emits(done):
        return
    same = "" if done["changed"] else "; nothing changed"
    click.echo(describe(done) + same, err=True)
    init = "--init " if options["init_required"] and done["changed"] else ""
    words = session.words(f"invoke {done['name']} {init}FUNCTION ARGS...")
    show.note("next", words, "cyan")


def _deploy_dev(session: Session, name: str, options: Mapping[str, Any]) -> None:
    for option in ("name", "label"):
        if options[option] is not None:
            raise click.UsageError(f"--{option} cannot be used with --dev")
    client = session.client()
    done = client.deploy_dev(
        name, options["version"], init_required=options["init_required"]
    )
    if session.emits(done):
        return
    same = "" if done["changed"] else " already"
    text = f"{done['name']} is defined{same}: version {done['version']}"
    click.echo(click.style(text, fg="green"), err=True)
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
    **asked: str | None,
) -> dict[str, Any]:
    """Deploy a directory or package file and show the progress.

    `asked` has `name`, `version` and `backend`, as the user gave them.
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
        return watch_attempt(client.deploy(package, given), verbose=verbose)


@contextlib.contextmanager
def _package_file(
    source: Path, label: str, known: Mapping[str, int]
) -> Iterator[BinaryIO]:
    """Yield the package file of `source`; `known` are the node's limits."""
    from chaindock.packaging.format import read_package
    from chaindock.packaging.rules import Limits
    from chaindock.packaging.writer import package_directory

    ours = {field.name for field in dataclasses.fields(Limits)}
    limits = Limits(**{name: known[name] for name in known if name in ours})
    if source.is_file():
        read_package(source, limits)
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


@command("chaindock start basic", "chaindock start basic token")
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


@command("chaindock stop basic", "chaindock stop basic token")
@name_argument(many=True)
def stop(session: Session, names: Sequence[str]) -> None:
    """Stop chaincodes; they stay deployed.

    `chaindock start NAME` starts them again.
    """
    _each(session, names, session.client().stop, "stopped")


@command("chaindock rm basic", "chaindock rm basic token")
@name_argument(many=True)
def rm(session: Session, names: Sequence[str]) -> None:
    """Stop and remove chaincodes; their state stays on the ledger."""
    _each(session, names, session.client().remove, "removed")


def _each(
    session: Session, names: Sequence[str], act: Callable[[str], Any], done: str
) -> None:
    for name in names:
        act(name)
        if not session.json:
            click.echo(f"{name} {done}", err=True)
    session.emits({done: list(names)})


# --- progress ------------------------------------------------------------------------


def watch_attempt(
    events: Iterable[dict[str, Any]], *, verbose: bool = False
) -> dict[str, Any]:
    """Show an attempt; return its result. Raises: what `events` raise at their end."""
    view = _Live() if is_terminal(err=True) else _Plain()
    view.verbose = verbose
    with view.screen:
        try:
            for event in events:
                if event.get("event") == wire.EVENT_RESULT:
                    view.settle()
                    result: dict[str, Any] = event["result"]
                    return result
                view.take(event)
        except ChaindockError as error:
            view.fail(error.facts.get("phase"))
            raise
    raise NodeError(
        "the node ended before the chaincode was running",
        hint="read its log (node.log), then start it again: chaindock up -d",
    )


class _Plain:
    """Lines for pipes and logs.

    The end of a phase arrives before the error that ended it, so the phase is shown when
    the next event tells whether it succeeded.
    """

    announced = frozenset(("pull", "dependencies", "compile", "image"))
    """Long phases, which are shown when they begin, too."""
    note_indent = "  "
    verbose = False
    screen: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    open: tuple[str, float] | None = None
    last_line = ""
    _ended: tuple[str, float] | None = None

    def take(self, event: dict[str, Any]) -> None:
        """Show an event of the attempt."""
        kind = event.get("event")
        if kind == "phase":
            self.settle()
            phase, self.last_line = visible(event["phase"]), ""
            self.open = (phase, time.monotonic())
            if phase in self.announced:
                self.say(f"  {phase} ...")
        elif kind == "phase-end":
            self.open = None
            self._ended = (visible(event["phase"]), event["seconds"])
        elif kind == "note":
            self.say(self.note_indent + visible(event["text"]))
        elif kind == "output":
            line = visible(event["line"])
            self.last_line = line.strip() or self.last_line
            if self.verbose:
                self.say("  | ", line)

    def settle(self) -> None:
        """Show that the phase that ended last succeeded."""
        if self._ended is not None:
            self.ended(*self._ended, good=True)
            self._ended = None

    def fail(self, phase: str | None) -> None:
        """Show that the attempt ended with an error of `phase`."""
        if self._ended is not None:
            self.ended(*self._ended, good=self._ended[0] != phase)
        if self.open is not None:
            name, began = self.open
            self.ended(name, time.monotonic() - began, good=False)

    def ended(self, phase: str, spent_s: float, *, good: bool) -> None:
        self.say(f"  {phase:<13}{seconds(spent_s):>8}{'' if good else '  FAILED'}")

    def say(self, dim: str, text: str = "") -> None:
        click.echo(dim + text, err=True)


class _Live(_Plain):
    """A line that moves, and finished phases above it."""

    announced = frozenset()
    note_indent = "    "

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.spinner import Spinner
        from rich.text import Text

        self._text = Text.assemble
        self._console = Console(stderr=True, highlight=False)
        simple = self._console.options.ascii_only
        self._done, self._bad = ("ok", "!!") if simple else ("✓", "✗")
        self._spinner = Spinner("line" if simple else "dots", style="cyan")
        self.screen = Live(
            console=self._console,
            get_renderable=self._render,
            transient=True,
            refresh_per_second=10,
        )

    def _render(self) -> RenderableType:
        if self.open is None:
            return ""
        phase, began = self.open
        spent = seconds(time.monotonic() - began)
        text = self._text(f" {phase:<13}", (f"{spent:>8}  {self.last_line}", "dim"))
        text.truncate(max(self._console.width - 4, 0), overflow="ellipsis")
        self._spinner.update(text=text)
        return self._spinner

    @override
    def ended(self, phase: str, spent_s: float, *, good: bool) -> None:
        mark = (self._done, "green") if good else (self._bad, "red")
        spent = (f"{seconds(spent_s):>8}", "dim")
        self._console.print(self._text("  ", mark, f" {phase:<13}", spent))

    @override
    def say(self, dim: str, text: str = "") -> None:
        self._console.print(self._text((dim, "dim"), text))
