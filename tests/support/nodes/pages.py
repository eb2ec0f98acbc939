"""Runs the commands of a page, and compares what they print with what the page shows."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

from support.nodes.node import EXAMPLES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.nodes.node import Node

ROOT = EXAMPLES.parent


def commands(page: Path) -> Iterator[tuple[str, str]]:
    """Yield each command of the page, and the output that the page shows."""
    for block in re.findall(r"```console\n(.*?)```", page.read_text(), re.DOTALL):
        for part in block.removeprefix("$ ").split("\n$ "):
            command, _, shown = part.rstrip("\n").partition("\n")
            yield command, shown


def pattern(shown: str) -> str:
    """Return what fits the output on the page, where `…` stands for anything."""
    return ".*".join(map(re.escape, shown.split("…")))


def words_of(command: str) -> list[str]:
    """Return the arguments, with paths that do not depend on the current directory."""
    words = shlex.split(command)[1:]
    return [str(ROOT / w) if w.startswith("examples/") else w for w in words]


def run_page(node: Node, page: Path) -> None:
    """Run all commands of `page` in their order."""
    for command, shown in commands(page):
        refused = shown.startswith("error: ")
        done = node.cli(*words_of(command), code=None if refused else 0)
        if refused:
            assert re.search(pattern(shown), done.err), (command, done.err)
        else:
            assert re.fullmatch(pattern(shown), done.out.decode().rstrip("\n")), command
