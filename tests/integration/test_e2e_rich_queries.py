"""The example of rich queries, as docs/tasks/rich-queries.md runs it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.nodes.node import PROCESS, started
from support.nodes.pages import ROOT, run_page

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.slow,
    pytest.mark.nodejs,
    pytest.mark.network,
    pytest.mark.timeout(600),
]


def test_the_page_shows_what_happens(tmp_path: Path):
    with started(PROCESS, tmp_path) as node:
        run_page(node, ROOT / "docs" / "tasks" / "rich-queries.md")
        # The index has outlived a restart, and serves.
        node.cli("down")
        node.up()
        found = node.ask("query", "marbles", "ownedBy", "bob")["result"]
        assert found == ["m3", "m1", "m4", "m2"]
