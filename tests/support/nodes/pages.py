"""Runs the commands of a page, and compares what they print with what the page shows."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from typing import TYPE_CHECKING

from support.nodes.node import EXAMPLES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
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
            assert re.fullmatch(pattern(shown), done.out.decode().rstrip("\n")), (
                command,
                done.out,
            )


def run_in_shell(
    node: Node, page: Path, folder: Path, programs: Mapping[str, Path] | None = None
) -> None:
    """Run all commands of `page` in one bash, as a reader would; all must succeed.

    Args:
        folder: the current directory; gets a copy of the examples.
        programs: further commands by name; `chaindock` is that of the tests.
    """
    shutil.copytree(EXAMPLES, folder / "examples", dirs_exist_ok=True)
    own = folder / "bin"
    own.mkdir()
    (own / "chaindock").write_text(f'#!/bin/sh\nexec {shlex.join(node.argv())} "$@"\n')
    (own / "chaindock").chmod(0o755)
    for name, program in (programs or {}).items():
        (own / name).symlink_to(program)
    asked = list(commands(page))
    said, end = folder / "said", "\n--- end of a command"
    lines = [f"exec >{shlex.quote(str(said))} 2>&1 </dev/null", "set -e"]
    for command, _ in asked:
        lines += [command, f"echo {shlex.quote(end)}"]
    env = {**node.env, "PATH": f"{own}:{node.env['PATH']}"}
    script = "\n".join(lines)
    subprocess.run(["bash", "-c", script], cwd=folder, env=env, check=False)
    outputs = said.read_text().split(f"{end}\n")
    for (command, shown), output in zip(asked, outputs, strict=False):
        # Nodes of tests listen on free ports.
        expected = pattern(shown).replace("7051", r"\d+")
        assert re.search(expected, output), f"{command}\n{output}"
    assert len(outputs) == len(asked) + 1, outputs[-1]
