"""Go: modules, packages of modules, GOPATH."""

from pathlib import Path

import pytest

from chaindock.errors import SourceInvalid
from chaindock.platforms.base import BuildPlan, Connection, Selection
from chaindock.platforms.golang import Golang
from support.trees import make

MOD = "module example.org/basic // the module\n\ngo 1.22\n"
MAIN = "// Command of the chaincode.\npackage main\n\nfunc main() {}\n"
LIB = "package lib\n"
INDEX = '{"index":{"fields":["a"]}}'


def names(selection: Selection) -> list[str]:
    return [file.name for file in selection.files]


def test_the_whole_module_is_packaged(tmp_path):
    make(
        tmp_path,
        {
            "go.mod": MOD,
            "go.sum": "",
            "main.go": MAIN,
            "lib/lib.go": LIB,
            "lib/data.txt": "",
            ".golangci.yml": "",
            ".github/workflow.yml": "",
            "vendor/modules.txt": "",
            "META-INF/statedb/couchdb/indexes/a.json": INDEX,
        },
    )
    selection = Golang().select(tmp_path)
    assert selection.import_path == "example.org/basic"
    assert selection.package_type == "golang"
    assert names(selection) == [
        "META-INF/statedb/couchdb/indexes/a.json",
        "src/.golangci.yml",
        "src/go.mod",
        "src/go.sum",
        "src/lib/data.txt",
        "src/lib/lib.go",
        "src/main.go",
        "src/vendor/modules.txt",
    ]


def test_a_package_of_a_module_takes_the_module_with_it(tmp_path):
    make(
        tmp_path,
        {
            "go.mod": MOD,
            "main.go": MAIN,
            "cmd/cc/main.go": MAIN,
            "cmd/cc/META-INF/statedb/couchdb/indexes/a.json": INDEX,
            "other/META-INF/b.json": "",
        },
    )
    selection = Golang().select(tmp_path / "cmd" / "cc")
    assert selection.import_path == "example.org/basic/cmd/cc"
    assert names(selection) == [
        "META-INF/statedb/couchdb/indexes/a.json",
        "src/cmd/cc/main.go",
        "src/go.mod",
        "src/main.go",
        "src/other/META-INF/b.json",
    ]


def test_the_only_main_package_is_found(tmp_path):
    make(
        tmp_path,
        {
            "go.mod": MOD,
            "lib.go": LIB,
            "lib_test.go": "package main\n",
            "gen.go": "//go:build ignore\n\npackage main\n",
            "tools/tools.go": "//go:build tools\n\npackage main\n",
            "testdata/main.go": MAIN,
            "_old/main.go": MAIN,
            "vendor/example.org/x/main.go": MAIN,
            "nested/go.mod": "module example.org/nested\n",
            "nested/main.go": MAIN,
            "cmd/cc/main.go": "//go:build linux\n\n" + MAIN,
            "META-INF/statedb/couchdb/indexes/a.json": INDEX,
        },
    )
    selection = Golang().select(tmp_path)
    assert selection.import_path == "example.org/basic/cmd/cc"
    assert "META-INF/statedb/couchdb/indexes/a.json" in names(selection)


def test_several_main_packages_are_listed(tmp_path):
    make(tmp_path, {"go.mod": MOD, "cmd/one/main.go": MAIN, "cmd/two/main.go": MAIN})
    with pytest.raises(SourceInvalid, match="'cmd/one', 'cmd/two'") as caught:
        Golang().select(tmp_path)
    assert str(tmp_path / "cmd" / "one") in str(caught.value.hint)
    one = Golang().select(tmp_path / "cmd" / "one")
    assert one.import_path == "example.org/basic/cmd/one"


def test_a_library_is_no_chaincode(tmp_path):
    make(tmp_path, {"go.mod": MOD, "lib.go": LIB})
    with pytest.raises(SourceInvalid, match="no main package"):
        Golang().select(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "module example.org/basic\n",
        'module "example.org/basic"\n',
        "// Deprecated: no\nmodule (\n\texample.org/basic\n)\n",
        "go 1.22\n\n\nmodule   example.org/basic\r\n",
    ],
)
def test_go_mod_is_read_in_all_its_forms(tmp_path, text):
    make(tmp_path, {"go.mod": text, "main.go": MAIN})
    assert Golang().select(tmp_path).import_path == "example.org/basic"


