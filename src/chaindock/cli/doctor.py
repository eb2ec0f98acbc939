"""`doctor` and `config show`: what this machine offers to a node, and its settings.

The checks of `doctor` are in checks.py. Passwords are not shown.
"""

from __future__ import annotations

import dataclasses
import itertools
import textwrap
from typing import TYPE_CHECKING

import click

from chaindock.cli import show
from chaindock.cli.session import Session, command, config_option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chaindock.cli.checks import Check
    from chaindock.config.keys import Setting


_MARKS = {
    "ok": ("ok", "green"),
    "warn": ("!!", "yellow"),
    "fail": ("NO", "red"),
    "absent": ("--", None),
}


@command("chaindock doctor", "chaindock doctor --json")
@config_option
def doctor(session: Session) -> int:
    """Check what Chaindock needs and say what to do.

    Checks the home, every place where a container engine may be, toolchains, and what
    builds need to reach the network. Changes nothing. Exits with 0 when some chaincode
    can run.
    """
    import asyncio

    from chaindock.cli.checks import examine

    checks, docker, languages = asyncio.run(examine(session.home, session.folder))
    broken = any(one.state == "fail" and one.group == "home" for one in checks)
    can_run = not broken and (docker or bool(languages))
    told = {
        "can_run": can_run,
        "docker": docker,
        "process": languages,
        "checks": [dataclasses.asdict(one) for one in checks],
    }
    if not session.emits(told):
        _print(checks)
        if can_run:
            click.echo(f"\n{_sentence(languages, docker=docker)}")
        else:
            text = click.style("No chaincode can run here yet.", fg="red")
            click.echo(f"\n{text}")
    return show.Exit.OK if can_run else show.Exit.ENGINE


def _print(findings: Sequence[Check]) -> None:
    width = max(len(check.name) for check in findings)
    for group, members in itertools.groupby(findings, lambda check: check.group):
        click.echo(click.style(group, bold=True))
        checks = list(members)
        # Where nothing is there at all, the way to get it is said too.
        nothing = all(check.state == "absent" for check in checks)
        said = {""}
        for check in checks:
            word, colour = _MARKS[check.state]
            quiet = check.state == "absent"
            text = _wrap(
                f"{check.name:<{width}}  {show.visible(check.found)}", width + 8
            )
            mark = click.style(word, fg=colour, dim=quiet)
            click.echo(f"  {mark}  " + click.style(text[6:], dim=quiet))
            if check.remedy not in said and (nothing or not quiet):
                said.add(check.remedy)
                text = f"do: {show.visible(check.remedy)}"
                remedy = _wrap(text, width + 12, width + 8)
                click.echo(remedy.replace("do:", click.style("do:", fg="cyan"), 1))


def _wrap(text: str, indent: int, first: int = 6) -> str:
    """Break `text` at words for the terminal; elsewhere it stays one line."""
    return textwrap.fill(
        text,
        max(show.width(), indent + 20),
        initial_indent=" " * first,
        subsequent_indent=" " * indent,
        break_on_hyphens=False,
        break_long_words=False,
    )


def _sentence(languages: Sequence[str], *, docker: bool) -> str:
    some = ", ".join(languages)
    if not docker:
        return (
            f"Chaincode in {some} can run as local processes; no engine for containers."
        )
    also = f", and {some} as local processes too" if some else ""
    return f"Chaincode can run in containers{also}."


@click.group()
def config() -> None:
    """Show the settings and where they come from."""


@command("chaindock config show --changed", "chaindock config show -v", group=config)
@click.option("--changed", is_flag=True, help="Only what differs from the default.")
@click.option("-v", "--verbose", is_flag=True, help="Also the help of each setting.")
@config_option
def config_show(session: Session, *, changed: bool, verbose: bool) -> None:
    """Show every setting, its value and its origin.

    The first source that has a value is used: `chaindock up --set KEY=VALUE` (not shown
    here), then the environment (CORE_ and the key in capitals, with _ for each dot), then
    core.yaml in the home or in the directory of --config, then the default.
    """
    from chaindock.config.keys import redact
    from chaindock.config.load import load

    loaded = load(session.home, folder=session.folder)
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
    if verbose:
        for one in found:
            row = one.key, _origin(one), _value(one)
            click.echo(click.style(f"\n{one.help}", dim=True))
            click.echo("  ".join(part for part in row if part))
    else:
        show.table(found, SETTING=lambda one: one.key, ORIGIN=_origin, VALUE=_value)
    if variables:
        click.echo()
        show.table(
            [*variables.items()],
            BUILDS_GET=lambda one: one[0],
            VALUE=lambda one: show.visible(one[1]),
        )
    if loaded.ignored:
        click.echo()
        show.table(
            loaded.ignored,
            NOT_USED=lambda one: show.visible(one.key),
            ORIGIN=lambda one: one.origin,
            WHY=lambda one: one.reason or "-",
        )
    for warning in warnings:
        show.warn(warning)


def _origin(one: Setting) -> str:
    return click.style(one.origin, dim=one.origin == "default")


def _value(one: Setting) -> str:
    return click.style(show.visible(one.value), bold=one.origin != "default")
