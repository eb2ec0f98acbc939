"""Show an attempt while it goes on: phases with their times, output, notes.

Everything goes to standard error: plain lines where there is no terminal.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Self

import click
from typing_extensions import override

from chaindock.cli.show import is_terminal, seconds, visible
from chaindock.errors import ChaindockError, NodeError
from chaindock.operations import wire

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import RenderableType

LONG_PHASES = {"pull", "dependencies", "compile", "image"}
"""Phases that are announced when they begin, even in plain lines."""


def watch_attempt(
    events: Iterable[dict[str, Any]], *, verbose: bool = False
) -> dict[str, Any]:
    """Show the events; return the result that ends them.

    Args:
        events: of AdminClient.deploy or start; raises what ended the attempt.
        verbose: print every line of output too.
    """
    with (_Live if is_terminal(err=True) else _Plain)(verbose=verbose) as view:
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

    def __init__(self, *, verbose: bool) -> None:
        self._verbose = verbose
        self._open: tuple[str, float] | None = None
        self._ended: tuple[str, float] | None = None

    def take(self, event: dict[str, Any]) -> None:
        """Show an event of the attempt."""
        kind = event.get("event")
        if kind == "phase":
            self.settle()
            self._open = (visible(event["phase"]), time.monotonic())
            self.began(self._open[0])
        elif kind == "phase-end":
            self._open = None
            self._ended = (visible(event["phase"]), event["seconds"])
        elif kind == "note":
            self.note(visible(event["text"]))
        elif kind == "output":
            self.output(visible(event["line"]))

    def settle(self) -> None:
        """Show that the phase that ended last succeeded."""
        if self._ended is not None:
            self.ended(*self._ended, good=True)
            self._ended = None

    def fail(self, phase: str | None) -> None:
        """Show that the attempt ended with an error of `phase`."""
        if self._ended is not None:
            self.ended(*self._ended, good=self._ended[0] != phase)
        if self._open is not None:
            name, began = self._open
            self.ended(name, time.monotonic() - began, good=False)

    def began(self, phase: str) -> None:
        if phase in LONG_PHASES:
            click.echo(f"  {phase} ...", err=True)

    def ended(self, phase: str, spent_s: float, *, good: bool) -> None:
        state = "" if good else "  FAILED"
        click.echo(f"  {phase:<13}{seconds(spent_s):>8}{state}", err=True)

    def note(self, text: str) -> None:
        click.echo(f"  {text}", err=True)

    def output(self, line: str) -> None:
        if self._verbose:
            click.echo(f"  | {line}", err=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None


class _Live(_Plain):
    """A line that moves, and finished phases above it."""

    def __init__(self, *, verbose: bool) -> None:
        super().__init__(verbose=verbose)
        from rich.console import Console
        from rich.live import Live
        from rich.spinner import Spinner
        from rich.text import Text

        self._text = Text.assemble
        self._console = Console(stderr=True, highlight=False)
        simple = self._console.options.ascii_only
        self._done, self._bad = ("ok", "!!") if simple else ("✓", "✗")
        self._spinner = Spinner("line" if simple else "dots", style="cyan")
        self._last = ""
        self._live = Live(
            console=self._console,
            get_renderable=self._render,
            transient=True,
            refresh_per_second=10,
        )

    def _render(self) -> RenderableType:
        if self._open is None:
            return ""
        phase, began = self._open
        spent = seconds(time.monotonic() - began)
        text = self._text(f" {phase:<13}", (f"{spent:>8}", "dim"))
        text.append(f"  {self._last}", "dim")
        text.truncate(max(self._console.width - 4, 0), overflow="ellipsis")
        self._spinner.update(text=text)
        return self._spinner

    @override
    def began(self, phase: str) -> None:
        self._last = ""

    @override
    def ended(self, phase: str, spent_s: float, *, good: bool) -> None:
        mark = (self._done, "green") if good else (self._bad, "red")
        spent = (f"{seconds(spent_s):>8}", "dim")
        self._console.print(self._text("  ", mark, f" {phase:<13}", spent))

    @override
    def note(self, text: str) -> None:
        self._console.print(self._text((f"    {text}", "dim")))

    @override
    def output(self, line: str) -> None:
        self._last = line.strip() or self._last
        if self._verbose:
            self._console.print(self._text(("  | ", "dim"), line))

    @override
    def __enter__(self) -> Self:
        self._live.start()
        return self

    @override
    def __exit__(self, *_: object) -> None:
        self._live.stop()
