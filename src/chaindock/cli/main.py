"""The program `chaindock`: the root command, and what becomes of errors.

A command's module is imported when the command is used, so that `chaindock --help`
imports click and nothing slow.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import sys
from typing import Any

import click

from chaindock import __version__
from chaindock.cli import show
from chaindock.cli.session import Session, command, home_option, json_option
from chaindock.cli.show import Exit
from chaindock.errors import ChaindockError, InvalidInput

GROUPS: dict[str, dict[str, tuple[str, str]]] = {
    "The node": {
        "up": ("node", "Start the node of a home."),
        "down": ("node", "Stop the node of a home."),
        "status": ("ps", "Show the node: endpoints, back end, blocks."),
        "doctor": ("doctor", "Check what Chaindock needs and say what to do."),
        "channel": ("channel", "Make, list and remove channels."),
        "org": ("channel", "Add and list organisations, stop and start their peers."),
        "logspec": ("ps", "Show or change which lines the node logs."),
        "config": ("doctor", "Show the settings and where they come from."),
    },
    "Chaincode": {
        "deploy": ("deploy", "Build a chaincode and start it."),
        "ps": ("ps", "List the deployed chaincodes."),
        "logs": ("ps", "Show what a chaincode and its build wrote."),
        "start": ("deploy", "Start stopped chaincodes again."),
        "stop": ("deploy", "Stop chaincodes; they stay deployed."),
        "rm": ("deploy", "Stop and remove chaincodes; the ledger keeps their state."),
    },
    "Calls": {
        "invoke": ("call", "Submit a transaction."),
        "query": ("call", "Call a function without writing to the ledger."),
    },
    "Applications": {
        "connect": ("connect", "Show what an application needs to call a contract."),
        "env": ("connect", "Print variables for applications and the peer command."),
    },
    "The ledger": {
        "state": ("changes", "Look at and change the keys of a chaincode."),
        "block": ("blocks", "Look at blocks, and cut them."),
        "tx": ("blocks", "Look at a transaction."),
        "events": ("blocks", "Show the events of chaincodes."),
        "time": ("clock", "Show and change the time that contracts see."),
        "snapshot": ("copies", "Name the state of the ledger, to go back to it."),
        "revert": ("copies", "Go back to a snapshot."),
        "ledger": ("copies", "Check the ledger, and rebuild its state."),
        "dump": ("copies", "Write a copy of the ledger to a file."),
        "load": ("copies", "Replace the ledger by a copy that `dump` wrote."),
        "reset": ("copies", "Remove the ledger; the next start begins a new one."),
    },
    "Packages": {
        "package": ("packages", "Write the package of a source directory."),
        "packages": ("packages", "List and remove the packages of the node."),
        "inspect": ("packages", "Show what is in a package."),
        "package-id": ("packages", "Print the id of a package."),
    },
    "More": {
        "demo": ("demo", "Run the bundled example on a temporary node."),
        "completion": ("main", "Print the completion script of a shell."),
    },
}
"""Heading of the help → command → (module of chaindock.cli, first line of its help)."""

COMMANDS = {name: entry for group in GROUPS.values() for name, entry in group.items()}
_OURS = re.compile(r"chaindock (state|block|snapshot|org|start|logs|invoke) [^;,()]+")
"""Commands in hints, which are the same for all channels."""


class Root(click.Group):
    """The group that imports commands lazily and ends with our exit statuses."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command. Raises: NoSuchCommand, which names the nearest one."""
        if cmd_name not in COMMANDS:
            if ctx.resilient_parsing:
                return None
            from difflib import get_close_matches

            nearest = get_close_matches(cmd_name, COMMANDS, 1)
            raise click.exceptions.NoSuchCommand(cmd_name, None, nearest, ctx)
        module = importlib.import_module(f"chaindock.cli.{COMMANDS[cmd_name][0]}")
        found: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return found

    def format_commands(
        self,
        ctx: click.Context,  # noqa: ARG002
        formatter: click.HelpFormatter,
    ) -> None:
        """Write the commands in groups, without importing them."""
        width = max(map(len, COMMANDS))
        for heading, commands in GROUPS.items():
            with formatter.section(heading):
                formatter.write_dl(
                    [(f"{name:<{width}}", text) for name, (_, text) in commands.items()]
                )

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the exit statuses."""
        with formatter.section("Exit status"):
            formatter.write_dl([(f"{int(one):>3}", one.meaning) for one in Exit])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        """Return matching commands without importing them, and options."""
        from click.shell_completion import CompletionItem

        found = [
            CompletionItem(name, help=text)
            for name, (_, text) in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]

    def main(self, args: Any = None, *_: Any, **__: Any) -> Any:
        """Run the command line and end the process with one of our statuses."""
        given = sys.argv[1:] if args is None else list(args)
        try:
            status = self._run(given)
            sys.stdout.flush()
        except OSError as error:
            status = _end_output(error)
        sys.exit(status)

    def _run(self, given: list[str]) -> int:
        """Return the exit status. Raises: OSError when standard output is lost."""
        from chaindock.config.environment import environment

        self._main_shell_completion({}, "chaindock")
        session = Session()
        env = environment()
        plain = env.get("NO_COLOR") or env.get("TERM") == "dumb"
        color = False if plain else None
        with click.Context(self, obj=session, color=color) as outer:
            try:
                with self.make_context("chaindock", list(given), parent=outer) as ctx:
                    return self.invoke(ctx) or Exit.OK
            except click.exceptions.Exit as end:
                return end.exit_code
            except (KeyboardInterrupt, click.exceptions.Abort):
                click.echo(err=True)
                return Exit.INTERRUPTED
            except click.exceptions.NoArgsIsHelpError as error:
                error.show()
                return error.exit_code
            except Exception as error:  # noqa: BLE001  # the last frame
                # --json may stand behind what could not be understood.
                options = given[: given.index("--")] if "--" in given else given
                as_json = session.json or "--json" in options
                return _show(session, error, as_json=as_json)


def _show(session: Session, error: Exception, *, as_json: bool) -> int:
    if isinstance(error, BrokenPipeError):
        raise error
    if isinstance(error, OSError):
        sys.stdout.flush()  # raises again when standard output is lost
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        hint = None if context is None else f"{context.command_path} --help"
        told = InvalidInput(error.format_message(), hint=hint)
        show.show_error(told, as_json=as_json)
        return error.exit_code
    if isinstance(error, ChaindockError):
        if session.channel and error.hint and "--channel" not in error.hint:
            error.hint = _OURS.sub(rf"\g<0> --channel {session.channel}", error.hint)
        show.show_error(error, as_json=as_json)
        return show.exit_status(error)
    import traceback

    click.echo("".join(traceback.format_exception(error)).rstrip(), err=True)
    defect = ChaindockError(
        f"unexpected {type(error).__name__}: {error}",
        hint="this is a defect of Chaindock; please report it with the lines above",
    )
    show.show_error(defect, as_json=as_json)
    return Exit.INTERNAL


def _end_output(reason: OSError) -> int:
    """Say why standard output cannot be written, and return the exit status."""
    # Python flushes once more at its end: that must not fail again.
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(reason, BrokenPipeError):
        return Exit.PIPE
    told = f"error: standard output cannot be written: {reason.strerror}"
    with contextlib.suppress(OSError):
        click.echo(told, err=True)
    return Exit.OUTPUT


@click.command(
    cls=Root,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@home_option
@json_option
@click.version_option(__version__, message="chaindock %(version)s")
def root() -> None:
    """Run Hyperledger Fabric chaincode: build it, start it, call it.

    \b
      chaindock up -d                       start a node
      chaindock deploy DIR --name basic     build and start
      chaindock invoke basic FUNCTION ARGS  submit
      chaindock query basic FUNCTION ARGS   only read
    """  # noqa: D301  # \\b is click's mark for lines to keep


@command(
    'eval "$(chaindock completion bash)"       # in ~/.bashrc',
    'eval "$(chaindock completion zsh)"        # in ~/.zshrc',
    "chaindock completion fish > ~/.config/fish/completions/chaindock.fish",
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(session: Session, shell: str) -> None:
    """Print the completion script of a shell.

    The shell then completes commands, options, files, and the names of the channels
    and chaincodes of the running node.
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101  # click.Choice lets nothing else pass
    # Not `source()`, which runs bash to ask for its version.
    variables = kind(root, {}, "chaindock", "_CHAINDOCK_COMPLETE").source_vars()
    script = kind.source_template % variables
    session.says({"shell": shell, "script": script}, script, err=False)


def main() -> None:
    """Run the command line; ends the process."""
    # Standard streams that are closed are replaced: the next file that is opened would be
    # standard output. Writing to its substitute fails, so that lost data is an error.
    for number, flag in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flag)  # gets the lowest number that is free
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        # What others wrote need not fit the terminal's encoding.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    root(prog_name="chaindock")
