"""Unpacked trees whose manifests are hostile: refused or planned, soon."""

import json
import re
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chaindock.errors import SourceInvalid
from chaindock.platforms.registry import PLATFORMS, platform_for
from support.trees import make

FUZZ = settings(
    max_examples=120, deadline=None, suppress_health_check=list(HealthCheck)
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=30),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner)
    ),
    max_leaves=8,
)
SCRIPT = st.text(alphabet="node fabric-chain{}$;|&=\"'./js\n", max_size=40) | st.just(
    "fabric-chaincode-node start"
)
MANIFEST = st.fixed_dictionaries(
    {},
    optional={
        "main": JSON | st.just("index.js"),
        "scripts": JSON | st.dictionaries(st.sampled_from(["start", "build"]), SCRIPT),
        "dependencies": JSON | st.just({"fabric-shim": "2.5.8"}),
    },
)
PLACEHOLDER = re.compile(r"\{(input|output|peer|listen|ccid|cache:\w+|tool:\w+)\}")


def plan_or_refusal(kind: str, tree: Path, path: str = "") -> None:
    try:
        plan = platform_for(kind).plan(tree, path)
    except SourceInvalid:
        return
    words = [*plan.launch.argv, *(word for step in plan.steps for word in step.argv)]
    for word in words:
        left = PLACEHOLDER.sub("", word)
        assert "{" not in left, f"{word!r} looks like a placeholder that is none"


@FUZZ
@given(MANIFEST)
def test_any_package_json(tmp_path_factory, manifest):
    tree = make(
        tmp_path_factory.mktemp("node"),
        {"src/package.json": json.dumps(manifest), "src/index.js": ""},
    )
    plan_or_refusal("node", tree)


@FUZZ
@given(st.text(alphabet='[]{}=".\n abtoolchaindockentryproject1,-', max_size=120))
def test_any_pyproject(tmp_path_factory, text):
    files = {"src/pyproject.toml": text, "src/main.py": ""}
    plan_or_refusal("python", make(tmp_path_factory.mktemp("py"), files))


@FUZZ
@given(st.text(max_size=60), st.text(max_size=60))
def test_any_import_path_and_go_file(tmp_path_factory, path, text):
    files = {"src/go.mod": "module a\n", "src/main.go": f'import "C"{text}'}
    plan_or_refusal("golang", make(tmp_path_factory.mktemp("go"), files), path)


SLOW = {
    "comments": ("src/a.go", '"C"' + "/*" * 60_000),
    "lines": ("src/a.go", '"C"' + "\n" * 120_000),
    "blocks": ("src/a.go", '"C"' + "import (" * 15_000),
    "quotes": ("src/a.go", 'import "C' + '"' * 120_000),
    "packages": ("src/a.go", '"C"' + "package " * 15_000),
    "keys": ("src/pyproject.toml", "a." * 400_000 + "a = 1\n"),
    "tables": ("src/pyproject.toml", "[" + "a." * 400_000 + "a]\n"),
    "script": (
        "src/package.json",
        json.dumps({"scripts": {"start": "set " * 200_000}}),
    ),
    "starts": ("src/a.py", "fabric_shim" + "start " * 20_000),
    "spaces": ("src/a.py", "fabric_shim start" + " " * 120_000),
}


@pytest.mark.parametrize("case", SLOW.values(), ids=SLOW.keys())
def test_no_text_keeps_a_planner_busy(tmp_path, case):
    name, text = case
    tree = make(tmp_path, {"src/go.mod": "module a\n", name: text})
    began = time.process_time()
    for platform in PLATFORMS:
        plan_or_refusal(platform.name, tree, "a")
    assert time.process_time() - began < 2
