"""Endorsement policy and collections on `deploy`, and where they are shown."""

import json

import pytest

COLLECTIONS = '[{"name":"c","policy":"OR(\'Org1MSP.member\')"}]'


def test_policy_and_collections_are_told_and_kept(run, node, source, tmp_path):
    file = tmp_path / "c.json"
    file.write_text(COLLECTIONS.replace("}", ', "memberOnlyReed": true}'))
    words = ["deploy", str(source), "--signature-policy", "OR('Org1MSP.peer')"]
    result = run(*words, "--collections-config", str(file))
    assert result.exit_code == 0
    assert "policy: OR('Org1MSP.peer')\n" in result.stderr
    assert "collections: c\n" in result.stderr
    assert "key 'memberOnlyReed' is unknown and has no effect" in result.stderr
    again = run("deploy", str(source))
    assert "policy: OR('Org1MSP.peer') (kept)\n" in again.stderr
    assert "collections: c (kept)\n" in again.stderr
    listed = run("ps")
    assert "basic: endorsement policy OR('Org1MSP.peer')\n" in listed.stderr
    assert "basic: collections c\n" in listed.stderr
    one = json.loads(run("ps", "--json").stdout)[0]
    assert (one["policy"], one["collections"]) == ("OR('Org1MSP.peer')", ["c"])


def test_the_channels_own_policy_is_not_told(run, node, source):
    assert "policy:" not in run("deploy", str(source)).stderr
    assert "policy OR" not in run("ps").stderr
    words = ["--channel-config-policy", "/Channel/Application/Admins"]
    result = run("deploy", str(source), *words)
    assert "policy: /Channel/Application/Admins\n" in result.stderr


def test_directory_and_program_exclude_each_other(run, node, source):
    result = run("deploy", str(source), "--dev", "mine")
    assert result.exit_code == 2
    assert "or --dev NAME; found both" in result.stderr
    assert "or --dev NAME; found none" in run("deploy").stderr


def test_dev_mode_takes_policy_and_collections_too(run, node, tmp_path):
    file = tmp_path / "c.json"
    file.write_text(COLLECTIONS)
    result = run("deploy", "--dev", "mine", "--collections-config", str(file))
    assert "collections: c\n" in result.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read: No such file or directory"),
        ("{", "is not JSON"),
        ('[{"name": "c"}]', "collection 'c', key 'policy': invalid policy string ''"),
        ("[1]", "item 1: expected an object, found 1"),
    ],
)
def test_a_collections_file_that_is_wrong_is_named(
    run, node, source, tmp_path, text, said
):
    file = tmp_path / "c.json"
    if text is not None:
        file.write_text(text)
    result = run("deploy", str(source), "--collections-config", str(file))
    assert result.exit_code == 5
    assert f"the collections file {str(file)!r}" in result.stderr
    assert said in result.stderr
    assert "packaged" not in result.stderr


def test_a_policy_that_is_none_is_refused(run, node, source):
    result = run("deploy", str(source), "--signature-policy", "nonsense")
    assert result.exit_code == 5
    assert "the endorsement policy: invalid policy string 'nonsense'" in result.stderr
    words = ["--signature-policy", "x", "--channel-config-policy", "y"]
    assert run("deploy", str(source), *words).exit_code == 2
