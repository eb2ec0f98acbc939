"""The program `chaindock`.

Owns:    the root command.
Not:     its commands (one module each), errors on their way out (lazy.py).
Entry:   main
Source:  architecture.md "CLI"
"""

from __future__ import annotations

import io
import sys

import click

from chaindock import __version__
from chaindock.cli.exits import epilog
from chaindock.cli.lazy import Root
from chaindock.cli.session import home_option, json_option


@click.command(
    cls=Root,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=epilog(),
)
@home_option
@json_option
@click.version_option(__version__, message="chaindock %(version)s")
def root() -> None:
    """Run Hyperledger Fabric chaincode: build it, bring it up, call it.

    \b
      chaindock up -d                         a node with a ledger of its own
      chaindock deploy DIR --name basic       build and start a chaincode
      chaindock invoke basic FUNCTION ARGS…   submit a transaction
      chaindock query basic FUNCTION ARGS…    ask without writing
    """  # noqa: D301  # \\b is click's mark for lines to keep


def main() -> None:
    """Run the command line; ends the process."""
    for stream in (sys.stdout, sys.stderr):
        # What others wrote need not fit the terminal's encoding.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    root(prog_name="chaindock")
