"""The root command: subcommands are imported when they are used.

Owns:    the list of commands; what becomes of an error on its way out.
Not:     the commands.
Entry:   Root
Holds:   `chaindock --help` imports click and nothing slow; no error leaves a trace on
         the screen unless it is a defect.
Source:  architecture.md "CLI"
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from typing import Any

import click

from chaindock.cli.exits import Exit, exit_status
from chaindock.cli.session import Session
from chaindock.errors import ChaindockError

COMMANDS: dict[str, tuple[str, str]] = {
    "up": ("up", "Start the node of a home."),
    "down": ("down", "Stop the node of a home."),
    "status": ("ps", "Show the node: endpoints, backend, blocks."),
    "deploy": ("deploy", "Build a chaincode and bring it up."),
    "invoke": ("call", "Submit a transaction."),
    "query": ("call", "Call a function without writing to the ledger."),
    "ps": ("ps", "List the deployed chaincodes."),
    "logs": ("logs", "Show what a chaincode and its build wrote."),
    "logspec": ("logspec", "Show or change which lines the node logs."),
    "start": ("deploy", "Bring a stopped chaincode up again."),
    "stop": ("stop", "Stop a chaincode; it stays deployed."),
    "rm": ("stop", "Stop a chaincode and forget it; its state stays on the ledger."),
    "package": ("packages", "Write the package of a source directory."),
    "inspect": ("packages", "Show what is in a package."),
    "package-id": ("packages", "Print the id of a package."),
    "doctor": ("doctor", "Try everything Chaindock needs and say what to do."),
    "demo": ("demo", "Run the bundled example on a throw-away node."),
    "config": ("settings", "Show the settings and where they come from."),
}
"""Command → (module of chaindock.cli, first line of its help)."""


class Root(click.Group):
    """The group that loads its commands lazily and ends with our exit statuses."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return all names, in the order of the help."""
        return list(COMMANDS)

    def get_command(
        self,
        ctx: click.Context,  # noqa: ARG002
        cmd_name: str,
    ) -> click.Command | None:
        """Import the module of a command and return it."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"chaindock.cli.{COMMANDS[cmd_name][0]}")
        found: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return found

    def format_commands(
        self,
        ctx: click.Context,  # noqa: ARG002
        formatter: click.HelpFormatter,
    ) -> None:
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; click must not see a broken pipe."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise _ReaderGoneError from error

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command line and end the process with one of our statuses."""
        kwargs.setdefault("obj", Session())
        kwargs["standalone_mode"] = False
        status = self._run(kwargs["obj"], *args, **kwargs)
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            status = _leave_pipe()
        sys.exit(status)

    def _run(self, session: Session, *args: Any, **kwargs: Any) -> int:
        try:
            result = super().main(*args, **kwargs)
        except click.exceptions.Abort:
            return Exit.INTERRUPTED
        except click.ClickException as error:
            error.show()
            return error.exit_code
        except _ReaderGoneError:
            return _leave_pipe()
        except ChaindockError as error:
            from chaindock.cli import report

            report.show_error(error, as_json=session.json)
            return exit_status(error)
        except Exception as error:  # noqa: BLE001  # the last frame: a defect
            from chaindock.cli import report

            report.show_defect(error, as_json=session.json)
            return Exit.INTERNAL
        return result if isinstance(result, int) else Exit.OK


class _ReaderGoneError(Exception):
    """Standard output is a pipe that nobody reads any more."""


def _leave_pipe() -> int:
    """Point standard output at nothing, so that the last flush is quiet."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return Exit.PIPE
