"""The progress of an attempt, on standard error: plain lines where there is no terminal."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

import click
from typing_extensions import override

from chaindock.cli.show import is_terminal, seconds, visible
from chaindock.errors import ChaindockError, NodeError
from chaindock.operations import wire

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import RenderableType


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
