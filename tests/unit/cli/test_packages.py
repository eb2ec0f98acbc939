"""`package`, `inspect`, `package-id`, `config show`."""

import hashlib
import json
import os

import pytest


def test_package_prints_the_id_that_the_file_has(run, source, tmp_path):
    file = tmp_path / "out.tar.gz"
    made = run("package", str(source), "-o", str(file), "--label", "a_1")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert made.stdout == f"a_1:{digest}\n"
    assert run("package-id", str(file)).stdout == made.stdout
    assert json.loads(run("package-id", str(file), "--json").stdout) == {
        "id": f"a_1:{digest}"
    }


def test_package_of_the_same_source_is_the_same_file(run, source, tmp_path):
    first, second = tmp_path / "1", tmp_path / "2"
    run("package", str(source), "-o", str(first))
    os.utime(source / "main.py", (1, 1))
    (source / "main.py").chmod(0o755)
    run("package", str(source), "-o", str(second))
    assert first.read_bytes() == second.read_bytes()


def test_failed_package_leaves_no_file(run, tmp_path):
    (tmp_path / "empty").mkdir()
    result = run("package", str(tmp_path / "empty"), "-o", str(tmp_path / "out"))
    assert result.exit_code == 5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "home"]


def test_package_keeps_an_earlier_file_when_it_fails(run, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "out").write_text("precious")
    run("package", str(tmp_path / "empty"), "-o", str(tmp_path / "out"))
    assert (tmp_path / "out").read_text() == "precious"


def test_place_that_cannot_be_written_is_told(run, source, tmp_path):
    result = run("package", str(source), "-o", str(tmp_path / "no" / "out"))
    assert result.exit_code == 5
    assert "cannot be written: No such file or directory" in result.stderr


def test_inspect_shows_what_is_inside(run, source, tmp_path):
    file = tmp_path / "out.tar.gz"
    made = run("package", str(source), "-o", str(file), "--label", "a_1")
    text = run("inspect", str(file)).stdout
    assert f"id     {made.stdout}" in text
    assert "type   python\n" in text
    assert "  src/main.py\n" in text
    body = json.loads(run("inspect", str(file), "--json").stdout)
    assert body["label"] == "a_1"
    assert {one["name"] for one in body["files"]} == {
        "src/main.py",
        "src/requirements.txt",
    }


@pytest.mark.parametrize("content", [b"", b"hello", b"\x1f\x8b" + b"x" * 100])
def test_other_files_are_refused(run, tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    for command in ("inspect", "package-id"):
        result = run(command, str(tmp_path / "file"))
        assert result.exit_code == 5
        assert f"error: '{tmp_path / 'file'}' is no package: " in result.stderr
        assert "chaindock package DIR" in result.stderr
    assert run("inspect", str(tmp_path / "gone")).exit_code == 5


def test_config_show_has_values_and_origins(run, home):
    (home / "core.yaml").write_text("peer:\n  id: p9\n  gossip: {a: 1}\n")
    result = run("config", "show", "--changed", env={"GOPROXY": "http://u:pw@m"})
    assert result.exit_code == 0
    assert f"peer.id                    {home}/core.yaml:2  p9\n" in result.stdout
    assert "peer.gossip.a" in result.stdout
    assert "pw" not in result.stdout

    body = json.loads(
        run("config", "show", "--json", env={"GOPROXY": "http://u:pw@m"}).stdout
    )
    found = {one["key"]: one for one in body["settings"]}
    assert found["peer.id"]["value"] == "p9"
    assert found["chaincode.executetimeout"]["origin"] == "default"
    assert body["build_variables"]["GOPROXY"] == "http://[secret]@m"
    assert body["ignored"][0]["key"] == "peer.gossip.a"


def test_config_show_tells_what_is_wrong(run, home):
    (home / "core.yaml").write_text("chaindock:\n  backen: docker\n")
    result = run("config", "show")
    assert result.exit_code == 5
    assert "hint: did you mean 'chaindock.backend'?" in result.stderr


def test_inspect_of_a_large_package_is_cut_and_says_so(run, source, tmp_path):
    for number in range(50):
        (source / f"m{number}.py").write_text("")
    file = tmp_path / "out"
    run("package", str(source), "-o", str(file), "--json")
    text = run("inspect", str(file)).stdout
    assert "files  52\n" in text
    assert "and 12 more (--json)" in text


def test_config_show_explains_on_demand(run):
    text = run("config", "show", "-v").stdout
    assert (
        "Longest time of a build; time spent fetching packages is not counted.\n"
        "chaincode.installTimeout  default  10m\n" in text
    )


def test_packages_of_the_node_are_listed_and_removed(run, node):
    user = {"channel": "mychannel", "name": "basic", "version": "1.0"}
    users = [user, user | {"channel": "other"}]
    one, two = "one_1:" + "a" * 64, "basic_1:" + "b" * 64
    node.packages.known = {one: [], two: users}
    lines = run("packages", "ls").stdout.splitlines()
    assert [line.split(maxsplit=2) for line in lines[1:]] == [
        [one, "deploy", "-"],
        [two, "deploy", "basic on mychannel, basic on other"],
    ]
    node.packages.by = ["Org1MSP", "Org2MSP"]
    assert "Org1MSP, Org2MSP" in run("packages", "ls").stdout
    found = json.loads(run("packages", "ls", "--json").stdout)
    assert found[1] == {
        "package_id": two, "installed_by": ["Org1MSP", "Org2MSP"], "chaincodes": users
    }  # fmt: skip
    assert run("packages", "rm", "one_1:a").stdout == f"removed {one}\n"
    missing = run("packages", "rm", "one_1:a")
    assert missing.exit_code != 0
    assert "is not installed" in missing.stderr
    assert list(node.packages.known) == [two]
