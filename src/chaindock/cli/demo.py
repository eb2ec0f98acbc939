"""`demo`: the bundled example from source to answered calls, on a temporary node.

Node and home are removed at the end, however the demo ends. An answer that is not the
expected one is an error.
"""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from chaindock.cli import show
from chaindock.cli.session import Session, command

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from chaindock.cli.client import AdminClient

LANGUAGES = {"python": "Python", "node": "JavaScript", "go": "Go"}
SHOWN_CHARS = 240
SHOWN_KEYS = 4
_ERROR = 400

# (verb, arguments, status it must have, text that must be in the answer)
_CALLS = (
    ("invoke", ("register", "P1", "2", "8"), 200, '"intact"'),
    ("invoke", ("record", "P1", "9.5"), 200, '"breached"'),
    ("invoke", ("register", "P1", "2", "8"), 500, "registered already"),
    ("query", ("history", "P1"), 200, '"breached"'),
)


@command(
    "chaindock demo",
    "chaindock demo --contract all --backend docker",
    "chaindock demo --keep                  # and try it yourself",
)
@click.option(
    "--contract",
    type=click.Choice([*LANGUAGES, "all"]),
    default="python",
    show_default=True,
    help="The language of the example.",
)
@click.option("--backend", help="Runs on docker, process or auto.  [default: auto]")
@click.option("--keep", is_flag=True, help="Leave the node running at the end.")
@click.option("-v", "--verbose", is_flag=True, help="Show the output of builds.")
def demo(
    session: Session, *, contract: str, backend: str | None, keep: bool, verbose: bool
) -> None:
    """Run the bundled example on a temporary node.

    Starts a node in a temporary home, builds and starts the example, calls it, shows
    the blocks, and removes everything again. --home is not used. If no back end is
    configured and no container is possible, the example runs as a process, and the demo
    says so.
    """
    chosen = list(LANGUAGES) if contract == "all" else [contract]
    run = _Demo(err=session.json, backend=backend, verbose=verbose)
    run.play(chosen, examples_folder(), keep=keep)
    session.emits(run.story)


