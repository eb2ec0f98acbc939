"""Rules of CONTRIBUTING.md that no linter knows."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
OWN = [
    path
    for folder in ("src", "tests", "scripts")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "fixtures" not in path.parts
]
LIMIT = 400
NO_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "manager"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT / "src").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text())) or ""


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_every_module_imports_alone():
    # In one process, but each from a clean slate: what a module needs, it imports.
    program = (
        "import importlib, sys\n"
        "bad = []\n"
        "for name in sys.argv[1:]:\n"
        "    for known in [n for n in sys.modules if n.split('.')[0] == 'chaindock']:\n"
        "        del sys.modules[known]\n"
        "    try:\n"
        "        importlib.import_module(name)\n"
        "    except BaseException as error:\n"
        "        bad.append(f'{name}: {type(error).__name__}: {error}')\n"
        "sys.exit('\\n'.join(bad) or 0)\n"
    )
    names = [module_name(path) for path in SOURCES if path.stem != "__main__"]
    done = subprocess.run(
        [sys.executable, "-c", program, *names],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},  # noqa: TID251
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", OWN, ids=relative)
def test_file_is_small_or_says_why_not(path):
    lines = len(path.read_text().splitlines())
    if lines > LIMIT:
        assert re.search(r"^Size: ", docstring(path), re.MULTILINE), (
            f"{lines} lines, more than {LIMIT}: split it, or give the reason in the "
            f"docstring (Size: …)"
        )


@pytest.mark.parametrize("path", OWN, ids=relative)
def test_file_name_says_what_is_inside(path):
    assert path.stem not in NO_NAMES
    assert path.parent.name not in NO_NAMES


@pytest.mark.parametrize(
    "path",
    [p for p in SOURCES if p.stem not in {"__init__", "__main__"}],
    ids=relative,
)
def test_module_says_what_it_is_responsible_for(path):
    assert docstring(path)


@pytest.mark.parametrize(
    "path", [p for p in SOURCES if p.stem == "__init__"], ids=relative
)
def test_package_says_what_it_is(path):
    assert docstring(path)


def test_every_dependency_has_its_reason():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = list(project["project"]["dependencies"])
    asked += project["build-system"]["requires"]
    for group in project["dependency-groups"].values():
        asked += [one for one in group if isinstance(one, str)]
    names = {re.split(r"[^A-Za-z0-9._-]", one)[0] for one in asked}
    page = (ROOT / "docs" / "dependencies.md").read_text()
    told = set(re.findall(r"^\| `([^`]+)` \| \S", page, re.MULTILINE))
    assert told == names


PAGES = [
    page
    for place in ("*.md", "docs/**/*.md", "examples/*/*.md", "tests/fixtures/*/*.md")
    for page in sorted(ROOT.glob(place))
]


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{target!r} is not there"


def test_every_error_is_in_the_tree_at_the_top():
    from chaindock import errors

    tree = errors.__doc__ or ""
    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, errors.ChaindockError):
            assert re.search(rf"\b{name}\b", tree), f"{name} is not in the tree"


def test_slugs_are_unique_kebab_words():
    from chaindock import errors

    kinds = [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.ChaindockError)
    ]
    slugs = [kind.slug for kind in kinds]
    assert len(set(slugs)) == len(slugs)
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", slug) for slug in slugs)
