"""Write docs/reference from the code, so that the pages cannot be wrong.

`tests/meta/test_reference.py` compares what is checked in with what comes out here.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from chaindock import errors
from chaindock.cli.main import COMMANDS, GROUPS, root
from chaindock.cli.session import Session
from chaindock.cli.show import Exit
from chaindock.config.chaincodes import KEYS as SECTION_KEYS
from chaindock.config.keys import NOT_USED, look_up
from chaindock.config.sections import KEYS, defaults

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FOLDER = Path(__file__).parent.parent / "docs" / "reference"
NOTICE = "<!-- Written by `make reference`: do not edit. -->\n"
SHARED = ("--home", "--json", "--help")


def pages() -> dict[str, str]:
    """Return the text of each page by its file name."""
    makers: dict[str, Callable[[], Iterator[str]]] = {
        "cli.md": _commands,
        "config.md": _settings,
        "errors.md": _errors,
        "exit-codes.md": _exits,
    }
    return {
        name: NOTICE + "\n" + "\n".join(make()).rstrip() + "\n"
        for name, make in makers.items()
    }


# --- commands ------------------------------------------------------------------------


def _commands() -> Iterator[str]:
    yield "# Commands\n"
    yield "Every command takes these, before or after its name:\n"
    context = click.Context(root, info_name="chaindock", obj=Session())
    yield from _options(root, context, lambda name: name in SHARED)
    yield "\nWhat exit statuses mean: [Exit statuses](exit-codes.md).\n"
    for heading, commands in GROUPS.items():
        yield f"**{heading}**\n"
        for name, (_, first) in commands.items():
            yield f"- [`{name}`](#chaindock-{name}): {first}"
        yield ""
    for name in COMMANDS:
        command = root.get_command(context, name)
        if command is not None:
            yield from _command(command, context, name)


def _command(command: click.Command, parent: click.Context, name: str) -> Iterator[str]:
    context = click.Context(command, info_name=name, parent=parent)
    if isinstance(command, click.Group):
        for sub in command.list_commands(context):
            inner = command.get_command(context, sub)
            if inner is not None:
                yield from _command(inner, context, sub)
        return
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    yield f"\n## {context.command_path}\n"
    yield f"```\n{usage}\n```\n"
    yield _prose(command.help or "")
    yield ""
    yield from _options(command, context, lambda option: option not in SHARED)
    if command.epilog:
        examples = command.epilog.removeprefix("\b\nExamples:\n").splitlines()
        yield "\n```console"
        yield from (f"$ {line.strip()}" for line in examples)
        yield "```"


def _prose(text: str) -> str:
    paragraphs = []
    for block in re.split(r"\n\s*\n", text.strip()):
        if block.startswith("\b"):
            paragraphs.append("```\n" + block.removeprefix("\b\n") + "\n```")
        else:
            paragraphs.append(" ".join(block.split()))
    return "\n\n".join(paragraphs)


def _options(
    command: click.Command, context: click.Context, wanted: Callable[[str], bool]
) -> Iterator[str]:
    rows = []
    for param in command.get_params(context):
        if not isinstance(param, click.Option) or not wanted(param.opts[-1]):
            continue
        record = param.get_help_record(context)
        if record is not None:
            names, text = record
            rows.append(f"| `{names}` | {_cell(text)} |")
    if rows:
        yield "| Option | |\n|---|---|"
        yield from rows


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


# --- errors and exit statuses --------------------------------------------------------


def _errors() -> Iterator[str]:
    yield "# Errors\n"
    yield (
        "`error` in the output of `--json` is one of these; it never changes once it is "
        "released. An error\nis also everything that it is indented under."
    )
    yield "\n| Error | Kind | What it means |\n|---|---|---|"
    yield from _below(errors.ChaindockError, 0)


def _below(kind: type[errors.ChaindockError], depth: int) -> Iterator[str]:
    indent = "&nbsp;&nbsp;" * depth
    meaning = "" if depth == 0 else _cell(kind.__doc__ or "")
    if kind.retryable:
        meaning += " The same act may succeed later."
    what = meaning or "A defect, or something that nobody planned."
    yield f"| {indent}`{kind.slug}` | {kind.code} | {what} |"
    for one in sorted(kind.__subclasses__(), key=_position):
        if one.__module__ == errors.__name__:
            yield from _below(one, depth + 1)


def _position(kind: type) -> int:
    return list(vars(errors).values()).index(kind)


def _exits() -> Iterator[str]:
    yield "# Exit statuses\n"
    yield "| Status | Meaning |\n|---|---|"
    for status in Exit:
        yield f"| {int(status)} | {_cell(status.meaning)} |"


# --- settings ------------------------------------------------------------------------


def _settings() -> Iterator[str]:
    plain, _ = defaults(Path("~/.chaindock"), {"HOME": "~", "PATH": "PATH"})
    yield "# Settings\n"
    yield (
        "How to set them: [Configuration](../tasks/configuration.md). "
        "What they are now: `chaindock config show`."
    )
    yield "\n| Setting | Default | Meaning |\n|---|---|---|"
    for key in KEYS:
        value = _cell(key.show(look_up(plain, key.path)))
        shown = f"`{value}`" if value else ""
        yield f"| `{key.name}` | {shown} | {_cell(key.help)} |"
    yield "\n## Settings of one contract\n"
    yield (
        "In `core.yaml`, below `chaindock.chaincodes.NAME`. Unset = as for all. How:\n"
        "[One contract alone](../tasks/containers.md#one-contract-alone)."
    )
    yield "\n| Setting | Meaning |\n|---|---|"
    for one in SECTION_KEYS:
        yield f"| `{one.name}` | {_cell(one.help)} |"
    yield "\n## Settings of Fabric that have no effect\n"
    yield (
        "They may stay in `core.yaml`; `chaindock config show` lists them. Any other setting "
        "of Fabric that\nis not named on this page may stay there, too: it does not concern "
        "chaincode."
    )
    yield "\n| Setting, in lower case | Why |\n|---|---|"
    for name, reason in NOT_USED.items():
        yield f"| `{name}` | {_cell(reason)} |"


def main() -> int:
    """Write the pages into docs/reference, or into the folder that is named."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