@pytest.mark.parametrize("text", ["", "go 1.22\n", "module -x\n", "module ../a\n"])
def test_go_mod_without_a_module_is_refused(tmp_path, text):
    make(tmp_path, {"go.mod": text, "main.go": MAIN})
    with pytest.raises(SourceInvalid, match="names no module"):
        Golang().select(tmp_path)


@pytest.mark.parametrize(
    "line",
    ["replace example.org/x => ../x", "replace (\n\texample.org/x v1.0.0 => /x\n)"],
)
def test_a_replaced_directory_outside_must_be_vendored(tmp_path, line):
    make(tmp_path, {"go.mod": MOD + line, "main.go": MAIN})
    with pytest.raises(SourceInvalid, match="outside") as caught:
        Golang().select(tmp_path)
    assert "go mod vendor" in str(caught.value.hint)
    make(tmp_path, {"vendor/modules.txt": ""})
    assert Golang().select(tmp_path).files


def test_a_replaced_directory_inside_is_fine(tmp_path):
    make(
        tmp_path,
        {
            "go.mod": MOD + "replace example.org/x => ./x\n",
            "main.go": MAIN,
            "x/go.mod": "module example.org/x\n",
        },
    )
    assert "src/x/go.mod" in names(Golang().select(tmp_path))


def test_outside_of_modules_a_package_takes_what_it_imports(tmp_path):
    make(
        tmp_path / "go" / "src",
        {
            "example.org/cc/main.go": (
                'package main\n\nimport (\n\t"fmt" // std\n\tx "example.org/lib"\n'
                '\t_ "example.org/vendored"\n)\n/* import "example.org/no" */\n'
            ),
            "example.org/cc/go.sum": "",
            "example.org/cc/sub/other.go": LIB,
            "example.org/cc/vendor/example.org/vendored/v.go": "package vendored\n",
            "example.org/cc/META-INF/statedb/couchdb/indexes/a.json": INDEX,
            "example.org/lib/lib.go": 'package lib\n\nimport "example.org/deep"\n',
            "example.org/deep/deep.go": "package deep\n",
            "example.org/unused/u.go": "package unused\n",
        },
    )
    selection = Golang().select(tmp_path / "go" / "src" / "example.org" / "cc")
    assert selection.import_path == "example.org/cc"
    assert names(selection) == [
        "META-INF/statedb/couchdb/indexes/a.json",
        "src/example.org/cc/main.go",
        "src/example.org/cc/vendor/example.org/vendored/v.go",
        "src/example.org/deep/deep.go",
        "src/example.org/lib/lib.go",
    ]


def test_outside_of_modules_a_missing_import_is_named(tmp_path):
    source = tmp_path / "src" / "cc"
    make(source, {"main.go": 'package main\n\nimport "example.org/gone"\n'})
    with pytest.raises(SourceInvalid, match=r"example\.org/gone") as caught:
        Golang().select(source)
    assert "go mod init" in str(caught.value.hint)


def test_go_files_without_a_module_or_gopath_need_a_module(tmp_path):
    make(tmp_path, {"main.go": MAIN})
    with pytest.raises(SourceInvalid, match=r"no go\.mod"):
        Golang().select(tmp_path)


def plan(
    tree: Path, files: dict[str, str], path: str = "example.org/basic"
) -> BuildPlan:
    return Golang().plan(make(tree, files), path)


def test_a_module_is_downloaded_then_built(tmp_path):
    found = plan(tmp_path, {"src/go.mod": MOD, "src/main.go": MAIN})
    download, build = found.steps
    assert download.phase == "dependencies"
    assert download.argv == ("{tool:go}", "mod", "download", "-x")
    assert build.phase == "compile"
    assert build.argv == (
        "{tool:go}",
        "build",
        "-trimpath",
        "-buildvcs=false",
        "-mod=readonly",
        "-o",
        "{output}/chaincode",
        "example.org/basic",
    )
    assert build.cwd == download.cwd == "{input}/src"
    assert build.env == {
        "GOCACHE": "{cache:go-build}",
        "GOMODCACHE": "{cache:go-mod}",
        "GOWORK": "off",
        "CGO_ENABLED": "0",
    }
    assert found.caches == ("go-build", "go-mod")


