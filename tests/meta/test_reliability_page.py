"""docs/reliability.md names every fault test, and only tests that there are."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reliability.md").read_text()
FAULTS = sorted((ROOT / "tests" / "faults").glob("test_*.py"))
ROWS = [line for line in PAGE.splitlines() if "`test_" in line and line[0] == "|"]


def names_of(path: Path) -> set[str]:
    return {
        node.name
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
    }


def section_files(row: str) -> list[Path]:
    """The file that the row names, else those of its section."""
    section = PAGE[: PAGE.index(row)].rpartition("\n## ")[2]
    named = re.findall(r"`(tests/[\w/]+\.py)`", row) or re.findall(
        r"`(tests/[\w/]+\.py)`", section
    )
    return [ROOT / name for name in named]


@pytest.mark.parametrize(
    "row", ROWS, ids=lambda row: re.findall(r"`(test_\w+)`", row)[0]
)
def test_a_named_test_exists(row):
    for name in re.findall(r"`(test_\w+)`", row):
        files = section_files(row)
        assert files, "the section names no file"
        assert any(name in names_of(path) for path in files), f"{name} is not there"


@pytest.mark.parametrize("path", FAULTS, ids=lambda path: path.stem)
def test_every_fault_test_is_on_the_page(path):
    missing = {name for name in names_of(path) if f"`{name}`" not in PAGE}
    assert not missing
