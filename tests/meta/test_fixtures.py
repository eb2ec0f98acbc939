"""Example and fixture contracts are what their pages say."""

import json
from pathlib import Path

import pytest

from chaindock.platforms.registry import recognise

ROOT = Path(__file__).parents[2]
FOREIGN = ROOT / "tests" / "fixtures" / "foreign"
HOSTILE = ROOT / "tests" / "fixtures" / "hostile"
MANIFEST = json.loads((FOREIGN / "manifest.json").read_text())
LANGUAGES = {"go": "golang", "node": "node", "python": "python"}


def folders(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir() if path.is_dir())


@pytest.mark.parametrize("name", sorted(LANGUAGES))
def test_example_is_recognised(name):
    platform = recognise(ROOT / "examples" / name)
    assert LANGUAGES[name] == platform.name
    assert platform.select(ROOT / "examples" / name).files


@pytest.mark.parametrize("name", folders(FOREIGN))
def test_foreign_fixture_is_recognised(name):
    fixture = MANIFEST["fixtures"][name]
    platform = recognise(FOREIGN / name)
    assert fixture["language"] == platform.name
    assert platform.select(FOREIGN / name).files


def test_manifest_lists_the_foreign_fixtures_and_known_functions():
    assert sorted(MANIFEST["fixtures"]) == folders(FOREIGN)
    for fixture in MANIFEST["fixtures"].values():
        functions = set(fixture["functions"])
        assert functions <= set(MANIFEST["about"])
        assert {"put", "get", "refuse", "who"} <= functions


@pytest.mark.parametrize("name", folders(HOSTILE))
def test_hostile_fixture_can_be_packaged(name):
    platform = recognise(HOSTILE / name)
    assert platform.select(HOSTILE / name).files
    assert f"| `{name}` |" in (HOSTILE / "README.md").read_text()


@pytest.mark.parametrize(
    "path",
    [
        lock
        for place in (ROOT / "examples", ROOT / "tests" / "fixtures")
        for lock in sorted(place.rglob("package-lock.json"))
        if "node_modules" not in lock.parts
    ],
    ids=lambda path: str(path.parent.relative_to(ROOT)),
)
def test_lock_file_names_no_registry(path):
    packages = json.loads(path.read_text())["packages"]
    assert not [name for name, one in packages.items() if "resolved" in one]