def test_a_go_program_dials_the_node(tmp_path):
    launch = plan(tmp_path, {"src/go.mod": MOD}).launch
    assert launch.argv == ("{output}/chaincode", "-peer.address={peer}")
    assert launch.connection is Connection.CALLS_BACK
    assert launch.env["CORE_CHAINCODE_ID_NAME"] == "{ccid}"
    assert launch.concurrency is None


def test_a_vendored_module_downloads_nothing(tmp_path):
    found = plan(tmp_path, {"src/go.mod": MOD, "src/vendor/modules.txt": ""})
    (build,) = found.steps
    assert "-mod=vendor" in build.argv


def test_a_module_in_its_import_path_is_built_there(tmp_path):
    found = plan(tmp_path, {"src/example.org/basic/go.mod": MOD})
    assert [step.cwd for step in found.steps] == ["{input}/src/example.org/basic"] * 2
    assert found.steps[-1].argv[-1] == "."


def test_a_package_of_gopath_is_built_without_modules(tmp_path):
    (build,) = plan(tmp_path, {"src/example.org/basic/main.go": MAIN}).steps
    assert build.env["GO111MODULE"] == "off"
    assert build.env["GOPATH"] == "{input}"
    assert not any(word.startswith("-mod") for word in build.argv)
    assert build.argv[-1] == "example.org/basic"


def test_a_workspace_of_the_module_stays_in_force(tmp_path):
    found = plan(tmp_path, {"src/go.mod": MOD, "src/go.work": "go 1.22\nuse .\n"})
    assert "GOWORK" not in found.steps[-1].env


@pytest.mark.parametrize(
    "text",
    [
        'package main\n\nimport "C"\n',
        'package main\n\n/*\n#include <math.h>\n*/\nimport "C"\n',
        'package main\n\nimport (\n\t"fmt"\n\t"C"\n)\n',
    ],
)
def test_code_that_needs_c_keeps_cgo(tmp_path, text):
    found = plan(tmp_path, {"src/go.mod": MOD, "src/lib/c.go": text})
    assert "CGO_ENABLED" not in found.steps[-1].env


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("src/a.go", 'package a // import "C"\n'),
        ("src/a.go", 'package a\n\nvar x = "C"\n'),
        ("src/a_test.go", 'package a\n\nimport "C"\n'),
        ("src/vendor/x/x.go", 'package x\n\nimport "C"\n'),
    ],
)
def test_other_code_is_built_without_cgo(tmp_path, name, text):
    found = plan(tmp_path, {"src/go.mod": MOD, name: text})
    assert found.steps[-1].env["CGO_ENABLED"] == "0"


@pytest.mark.parametrize(
    "path",
    [
        "-toolexec=/tmp/evil",
        "../outside",
        "a/../../b",
        "/etc",
        "a b",
        "a\nb",
        "{output}",
        "example.org/$(id)",
        "./",
        "a//b",
    ],
)
def test_a_path_that_is_no_import_path_never_reaches_the_go_tool(tmp_path, path):
    with pytest.raises(SourceInvalid, match="not a Go import path"):
        plan(tmp_path, {"src/go.mod": MOD}, path)


@pytest.mark.parametrize("path", ["", ".", "./cmd/cc", "example.org/a-b.c/v2/cmd_x"])
def test_usual_paths_do(tmp_path, path):
    found = plan(tmp_path, {"src/go.mod": MOD}, path)
    assert found.steps[-1].argv[-1] == (path or ".")


def test_a_package_without_its_source_is_refused(tmp_path):
    with pytest.raises(SourceInvalid, match=r"neither src/go\.mod nor"):
        plan(tmp_path, {"src/other.txt": ""})


def test_a_linked_module_is_not_followed(tmp_path):
    make(tmp_path, {"outside/go.mod": MOD, "tree/src/main.go": MAIN})
    (tmp_path / "tree" / "src" / "go.mod").symlink_to("../../outside/go.mod")
    with pytest.raises(SourceInvalid):
        Golang().plan(tmp_path / "tree", "example.org/basic")


def test_a_hidden_directory_is_not_taken_for_the_one_without_its_dot(tmp_path):
    make(tmp_path, {"go.mod": MOD, ".hid/main.go": MAIN, "hid/main.go": MAIN})
    with pytest.raises(SourceInvalid, match=r"no main package in .*\.hid") as caught:
        Golang().select(tmp_path / ".hid")
    assert "hidden" in str(caught.value.hint)
