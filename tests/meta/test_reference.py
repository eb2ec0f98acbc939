"""The checked-in reference pages are the ones that the code gives."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ("cli.md", "config.md", "errors.md", "exit-codes.md")


@pytest.fixture(scope="module")
def fresh():
    spec = importlib.util.spec_from_file_location(
        "gen_reference", ROOT / "scripts" / "gen_reference.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.pages()


@pytest.mark.parametrize("page", PAGES)
def test_page_is_what_the_code_says(page, fresh):
    path = ROOT / "docs" / "reference" / page
    assert path.exists(), "run: make reference"
    assert path.read_text() == fresh[page], "run: make reference"


def test_there_is_no_other_page(fresh):
    folder = ROOT / "docs" / "reference"
    assert sorted(fresh) == sorted(PAGES)
    assert sorted(path.name for path in folder.iterdir()) == sorted(PAGES)