def examples_folder() -> Path:
    """Return where the bundled examples are. Raises: NotFound: there are none."""
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
    """One run of the demo; `err`: it tells on standard error, as --json has the output."""

    def __init__(self, *, err: bool, backend: str | None, verbose: bool) -> None:
        self._err, self._backend, self._verbose = err, backend or "", verbose
        self.story: dict[str, Any] = {"node": {}, "deployments": [], "calls": []}

    def play(self, languages: Sequence[str], folder: Path, *, keep: bool) -> None:
        """Run the example in each language."""
        with self._temporary_node(keep=keep) as client:
            for language in languages:
                self._run(client, folder / language, language)
            self._title("blocks")
            self.story["blocks"] = client.blocks()
            for block in self.story["blocks"]:
                head = f"  {block['number']:>3}  {block['data_hash'][:12]}"
                lines = [_transaction(one) for one in block["transactions"]] or [""]
                self._tell(head + f"\n{'':>{len(head)}}".join(lines))
            if not keep:
                for done in self.story["deployments"]:
                    # A process's build stays in the cache: the next demo is quick.
                    if done["backend"] != "process":
                        client.remove(done["name"])
        end = "" if keep else " Node and home are removed."
        self._tell(click.style("done.", fg="green") + end)

    @contextlib.contextmanager
    def _temporary_node(self, *, keep: bool) -> Iterator[AdminClient]:
        """Yield a client of a new node; afterwards neither it nor its home exists."""
        from chaindock.cli.client import AdminClient
        from chaindock.cli.node import start_detached, stop_node
        from chaindock.config.load import load

        home = Path(tempfile.mkdtemp(prefix="chaindock-demo-"))
        with contextlib.ExitStack() as undo:
            undo.callback(shutil.rmtree, home, ignore_errors=True)
            undo.callback(stop_node, home, force=True)
            self._title("node")
            began = time.monotonic()
            self._backend = self._backend or load(home).node.backend
            node = self.story["node"] = self._trying(
                lambda backend: start_detached(home, {"chaindock.backend": backend})
            )
            reason = f" ({node['reason']})" if node["reason"] else ""
            spent = show.seconds(time.monotonic() - began)
            self._tell(
                f"  ready in {spent}; chaincode runs on {node['backend']}{reason}"
            )
            yield AdminClient(home)
            if keep:
                undo.pop_all()
                self._tell(f"the node still runs: chaindock status --home {home}")

    def _trying(self, act: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
        """Return `act(back end)`; without containers, unless one was named, on processes."""
        from chaindock.errors import ChaindockError, EngineError, ImageNotFound

        try:
            return act(self._backend)
        except ChaindockError as error:
            missing = isinstance(error, EngineError | ImageNotFound)
            pulls = error.facts.get("phase") == "pull"
            if self._backend != "auto" or not (missing or pulls):
                raise
            self._backend = "process"
            self._tell(f"  no container is possible: {show.one_line(str(error))}")
            self._tell("  the bundled example is trusted: it runs as a process instead")
            return act(self._backend)

    def _run(self, client: AdminClient, source: Path, language: str) -> None:
        from chaindock.cli.deploy import deploy_path, describe

        name = f"coldchain-{language}"
        self._title(f"deploy a cold chain in {LANGUAGES[language]} ({source})")
        done = self._trying(
            lambda backend: deploy_path(
                client, source, name=name, backend=backend, verbose=self._verbose
            )
        )
        self.story["deployments"].append(done)
        self._tell(f"  {describe(done)}")
        self._title("call it")
        for verb, args, status, expected in _CALLS:
            self._call(client, verb, name, args)
            _require(self.story["calls"][-1], status, expected)

    def _call(
        self, client: AdminClient, verb: str, name: str, args: Sequence[str]
    ) -> None:
        from chaindock.operations.facade import Call

        call = Call(name=name, args=[arg.encode() for arg in args])
        began = time.monotonic()
        answer = client.call(call, verb)
        payload = base64.b64decode(answer["payload"])
        told = {
            "command": " ".join((verb, name, *args)),
            "seconds": time.monotonic() - began,
            **{key: answer[key] for key in ("status", "message", "block", "code")},
            "result": show.parsed(payload),
        }
        self.story["calls"].append(told)
        where = "" if told["block"] is None else f", block {told['block']}"
        took = click.style(f"{show.seconds(told['seconds'])}{where}", dim=True)
        self._tell(f"  {told['command']}  {took}")
        shown = show.visible(payload.decode(errors="replace") or told["message"])
        refused = told["status"] >= _ERROR
        mark = click.style("refused: ", fg="yellow") if refused else ""
        cut = " ..." if len(shown) > SHOWN_CHARS else ""
        self._tell(f"    {mark}{shown[:SHOWN_CHARS]}{cut}")

    def _title(self, text: str) -> None:
        self._tell(click.style(text, bold=True))

    def _tell(self, text: str) -> None:
        click.echo(text, err=self._err)


def _require(told: Mapping[str, Any], status: int, expected: str) -> None:
    from chaindock.errors import ExecuteFailed

    text = told["message"] + json.dumps(told["result"])
    same = (told["status"] >= _ERROR) == (status >= _ERROR)
    if same and expected in text and told["code"] in {0, None}:
        return
    raise ExecuteFailed(
        f"{told['command']!r} answered status {told['status']}, code {told['code']}: "
        f"expected {expected!r} in {text!r:.300}",
        hint="the example and the node disagree: please report it",
    )


def _transaction(one: Mapping[str, Any]) -> str:
    # A composite key has its parts between zero bytes; long parts are cut.
    keys = [
        "/".join(part[:16] for part in write["key"].split("\0") if part)
        for write in one["writes"]
    ]
    shown = ", ".join(keys) if len(keys) <= SHOWN_KEYS else f"{len(keys)} keys"
    what = one["chaincode"] or one["type"].lower()
    wrote = f"  writes {show.visible(shown)}" if keys else ""
    code = click.style(f"{one['code_name'] or '-'}", dim=True)
    return f"  {one['tx_id'][:12]:<12}  {what:<18} {code}{wrote}"
