"""Rules of CONTRIBUTING.md that no linter knows."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
OWN = [
    path
    for folder in ("src", "tests", "scripts")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "fixtures" not in path.parts
]
LIMIT, TOTAL = 400, 48_100
"""The most lines of a file, and of all files in src."""
LONG_HEADS = {
    f"src/chaindock/{name}.py"
    for name in ("controllers/process/builds", "processes/spawner")
}
"""Modules whose head shows a layout, a protocol or a proof, too."""
NO_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "manager"}
NO_WORDS = re.compile(r"(?i)(?<!\.)\b(walls?|left alone|may pass|sparing(ly)?|care)\b")
"""Metaphors that readers did not understand."""


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT / "src").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def lines_of(path: Path) -> int:
    return len(path.read_text().splitlines())


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


def test_files_are_small():
    found = {relative(path) for path in OWN if lines_of(path) > LIMIT}
    assert found == set(), f"more than {LIMIT} lines: split them"


def test_the_sources_are_no_longer_than_promised():
    assert sum(map(lines_of, SOURCES)) <= TOTAL


def test_file_names_say_what_is_inside():
    named = {relative(path): {path.stem, path.parent.name} for path in OWN}
    assert [path for path, names in named.items() if names & NO_NAMES] == []


def test_modules_say_what_they_do():
    """One to three sentences; then, if a rule comes from elsewhere, `Source: …`."""
    wrong = {relative(path): said for path in SOURCES if (said := head_fault(path))}
    assert wrong.keys() <= LONG_HEADS, wrong


def head_fault(path: Path) -> str:
    """Say what is wrong with a module's docstring; "" = nothing."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    if re.search(r"^(Owns|Not|Entry|Holds|Size):", text, re.MULTILINE):
        return "has fields"
    said, _, _ = text.partition("\nSource:")
    plain = "\n".join(line for line in said.splitlines() if line[:2] != "  ")
    sentences = len(re.findall(r"[.!?](?=\s|$)", plain))
    return "" if 1 <= sentences <= 3 else f"{sentences} sentences"


def test_pages_that_code_points_to_are_in_the_repository():
    """Fabric's source may be named by its files."""
    wrong = [
        f"{relative(path)}: {page}"
        for path in SOURCES
        for page in re.findall(r"[\w./-]+\.md\b", path.read_text())
        if not (ROOT / page).exists()
    ]
    assert wrong == []


def test_no_word_is_a_riddle():
    wrong = [
        f"{relative(path)}: {found[0]}"
        for path in SOURCES
        for found in NO_WORDS.finditer(path.read_text())
    ]
    assert wrong == []


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


def test_links_lead_somewhere():
    wrong = []
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        wrong += [
            f"{relative(page)}: {target}"
            for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
            if "://" not in target and not (page.parent / target).exists()
        ]
    assert wrong == []


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
