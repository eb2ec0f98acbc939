"""Node: what is installed, built and started."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from chaindock.errors import SourceInvalid
from chaindock.platforms.base import BuildPlan, Connection
from chaindock.platforms.node import Node
from support.trees import make

CLI = "fabric-chaincode-node start"
PEER = ("--peer.address", "{peer}")
NPM = ("{tool:npm}", "start", "--", *PEER)


def manifest(start: str | None = CLI, **more: Any) -> dict[str, str]:
    scripts = more.pop("scripts", {})
    if start is not None:
        scripts = {"start": start} | scripts
    document = {
        "name": "basic",
        "main": "index.js",
        "scripts": scripts,
        "dependencies": {"fabric-shim": "2.5.8", "fabric-contract-api": "2.5.8"},
    }
    return {"package.json": json.dumps(document | more), "index.js": ""}


def plan(root: Path, files: dict[str, str]) -> BuildPlan:
    return Node().plan(
        make(root, {f"src/{name}": one for name, one in files.items()}), ""
    )


def commands(found: BuildPlan) -> list[tuple[str, str]]:
    return [(step.phase, " ".join(step.argv)) for step in found.steps]


def test_the_source_is_copied_and_its_packages_installed(tmp_path):
    found = plan(tmp_path, manifest())
    assert commands(found) == [
        ("dependencies", "cp -R {input}/src/. {output}"),
        ("dependencies", "{tool:npm} install --omit=dev --no-audit --no-fund"),
    ]
    assert {step.cwd for step in found.steps} == {"{output}"}
    assert found.steps[1].env["npm_config_cache"] == "{cache:npm}"
    assert found.caches == ("npm",)


@pytest.mark.parametrize("lock", ["package-lock.json", "npm-shrinkwrap.json"])
def test_a_lock_file_is_obeyed(tmp_path, lock):
    found = plan(tmp_path, manifest() | {lock: "{}"})
    assert commands(found)[1][1].startswith("{tool:npm} ci --omit=dev")


def test_typescript_is_built_by_its_own_script_when_dist_is_missing(tmp_path):
    files = manifest(
        main="dist/index.js",
        scripts={"build": "tsc"},
        devDependencies={"typescript": "5"},
    ) | {"tsconfig.json": "{}", "src/index.ts": "", "package-lock.json": "{}"}
    assert commands(plan(tmp_path, files)) == [
        ("dependencies", "cp -R {input}/src/. {output}"),
        ("dependencies", "{tool:npm} ci --include=dev --no-audit --no-fund"),
        ("compile", "{tool:npm} run build"),
        ("compile", "{tool:npm} prune --omit=dev --no-audit --no-fund"),
    ]
    built = plan(tmp_path / "b", files | {"dist/index.js": ""})
    assert commands(built)[1:] == [
        ("dependencies", "{tool:npm} ci --omit=dev --no-audit --no-fund")
    ]


@pytest.mark.parametrize("main", ["dist/index", "dist", "./dist/index.js", "dist/"])
def test_main_is_found_as_node_finds_it(tmp_path, main):
    files = manifest(main=main, scripts={"build": "tsc"}) | {"dist/index.js": ""}
    assert len(plan(tmp_path, files).steps) == 2


def test_a_program_that_only_npm_knows_is_not_judged(tmp_path):
    files = manifest("ts-node src/index.ts", main=None) | {"src/index.ts": ""}
    del files["index.js"]
    assert len(plan(tmp_path / "a", files).steps) == 2
    assert len(plan(tmp_path / "b", files | {"tsconfig.json": "{}"}).steps) == 2
    built = manifest("env node dist/a.js", main="dist/a.js", scripts={"build": "tsc"})
    assert len(plan(tmp_path / "c", built | {"tsconfig.json": "{}"}).steps) == 4


def test_a_byte_order_mark_is_no_error(tmp_path):
    files = manifest()
    files["package.json"] = "\ufeff" + files["package.json"]
    assert plan(tmp_path, files).steps


def test_a_script_in_dist_is_built_too(tmp_path):
    files = manifest("node dist/main.js", scripts={"build": "tsc"})
    assert len(plan(tmp_path, files).steps) == 4


def test_a_missing_file_that_nothing_makes_is_refused(tmp_path):
    with pytest.raises(SourceInvalid, match=r"'dist/index\.js'.*no build script"):
        plan(tmp_path, manifest(main="dist/index.js"))
    files = manifest(main="dist/index.js", scripts={"prepare": "tsc"})
    assert plan(tmp_path / "b", files).steps


@pytest.mark.parametrize(
    ("start", "argv"),
    [
        (CLI, ("{tool:node}", "node_modules/fabric-shim/cli.js", "start", *PEER)),
        (
            f"set -x && {CLI} --grpc.max_send_message_length=-1",
            (
                "{tool:node}",
                "node_modules/fabric-shim/cli.js",
                "start",
                "--grpc.max_send_message_length=-1",
                *PEER,
            ),
        ),
        ("node index.js", ("{tool:node}", "index.js", *PEER)),
        (
            "  node  --max-old-space-size=512 -r ./lib/x.js index.js a ",
            (
                "{tool:node}",
                "--max-old-space-size=512",
                "-r",
                "./lib/x.js",
                "index.js",
                "a",
                *PEER,
            ),
        ),
        ("set -ex; node index.js", ("{tool:node}", "index.js", *PEER)),
        ("ts-node src/index.ts", NPM),
        ("NODE_ENV=production node index.js", NPM),
        ("node index.js | tee log", NPM),
        ("node index.js && echo done", NPM),
        ("node $MAIN", NPM),
        ("node *.js", NPM),
        ("node 'in dex.js'", NPM),
        ("node index.js; reboot", NPM),
        ("node -e 1", NPM),
        ("node index.js > {peer}", NPM),
        ("node {output}/x.js", NPM),
        ("npm run serve", NPM),
    ],
)
def test_the_start_script_runs_without_npm_when_it_means_the_same(
    tmp_path, start, argv
):
    launch = plan(tmp_path, manifest(start)).launch
    assert launch.argv == argv
    assert launch.cwd == "{output}"
    assert launch.connection is Connection.CALLS_BACK
    assert launch.env["CORE_CHAINCODE_ID_NAME"] == "{ccid}"


@pytest.mark.parametrize("hook", ["prestart", "poststart"])
def test_hooks_are_left_to_npm(tmp_path, hook):
    assert plan(tmp_path, manifest(scripts={hook: "echo"})).launch.argv == NPM


def test_a_command_that_is_no_direct_dependency_is_left_to_npm(tmp_path):
    files = manifest(dependencies={"fabric-contract-api": "2.5.8"})
    assert plan(tmp_path, files).launch.argv == NPM


def test_npms_own_default_is_known(tmp_path):
    files = manifest(None) | {"server.js": ""}
    assert plan(tmp_path, files).launch.argv == ("{tool:node}", "server.js", *PEER)


@pytest.mark.parametrize(
    ("files", "match"),
    [
        ({"index.js": ""}, r"no package\.json"),
        (manifest(None), "no start script"),
        (manifest("   "), "no start script"),
        (manifest("set -x; "), "no start script"),
        ({"package.json": '{"scripts":{"start":1}}'}, "no start"),
        (manifest("fabric-chaincode-node server"), "starts a server"),
        (
            manifest(
                "set -x && fabric-chaincode-node server "
                "--chaincode-address=$CHAINCODE_SERVER_ADDRESS"
            ),
            "starts a server",
        ),
        (manifest(main=None), "no main entry"),
        ({"package.json": "{"}, "not JSON"),
        ({"package.json": "[]"}, "not a JSON object"),
    ],
    ids=str,
)
def test_what_could_not_start_is_refused_when_it_is_packaged_and_built(
    tmp_path, files, match
):
    with pytest.raises(SourceInvalid, match=match):
        plan(tmp_path / "tree", files)
    with pytest.raises(SourceInvalid, match=match):
        Node().select(make(tmp_path / "source", files))


def test_everything_but_installed_packages_is_selected(tmp_path):
    make(
        tmp_path,
        manifest() | {"node_modules/x/i.js": "", "dist/a.js": "", ".npmrc": ""},
    )
    selection = Node().select(tmp_path)
    assert [file.name for file in selection.files] == [
        "src/.npmrc",
        "src/dist/a.js",
        "src/index.js",
        "src/package.json",
    ]
    assert (selection.import_path, selection.package_type) == ("", "node")


def test_a_main_outside_of_the_package_counts_as_missing(tmp_path):
    make(tmp_path, {"secret.js": ""})
    with pytest.raises(SourceInvalid, match="missing"):
        plan(tmp_path / "tree", manifest(main="../../secret.js"))


STALE = {
    "package.json": json.dumps(
        {
            "main": "dist/index.js",
            "scripts": {"start": "node dist/index.js", "build": "tsc"},
        }
    ),
    "dist/index.js": "",
    "src/index.ts": "",
}


@pytest.mark.parametrize(("source_age_s", "said"), [(0, True), (100, False)])
def test_a_build_result_that_is_older_than_its_source_is_told(
    tmp_path, source_age_s, said
):
    """Issue 9, 16: it is deployed as if it were the source."""
    make(tmp_path, STALE)
    now = 1_000_000_000
    os.utime(tmp_path / "dist/index.js", (now, now - 50))
    os.utime(tmp_path / "src/index.ts", (now, now - source_age_s))
    warnings = Node().select(tmp_path).warnings
    assert bool(warnings) is said
    if said:
        assert "dist/ is older than src/index.ts" in warnings[0]
