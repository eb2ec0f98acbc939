"""The checked-in reference pages are the ones that the code gives."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ("cli.md", "config.md", "errors.md", "exit-codes.md")


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    # In a process of its own: click remembers options of contexts used before.
    folder = tmp_path_factory.mktemp("reference")
    script = ROOT / "scripts" / "gen_reference.py"
    subprocess.run([sys.executable, str(script), str(folder)], check=True)
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.mark.parametrize("page", PAGES)
def test_page_is_what_the_code_says(page, fresh):
    path = ROOT / "docs" / "reference" / page
    assert path.exists(), "run: make reference"
    assert path.read_text() == fresh[page], "run: make reference"


def test_there_is_no_other_page(fresh):
    folder = ROOT / "docs" / "reference"
    assert sorted(fresh) == sorted(PAGES)
    assert sorted(path.name for path in folder.iterdir()) == sorted(PAGES)
