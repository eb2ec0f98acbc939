"""Which language a directory is of."""

import json

import pytest

from chaindock.errors import SourceInvalid, Unsupported
from chaindock.platforms.registry import PLATFORMS, platform_for, recognise
from support.trees import make

GO = {"go.mod": "module example.org/a\n\ngo 1.22\n", "main.go": "package main\n"}
GO_SHIM = GO | {
    "go.mod": "module a\nrequire github.com/hyperledger/fabric-chaincode-go/v2 v2.3.0\n"
}
NODE = {"package.json": "{}"}
NODE_SHIM = {"package.json": json.dumps({"dependencies": {"fabric-shim": "2.5.8"}})}
PYTHON = {"requirements.txt": "requests\n"}
PYTHON_SHIM = {"requirements.txt": "fabric-chaincode-python==2.5.4\n"}


@pytest.mark.parametrize(
    ("files", "name"),
    [
        (GO, "golang"),
        ({"main.go": "package main\n"}, "golang"),
        (NODE, "node"),
        ({"index.js": ""}, "node"),
        (NODE | {"tsconfig.json": "{}", "src/index.ts": ""}, "node"),
        (PYTHON, "python"),
        ({"pyproject.toml": ""}, "python"),
        ({"main.py": ""}, "python"),
        (GO_SHIM | NODE | PYTHON, "golang"),
        (GO | NODE_SHIM | PYTHON, "node"),
        (GO | NODE | PYTHON_SHIM, "python"),
        (
            NODE | {"pyproject.toml": 'dependencies = ["fabric_chaincode_python"]'},
            "python",
        ),
    ],
    ids=str,
)
def test_the_manifest_tells_the_language(tmp_path, files, name):
    assert recognise(make(tmp_path, files)).name == name


@pytest.mark.parametrize(
    "files", [GO | NODE, GO_SHIM | NODE_SHIM], ids=["none", "both"]
)
def test_when_it_stays_open_all_reasons_are_told(tmp_path, files):
    with pytest.raises(SourceInvalid) as caught:
        recognise(make(tmp_path, files))
    assert "golang: has go.mod" in caught.value.message
    assert "node: has package.json" in caught.value.message
    assert caught.value.languages == ["golang", "node"]


@pytest.mark.parametrize("text", [b"x" * 2**20 + b"x", b"\xff"], ids=["long", "bytes"])
def test_only_manifests_are_searched_for_a_shim(tmp_path, text):
    make(tmp_path, PYTHON_SHIM | {"main.py": ""})
    (tmp_path / "index.js").write_bytes(text)
    (tmp_path / "a.js").write_bytes(text)
    assert recognise(tmp_path).name == "python"
    assert not platform_for("node").names_shim(tmp_path)


def test_when_nothing_matches_it_is_said_what_was_looked_for(tmp_path):
    make(tmp_path, {"README.md": ""})
    with pytest.raises(SourceInvalid, match=r"go\.mod.*package\.json.*pyproject\.toml"):
        recognise(tmp_path)
    with pytest.raises(SourceInvalid) as caught:
        recognise(tmp_path)
    assert "index.js" not in caught.value.message
    with pytest.raises(SourceInvalid, match="not a directory"):
        recognise(tmp_path / "README.md")


@pytest.mark.parametrize("name", ["golang", "GOLANG", "Node", "python"])
def test_a_package_type_is_found_whatever_its_case(name):
    assert platform_for(name).name == name.lower()


@pytest.mark.parametrize("name", ["java", "ccaas", "k8s", "", "go"])
def test_an_unknown_package_type_names_the_known_ones(name):
    with pytest.raises(Unsupported, match="golang, node, python"):
        platform_for(name)


def test_destinations_in_images_are_fabrics():
    assert {one.name: one.image_output for one in PLATFORMS} == {
        "golang": "/usr/local/bin",
        "node": "/usr/local/src",
        "python": "/usr/local/src",
    }


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"pom.xml": ""}, "Java chaincode is not supported yet"),
        ({"build.gradle.kts": ""}, "Java chaincode is not supported yet"),
        ({"connection.json": "{}", "metadata.json": "{}"}, "chaincode as a service"),
    ],
)
def test_chaincode_that_nobody_builds_is_named_with_a_way_out(tmp_path, files, says):
    """Issue 9, 16."""
    with pytest.raises(Unsupported, match=says) as caught:
        recognise(make(tmp_path, files))
    assert "--dev" in (caught.value.hint or "")


def test_a_service_whose_source_is_there_is_built_from_it(tmp_path):
    assert recognise(make(tmp_path, GO | {"connection.json": "{}"})).name == "golang"


@pytest.mark.parametrize("kind", ["java", "ccaas", "external"])
def test_a_package_that_nobody_builds_gets_the_same_hint(kind):
    with pytest.raises(Unsupported, match="not supported") as caught:
        platform_for(kind)
    assert "--dev" in (caught.value.hint or "")
