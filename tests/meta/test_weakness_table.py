"""docs/weaknesses.md names every row, and only tests that there are."""

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "weaknesses.md"
EXPECTED = [
    *(f"W{number}" for number in range(1, 73)),
    *(f"N{number}" for number in (1, 2, 3, 6, 8, 12, 13, *range(18, 22))),
    *(f"N{number}" for number in (*range(24, 30), 43, 44)),
    *(f"1a.{number}" for number in range(1, 12)),
]
NOTHING = "\N{EN DASH}"
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.read_text().splitlines()
    if re.match(r"\| (W|N|1a)", line)
]
NAMED = sorted(
    {name for row in ROWS for name in re.findall(r"`([\w./-]+::\w+)`", row[3])}
)


@functools.cache
def names_in(path: Path) -> set[str]:
    """Return the names of functions, methods and classes in a file."""
    return {
        node.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    }


def imported(path: Path) -> set[str]:
    """Return the modules that a file imports."""
    return {
        node.module or ""
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
    }


def test_every_row_is_there_once():
    assert sorted(row[0] for row in ROWS) == sorted(EXPECTED)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_row_has_tests_or_claims_nothing(row):
    assert len(row) == 4
    _, hurts, here, proof = row
    assert hurts
    assert "pending" not in proof
    tests = re.findall(r"`[\w./-]+::[Tt]est\w+`", proof)
    words = re.sub(r"`[^`]*`|<br>", "", proof).strip()
    assert not words or re.fullmatch(r"not yet(: [\w ,]+)?", words), words
    if tests:
        assert here not in {"", NOTHING}
    else:
        assert here == NOTHING, "a claim without a test"
        assert words, "neither a test nor `not yet`"


@pytest.mark.parametrize("name", NAMED)
def test_named_test_exists(name):
    path, _, test = name.partition("::")
    assert (ROOT / path).is_file(), f"{path} is not there"
    assert test in names_in(ROOT / path), f"{path} has no {test}"


def test_named_suites_are_run():
    """A suite proves something only if a module that pytest collects takes it in."""
    suites = {
        Path(name.partition("::")[0])
        for name in NAMED
        if not Path(name.partition("::")[0]).name.startswith("test_")
    }
    taken = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        taken |= imported(path)
    through = imported(ROOT / "tests" / "support" / "doubles" / "conformance.py")
    for suite in suites:
        module = ".".join(suite.with_suffix("").parts[1:])
        assert module in taken | through, f"nothing runs {suite}"
    assert "support.doubles.conformance" in taken
