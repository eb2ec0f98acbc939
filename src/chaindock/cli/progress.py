"""Show an attempt while it goes on.

Owns:    phases with their times, the live line, output lines; all on standard error.
Not:     where the events come from (client.py), the final error (report.py).
Entry:   watch_attempt
Holds:   nothing on standard output; plain ASCII lines where there is no terminal.
Source:  needs.md row 2
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Self

import click

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
    view: _Live | _Plain = (_Live if is_terminal(err=True) else _Plain)(verbose=verbose)
    phases = _Phases(view)
    with view:
        try:
            for event in events:
                if event.get("event") == wire.EVENT_RESULT:
                    phases.settle()
                    result: dict[str, Any] = event["result"]
                    return result
                phases.take(event)
        except ChaindockError as error:
            phases.fail(error.facts.get("phase"))
            raise
    raise NodeError(
        "the node ended before the chaincode was up",
        hint="see its log, then start it again: chaindock up -d",
    )


class _Phases:
    """Tells the view of each phase once it is known how it ended.

    The end of a phase comes before the error that ended it, so it waits for what is next.
    """

    def __init__(self, view: _Live | _Plain) -> None:
        self._view = view
        self._open: tuple[str, float] | None = None
        self._ended: tuple[str, float] | None = None

    def take(self, event: dict[str, Any]) -> None:
        """Show an event of the attempt."""
        kind = event.get("event")
        if kind == "phase":
            self.settle()
            self._open = (visible(event["phase"]), time.monotonic())
            self._view.began(self._open[0])
        elif kind == "phase-end":
            self._open = None
            self._ended = (visible(event["phase"]), event["seconds"])
        elif kind == "note":
            self._view.note(visible(event["text"]))
        elif kind == "output":
            self._view.output(visible(event["line"]))

    def settle(self) -> None:
        """The phase that ended last was well."""
        if self._ended is not None:
            self._view.ended(*self._ended, good=True)
            self._ended = None

    def fail(self, phase: str | None) -> None:
        """It was an error of `phase` that ended the attempt."""
        if self._ended is not None:
            self._view.ended(*self._ended, good=self._ended[0] != phase)
        if self._open is not None:
            name, began = self._open
            self._view.ended(name, time.monotonic() - began, good=False)


class _Plain:
    """Lines for pipes and logs."""

    def __init__(self, *, verbose: bool) -> None:
        self._verbose = verbose

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


class _Live:
    """A line that moves, and finished phases above it."""

    def __init__(self, *, verbose: bool) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.spinner import Spinner

        self._verbose = verbose
        self._console = Console(stderr=True, highlight=False)
        simple = self._console.options.ascii_only
        self._done, self._bad = ("ok", "!!") if simple else ("✓", "✗")
        self._spinner = Spinner("line" if simple else "dots", style="cyan")
        self._phase = ""
        self._since = time.monotonic()
        self._last = ""
        self._live = Live(
            console=self._console,
            get_renderable=self._render,
            transient=True,
            refresh_per_second=10,
        )

    def _render(self) -> RenderableType:
        from rich.text import Text

        if not self._phase:
            return Text("")
        spent = seconds(time.monotonic() - self._since)
        text = Text.assemble(f"{self._phase:<13}", (f"{spent:>8}", "dim"))
        if self._last:
            room = self._console.width - 30
            text.append("  " + self._last[: max(room, 0)], "dim")
        text.no_wrap = True
        text.overflow = "ellipsis"
        self._spinner.update(text=text)
        from rich.padding import Padding

        return Padding(self._spinner, (0, 0, 0, 2))

    def began(self, phase: str) -> None:
        self._phase, self._since, self._last = phase, time.monotonic(), ""

    def ended(self, phase: str, spent_s: float, *, good: bool) -> None:
        from rich.text import Text

        mark = (self._done, "green") if good else (self._bad, "red")
        self._phase = ""
        self._console.print(
            Text.assemble(
                "  ", mark, f" {phase:<13}", (f"{seconds(spent_s):>8}", "dim")
            )
        )

    def note(self, text: str) -> None:
        from rich.text import Text

        self._console.print(Text(f"    {text}", "dim"))

    def output(self, line: str) -> None:
        self._last = line.strip() or self._last
        if self._verbose:
            from rich.text import Text

            self._console.print(Text.assemble(("  | ", "dim"), line))

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()
