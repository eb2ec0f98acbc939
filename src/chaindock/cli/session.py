"""What all commands share: the home, the form of the output.

Owns:    Session, and the options --home and --json.
Not:     talking to the node (client.py).
Entry:   home_option, json_option, Session
Holds:   both options may stand before or after the command's name.
Source:  ADR-0001
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from chaindock.cli.client import AdminClient

F = TypeVar("F", bound="Callable[..., Any]")


class Session:
    """One run of the command line.

    Attributes:
        home_flag: as given with --home; None = environment or default.
        json: print data, and errors, as JSON on standard output.
    """

    def __init__(self) -> None:
        self.home_flag: str | None = None
        self.json = False

    @property
    def home(self) -> Path:
        """The home that is meant, absolute."""
        from chaindock.config.environment import resolve_home

        return resolve_home(self.home_flag)

    def client(self) -> AdminClient:
        """Return a client of the node that serves the home."""
        from chaindock.cli.client import AdminClient

        return AdminClient(self.home)

    def home_words(self) -> str:
        """Return ` --home DIR` for hints, or nothing when it is not needed."""
        if self.home_flag is None:
            return ""
        import shlex

        return f" --home {shlex.quote(str(self.home_flag))}"


pass_session = click.make_pass_decorator(Session)


def _set_home(ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
    if value is not None:
        ctx.ensure_object(Session).home_flag = value


def _set_json(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(Session).json = True


def home_option(command: F) -> F:
    """Add --home DIR."""
    return click.option(
        "--home",
        metavar="DIR",
        expose_value=False,
        is_eager=True,
        callback=_set_home,
        help="The node's directory.  [env: CHAINDOCK_HOME; default: ~/.chaindock]",
    )(command)


def json_option(command: F) -> F:
    """Add --json."""
    return click.option(
        "--json",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_set_json,
        help="Print data, and errors, as JSON on standard output.",
    )(command)
