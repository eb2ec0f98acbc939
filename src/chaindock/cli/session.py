"""What commands share: the home, --json, and the form of their help."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import click

from chaindock.cli import show

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from chaindock.cli.client import AdminClient


class Session:
    """One run of the command line: its options --home, --config, --channel and --json."""

    home_flag: str | None = None
    config_flag: str | None = None
    channel: str | None = None
    json = False

    @property
    def home(self) -> Path:
        """The home of this command, absolute."""
        from chaindock.config.environment import resolve_home

        return resolve_home(self.home_flag)

    @property
    def folder(self) -> Path | None:
        """The directory of --config, absolute; None = the home has the core.yaml."""
        from pathlib import Path

        return Path(self.config_flag).absolute() if self.config_flag else None

    def client(self) -> AdminClient:
        """Return a client of the node that serves the home."""
        from chaindock.cli.client import AdminClient

        return AdminClient(self.home, self.channel)

    def emits(self, data: Any) -> bool:
        """Print `data` if --json was given; return whether it was."""
        if self.json:
            show.emit_json(data)
        return self.json

    def says(self, data: Any, text: str, *, err: bool = True) -> None:
        """Print `data` as JSON if --json was given, else `text`."""
        if not self.emits(data):
            click.echo(text, err=err)

    def shows(
        self, rows: Sequence[Any], none: str = "", **cells: Callable[[Any], object]
    ) -> None:
        """Print rows as JSON if --json was given, else a table; `none` if there are none."""
        if none and not rows:
            self.says(rows, none)
        elif not self.emits(rows):
            show.table(rows, **cells)

    def require(self, what: str, *, yes: bool) -> None:
        """Return if the user wants `what`, e.g. "remove the ledger"; else end."""
        if yes:
            return
        if self.json or not show.is_terminal(err=True):
            raise click.UsageError(f"this would {what}: confirm it with --yes")
        if not click.confirm(f"{what[0].upper()}{what[1:]}?", err=True):
            click.echo("nothing was changed", err=True)
            raise click.exceptions.Exit(show.Exit.INTERRUPTED)

    def words(self, command: str) -> str:
        """Return `chaindock COMMAND` for hints, with --home and --channel as given."""
        if self.channel is not None:
            command = f"{command} --channel {self.channel}"
        if self.home_flag is None:
            return f"chaindock {command}"
        import shlex

        return f"chaindock --home {shlex.quote(str(self.home_flag))} {command}"


class Number(click.IntRange):
    """A whole number of a range; click's errors say `number`."""

    name = "number"


class Seconds(click.FloatRange):
    """A number of seconds of a range, which `nan` is not."""

    name = "number of seconds"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the number. Raises: BadParameter."""
        found = super().convert(value, param, ctx)
        if found != found:  # noqa: PLR0124
            self.fail(f"{value!r} is not a valid {self.name}.", param, ctx)
        return found


def limit_option(most: int) -> Callable[..., Any]:
    """Add --limit: how many rows of a list are shown, by default `most`."""
    return click.option(
        "--limit",
        type=Number(min=1),
        default=most,
        show_default=True,
        metavar="N",
        help="Show at most N rows.",
    )


pass_session = click.make_pass_decorator(Session)


def _keep(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    if value == "":  # of a script whose variable is not set
        raise click.BadParameter("it is empty", ctx, param)
    # The option may stand before the command too: the other place has its default.
    if value is not None and value is not False:
        setattr(ctx.ensure_object(Session), str(param.name), value)


# Their values belong to the session; a command's function does not get them.
_own_option = partial(click.option, expose_value=False, is_eager=True, callback=_keep)
home_option = _own_option(
    "--home",
    "home_flag",
    metavar="DIR",
    type=click.Path(),
    help="The node's directory.  [env: CHAINDOCK_HOME; default: ~/.chaindock]",
)
config_option = _own_option(
    "--config",
    "config_flag",
    metavar="DIR",
    type=click.Path(),
    help="Read the core.yaml of this directory, not that of the home.",
)
json_option = _own_option(
    "--json", is_flag=True, help="Print data, and errors, as JSON on standard output."
)


def completing(ask: Callable[[AdminClient], Any]) -> Callable[..., list[str]]:
    """Return what completes a name of the running node; without a node nothing, silently."""

    def complete(
        ctx: click.Context, _param: click.Parameter, incomplete: str
    ) -> list[str]:
        try:
            found = ask(ctx.ensure_object(Session).client())
        except Exception:  # noqa: BLE001  # a shell has no place for errors
            return []
        return [one["name"] for one in found if one["name"].startswith(incomplete)]

    return complete


complete_channels = completing(
    lambda client: client.get("channels", timeout_s=0.5)["channels"]
)
_complete_names = completing(lambda client: client.ps(timeout_s=0.5))
_channel_option = partial(
    _own_option, "-C", "--channel", metavar="NAME", shell_complete=complete_channels
)


def command(
    *examples: str,
    cls: type[click.Command] = click.Command,
    group: click.Group | None = None,
    of_channel: bool = False,
    channel_help: str = "The channel.  [default: the node's first]",
) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a command with --json, --home and examples of a function of a Session.

    `group`: the command belongs to it, and its function's name begins with its name.
    `of_channel`: it has --channel, with `channel_help`.
    """
    epilog = "\b\nExamples:\n" + "\n".join(f"  {line}" for line in examples)

    def make(function: Callable[..., Any]) -> click.Command:
        name = function.__name__
        if group is not None:
            name = name.removeprefix(f"{group.name}_")
        name = name.replace("_", "-")
        made = click.command(name, cls, epilog=epilog)(pass_session(function))
        made = home_option(json_option(made))
        if of_channel:
            made = _channel_option(help=channel_help)(made)
        if group is not None:
            group.add_command(made)
        return made

    return make


def pairs_option(*names: str, text: str, metavar: str = "K=V") -> Callable[..., Any]:
    """Add a repeatable option of KEY=VALUE texts, which gives a dictionary."""
    return click.option(
        *names, multiple=True, metavar=metavar, callback=_read_pairs, help=text
    )


def list_option(*names: str, text: str) -> Callable[..., Any]:
    """Add an option of MSP ids, together or one by one, which gives a tuple."""
    return click.option(
        *names,
        metavar="MSPID,...",
        multiple=True,
        callback=lambda _ctx, _param, given: tuple(
            filter(None, ",".join(given).split(","))
        ),
        help=text,
    )


def _read_pairs(
    _ctx: click.Context, param: click.Parameter, values: Sequence[str]
) -> dict[str, str]:
    found = {}
    for value in values:
        key, equals, rest = value.partition("=")
        if not key or not equals:
            raise click.BadParameter(f"{value!r}: expected KEY=VALUE", param=param)
        found[key] = rest
    return found


def name_argument(*, many: bool = False, required: bool = True) -> Callable[..., Any]:
    """Add NAME, or NAME..., which the shell completes."""
    several: dict[str, Any] = {"metavar": "NAME...", "nargs": -1, "required": True}
    name, more = ("names", several) if many else ("name", {"required": required})
    return click.argument(name, shell_complete=_complete_names, **more)
