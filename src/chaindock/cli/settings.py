"""`config show`: print the settings, their values and where these come from.

Passwords are not shown.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import click

from chaindock.cli import show
from chaindock.cli.session import Session, home_option, json_option, pass_session

if TYPE_CHECKING:
    from chaindock.config.keys import Setting


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
    from chaindock.config.keys import redact
    from chaindock.config.load import load

    loaded = load(session.home)
    found = [one for one in loaded.settings if not changed or one.origin != "default"]
    variables = {
        name: redact(name, value)
        for name, value in sorted(loaded.build.variables.items())
    }
    problems = [f"{one.message}: {one.hint}" for one in loaded.chaincodes.problems()]
    warnings = [*loaded.warnings, *problems]
    told = {
        "home": str(loaded.home),
        "settings": [dataclasses.asdict(one) for one in found],
        "build_variables": variables,
        "ignored": [dataclasses.asdict(one) for one in loaded.ignored],
        "warnings": warnings,
    }
    if session.emits(told):
        return
    rows = [_row(one) for one in found]
    if verbose:
        for one, row in zip(found, rows, strict=True):
            click.echo(click.style(f"\n{one.help}", dim=True))
            click.echo("  ".join(part for part in row if part))
    else:
        show.table(("SETTING", "ORIGIN", "VALUE"), rows)
    for head, more in (
        (("BUILDS GET", "VALUE"), list(variables.items())),
        (
            ("NOT USED", "ORIGIN", "WHY"),
            [(one.key, one.origin, one.reason or "-") for one in loaded.ignored],
        ),
    ):
        if more:
            click.echo()
            show.table(head, more)
    for warning in warnings:
        show.note("warning", warning)


def _row(one: Setting) -> tuple[str, str, str]:
    default = one.origin == "default"
    origin = click.style(one.origin, dim=default)
    return one.key, origin, click.style(show.visible(one.value), bold=not default)
