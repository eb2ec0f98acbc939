"""A node with a contract that pries (tests/fixtures/hostile/pries), and a neighbour."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

from support.nodes.node import EXAMPLES, FIXTURES, Node, started

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAME, NEIGHBOUR = "pries", "neighbour"
SOURCE = FIXTURES / "hostile" / NAME


@contextlib.contextmanager
def prying(backend: str, folder: Path) -> Iterator[Node]:
    """Yield a node that runs both."""
    flags = [
        *("--set", "chaindock.sandbox.fileSize=8m"),
        *("--set", "chaindock.process.maxFileSize=8m"),
        *("--set", "chaindock.launch.stopGrace=2s"),
    ]
    with started(backend, folder, *flags) as node:
        node.deploy(SOURCE, NAME)
        node.deploy(EXAMPLES / "python", NEIGHBOUR)
        yield node


def pry(node: Node, *words: object) -> Any:
    """Let the contract try something; return what came of it."""
    return json.loads(node.query(NAME, *map(str, words)))


def details(node: Node, name: str = NAME) -> dict[str, str]:
    """Return what `ps` says about a run."""
    line = node.ps(name)
    assert line is not None
    found: dict[str, str] = line["details"]
    return found


def restart(node: Node) -> None:
    """Give the contract a new run."""
    node.cli("stop", NAME)
    node.cli("start", NAME)


@contextlib.contextmanager
def settings(node: Node, text: str) -> Iterator[None]:
    """Let the contract run with a core.yaml, which its next launch reads."""
    path = node.home / "core.yaml"
    path.write_text(text)
    path.chmod(0o600)
    try:
        restart(node)
        yield
    finally:
        path.unlink()
        restart(node)
