"""`config show`: print the settings, their values and where these come from.

Passwords are not shown.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import click

from chaindock.cli import show
from chaindock.cli.session import Session, home_option, json_option, pass_session

if TYPE_CHECKING:
    from chaindock.config.sections import Config


@click.group()
def config() -> None:
    """Show the settings and where they come from."""


@config.command("show")
@click.option(
    "--changed", is_flag=True, help="Only settings that differ from the default."
)
@click.option(
    "-v", "--verbose", is_flag=True, help="With the help text of each setting."
)
@json_option
@home_option
@pass_session
def show_config(session: Session, *, changed: bool, verbose: bool) -> None:
    """Show every setting, its value and its origin.

    The first source that has a value is used: `chaindock up --set KEY=VALUE`, the
    environment (CORE_ and the key in capitals, with _ for each dot), core.yaml in the
    directory FABRIC_CFG_PATH or in the home, the default.
    """
    from chaindock.config.load import load

    loaded = load(session.home)
    settings = [
        one for one in loaded.settings if not changed or one.origin != "default"
    ]
    if session.json:
        show.emit_json(
            {
                "home": str(loaded.home),
                "settings": [dataclasses.asdict(one) for one in settings],
                "build_variables": _build_variables(loaded),
                "ignored": [dataclasses.asdict(one) for one in loaded.ignored],
                "warnings": _warnings(loaded),
            }
        )
        return
    _print(loaded, settings, verbose=verbose)


def _print(loaded: Config, settings: list[Any], *, verbose: bool) -> None:
    rows = [
        (
            one.key,
            click.style(one.origin, dim=one.origin == "default"),
            click.style(show.visible(one.value), bold=one.origin != "default"),
        )
        for one in settings
    ]
    head = ("SETTING", "ORIGIN", "VALUE")
    if verbose:
        for one, row in zip(settings, rows, strict=True):
            click.echo(click.style(f"\n{one.help}", dim=True))
            click.echo("  ".join(part for part in row if part))
    else:
        show.table(head, rows)
    if variables := _build_variables(loaded):
        click.echo()
        show.table(("BUILDS GET", "VALUE"), list(variables.items()))
    if loaded.ignored:
        click.echo()
        show.table(
            ("NOT USED", "ORIGIN", "WHY"),
            [(one.key, one.origin, one.reason or "-") for one in loaded.ignored],
        )
    for warning in _warnings(loaded):
        click.echo(click.style("warning: ", fg="yellow") + warning, err=True)


def _warnings(loaded: Config) -> list[str]:
    problems = loaded.chaincodes.problems()
    return [*loaded.warnings, *(f"{one.message}: {one.hint}" for one in problems)]


def _build_variables(loaded: Config) -> dict[str, str]:
    from chaindock.config.keys import redact

    return {
        name: redact(name, value)
        for name, value in sorted(loaded.build.variables.items())
    }
