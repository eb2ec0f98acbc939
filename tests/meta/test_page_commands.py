"""The command lines that pages show: commands and options exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from chaindock.cli.main import root

_TOP = Path(__file__).parents[2]
_PAGES = sorted(
    [_TOP / "README.md", *_TOP.glob("docs/**/*.md"), *_TOP.glob("examples/**/*.md")]
)
_COMMAND = re.compile(
    r"(?<![\w/.-])chaindock ((?:'[^']*'|\"[^\"]*\"|[^'\"|;&)#>`\n])+)"
)


def lines(page: Path) -> list[str]:
    """Return what follows `chaindock` in blocks and between backticks."""
    text = page.read_text(encoding="utf-8")
    shown = re.findall(r"```(?:console|sh)\n(.*?)```", text, re.DOTALL)
    code = [line for block in shown for line in block.splitlines()]
    code = [line for line in code if "chaindock " in line]
    code += re.findall(
        r"`(chaindock [^`]*)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    )
    return [found for line in code for found in _COMMAND.findall(line)]


def check(words: list[str]) -> None:
    """Take words as the program does, and stop before it runs. Raises: UsageError."""
    command: click.Command = root
    context = command.make_context("chaindock", words)
    while isinstance(command, click.Group):
        rest = [*context._protected_args, *context.args]
        if not rest or "NAME" in rest[0]:
            return
        name, found, rest = command.resolve_command(context, rest)
        assert found is not None
        command = found
        context = command.make_context(name, rest, parent=context)


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: str(page.relative_to(_TOP)))
def test_the_commands_of_a_page_exist(page: Path):
    wrong = []
    for line in lines(page):
        try:
            check(shlex.split(line.replace("…", "").replace("\\", "")))
        except (click.exceptions.Exit, click.exceptions.NoArgsIsHelpError):
            pass
        except click.UsageError as error:
            if (
                isinstance(error, click.NoSuchOption)
                or "command" in error.format_message()
            ):
                wrong.append(f"chaindock {line}: {error.format_message()}")
        except ValueError:  # a quotation mark that the line does not close
            pass
    assert wrong == []


@pytest.mark.parametrize(
    "words", ["invoke --nope", "state nope", "nope", "up --confi x"]
)
def test_what_does_not_exist_is_found(words: str):
    with pytest.raises(click.UsageError, match="No such"):
        check(words.split())
