"""`demo`.

Owns:    the bundled example from source to answered calls, on a node of its own.
Not:     any way of its own: it uses the client code of the commands.
Entry:   demo
Holds:   node and home are gone at the end, however it ends; an answer that is not the
         expected one is an error.
Source:  architecture.md "one command"
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from chaindock.cli import show
from chaindock.cli.session import Session, home_option, json_option, pass_session

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from chaindock.cli.client import AdminClient

LANGUAGES = ("python", "node", "go")
SHOWN_CHARS = 240
SHOWN_KEYS = 4
_ERROR = 400
_WORDS = {"python": "Python", "node": "JavaScript", "go": "Go"}

# (verb, arguments, status it must have, text that must be in the answer)
_CALLS = (
    ("invoke", ("register", "P1", "2", "8"), 200, '"intact"'),
    ("invoke", ("record", "P1", "9.5"), 200, '"breached"'),
    ("invoke", ("register", "P1", "2", "8"), 500, "registered already"),
    ("query", ("history", "P1"), 200, '"breached"'),
)


@dataclass
class _Story:
    """What happened, for --json."""

    node: dict[str, Any] = field(default_factory=dict)
    deployments: list[dict[str, Any]] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    blocks: list[dict[str, Any]] = field(default_factory=list)


@click.command()
@click.option(
    "--contract",
    type=click.Choice([*LANGUAGES, "all"]),
    default="python",
    show_default=True,
    help="The language of the example.",
)
@click.option("--backend", help="What runs it: auto, docker, process.")
@click.option("--keep", is_flag=True, help="Leave the node running at the end.")
@click.option("-v", "--verbose", is_flag=True, help="Show the output of builds.")
@json_option
@home_option
@pass_session
def demo(
    session: Session, *, contract: str, backend: str | None, keep: bool, verbose: bool
) -> None:
    """Run the bundled example on a throw-away node.

    Starts a node in a temporary home, builds and starts the example, calls it, shows
    the blocks, and removes everything again. --home is not used.
    """
    chosen = LANGUAGES if contract == "all" else (contract,)
    run = _Demo(err=session.json, verbose=verbose)
    run.play(chosen, examples_folder(), backend, keep=keep)
    if session.json:
        show.emit_json(vars(run.story))


def examples_folder() -> Path:
    """Return where the bundled examples are.

    Raises: NotFound when this installation has none.
    """
    from chaindock.errors import NotFound

    package = Path(__file__).parent.parent
    for folder in (package / "_examples", package.parent.parent / "examples"):
        if (folder / "python").is_dir():
            return folder
    raise NotFound(
        "this installation has no examples",
        hint="install Chaindock from its wheel, or run it from its source tree",
    )


class _Demo:
    """One run of it.

    Args:
        err: tell the story on standard error, because standard output gets JSON.
    """

    def __init__(self, *, err: bool, verbose: bool) -> None:
        self._err, self._verbose = err, verbose
        self.story = _Story()

    def play(
        self, languages: Sequence[str], folder: Path, backend: str | None, *, keep: bool
    ) -> None:
        """Run the example in each language."""
        with self._throw_away(backend, keep=keep) as client:
            for language in languages:
                self._run(client, folder / language, language)
            self._show_blocks(client)
            if not keep:
                for done in self.story.deployments:
                    client.remove(done["name"])
        end = "" if keep else " Node and home are gone again."
        self._tell(click.style("done.", fg="green") + end)

    @contextlib.contextmanager
    def _throw_away(self, backend: str | None, *, keep: bool) -> Iterator[AdminClient]:
        """Yield a client of a new node; afterwards neither it nor its home exists."""
        from chaindock.cli.client import AdminClient
        from chaindock.cli.up import start_detached

        home = Path(tempfile.mkdtemp(prefix="chaindock-demo-"))
        kept = False
        try:
            self._title("node")
            began = time.monotonic()
            flags = {} if backend is None else {"chaindock.backend": backend}
            node = self.story.node = start_detached(home, flags)
            reason = f" ({node['reason']})" if node["reason"] else ""
            spent = show.seconds(time.monotonic() - began)
            self._tell(
                f"  ready in {spent}; chaincode runs on {node['backend']}{reason}"
            )
            yield AdminClient(home)
            kept = keep
            if keep:
                self._tell(f"it is left running: chaindock status --home {home}")
        finally:
            if not kept:
                _remove(home)

    def _run(self, client: AdminClient, source: Path, language: str) -> None:
        from chaindock.cli.deploy import deploy_path, describe

        name = f"coldchain-{language}"
        self._title(f"deploy a cold chain in {_WORDS[language]} ({source})")
        done = deploy_path(client, source, name=name, verbose=self._verbose)
        self.story.deployments.append(done)
        if not show.is_terminal():
            spent = (f"{phase} {show.seconds(s)}" for phase, s in done["phases"])
            self._tell(f"  phases: {', '.join(spent)}")
        self._tell(f"  {describe(done)}")
        self._title("call it")
        for verb, args, status, expected in _CALLS:
            self._call(client, (verb, name, *args), status, expected)

    def _call(
        self, client: AdminClient, words: Sequence[str], status: int, expected: str
    ) -> None:
        from chaindock.operations.facade import Call

        verb, name, *args = words
        call = Call(name=name, args=[arg.encode() for arg in args])
        began = time.monotonic()
        answer = client.invoke(call) if verb == "invoke" else client.query(call)
        spent_s = time.monotonic() - began
        where = "" if answer["block"] is None else f", block {answer['block']}"
        took = click.style(f"{show.seconds(spent_s)}{where}", dim=True)
        self._tell(f"  {' '.join(words)}  {took}")
        text = show.payload_of(answer).decode(errors="replace") or answer["message"]
        refused = answer["status"] >= _ERROR
        mark = click.style("refused: ", fg="yellow") if refused else ""
        shown = show.visible(text)
        cut = " ..." if len(shown) > SHOWN_CHARS else ""
        self._tell(f"    {mark}{shown[:SHOWN_CHARS]}{cut}")
        told = {
            "command": " ".join(words),
            "seconds": spent_s,
            **{key: answer[key] for key in ("status", "message", "block", "code")},
            "result": show.parsed(show.payload_of(answer)),
        }
        self.story.calls.append(told)
        _require(told, status, expected)

    def _show_blocks(self, client: AdminClient) -> None:
        self._title("blocks")
        self.story.blocks = [client.block(number) for number in range(client.height())]
        for block in self.story.blocks:
            head = f"  {block['number']:>3}  {block['data_hash'][:12]}"
            for one in block["transactions"] or [None]:
                self._tell(head + _transaction(one))
                head = " " * len(head)

    def _title(self, text: str) -> None:
        self._tell(click.style(text, bold=True))

    def _tell(self, text: str) -> None:
        click.echo(text, err=self._err)


def _remove(home: Path) -> None:
    from chaindock.cli.down import stop_node

    try:
        stop_node(home, force=True)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _require(told: Mapping[str, Any], status: int, expected: str) -> None:
    from chaindock.errors import ExecuteFailed

    text = told["message"] + json.dumps(told["result"])
    if (
        (told["status"] >= _ERROR) == (status >= _ERROR)
        and expected in text
        and told["code"] in {0, None}
    ):
        return
    raise ExecuteFailed(
        f"{told['command']!r} answered status {told['status']}, code {told['code']}: "
        f"expected {expected!r} in {text!r:.300}",
        hint="the example and the node disagree: please report it",
    )


def _transaction(one: Mapping[str, Any] | None) -> str:
    if one is None:
        return ""
    keys = [_key(write["key"]) for write in one["writes"]]
    shown = ", ".join(keys) if len(keys) <= SHOWN_KEYS else f"{len(keys)} keys"
    what = one["chaincode"] or one["type"].lower()
    wrote = f"  writes {shown}" if keys else ""
    code = click.style(f"{one['code_name'] or '-'}", dim=True)
    return f"  {one['tx_id'][:12]:<12}  {what:<18} {code}{wrote}"


def _key(key: str) -> str:
    """Return a key for people: a composite one with slashes, long parts cut."""
    parts = (part[:16] for part in key.split("\0") if part)
    return show.visible("/".join(parts))
