"""`completion`: the script that makes a shell complete commands and chaincode names."""

from __future__ import annotations

import click

from chaindock.cli import show
from chaindock.cli.session import Session, command


@command(
    'eval "$(chaindock completion bash)"       # in ~/.bashrc',
    'eval "$(chaindock completion zsh)"        # in ~/.zshrc',
    "chaindock completion fish > ~/.config/fish/completions/chaindock.fish",
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(session: Session, shell: str) -> None:
    """Print the completion script of a shell.

    The shell then completes commands, options, files, and the names of the chaincodes
    that are deployed on the running node.
    """
    from click.shell_completion import get_completion_class

    from chaindock.cli.main import root

    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101  # click.Choice lets nothing else pass
    variables = kind(root, {}, "chaindock", "_CHAINDOCK_COMPLETE").source_vars()
    script = kind.source_template % variables
    if session.json:
        show.emit_json({"shell": shell, "script": script})
    else:
        click.echo(script)
