"""Settings of one chaincode: found by name, read anew, refused with their line."""

import os
from pathlib import Path

import pytest
import structlog

from chaindock.config.chaincodes import ChaincodeSections
from chaindock.config.load import load
from chaindock.container.contracts import RunSettings
from chaindock.errors import ConfigInvalid
from chaindock.ids import Ccid

CCID = Ccid("parcels_1.0:" + "0" * 64)
ALL = """\
chaindock:
  chaincodes:
    parcels:
      memory: 64m
      cpus: 0.5
      pids: 50
      tmp: 8m
      openFiles: 900
      fileSize: 3m
      env:
        TOKEN: hunter2
        EMPTY:
      network: shared
      extraHosts: [db:10.0.0.7]
      user: 600:600
      executeTimeout: 2m
"""


def write(home: Path, text: str) -> Path:
    path = home / "core.yaml"
    path.write_text(text)
    path.chmod(0o600)
    return path


def sections(home: Path, text: str) -> ChaincodeSections:
    write(home, text)
    return load(home, env={}).chaincodes


def one(home: Path, body: str) -> ChaincodeSections:
    return sections(home, f"chaindock: {{chaincodes: {{parcels: {{{body}}}}}}}\n")


def test_everything_that_can_be_set_arrives(tmp_path):
    own = sections(tmp_path, ALL).of(CCID, ["parcels"])
    assert own.run == RunSettings(
        memory_bytes=64 * 1024**2,
        cpus=0.5,
        pids=50,
        tmp_bytes=8 * 1024**2,
        open_files=900,
        file_bytes=3 * 1024**2,
        env={"TOKEN": "hunter2", "EMPTY": ""},
        network="shared",
        extra_hosts=("db:10.0.0.7",),
        user="600:600",
    )
    assert own.execute_timeout_s == 120


def test_the_timeout_is_known_by_name_after_the_launch(tmp_path):
    found = sections(tmp_path, ALL)
    assert found.timeout_of("parcels") == 120
    assert found.timeout_of("other") is None
    found.of(CCID, ["renamed"])  # found by its label
    assert found.timeout_of("renamed") == 120


def test_the_name_counts_before_the_label(tmp_path):
    both = "chaindock: {chaincodes: {parcels_1.0: {pids: 1}, shop: {pids: 2}}}\n"
    found = sections(tmp_path, both)
    assert found.of(CCID, ["shop"]).run.pids == 2
    assert found.of(CCID, ["elsewhere"]).run.pids == 1
    assert found.of(Ccid("other:" + "0" * 64), ["elsewhere"]).run == RunSettings()


def test_two_names_of_one_package_must_agree(tmp_path):
    found = sections(
        tmp_path, "chaindock: {chaincodes: {a: {pids: 1}, b: {pids: 2}}}\n"
    )
    with pytest.raises(ConfigInvalid, match="sections of a and b"):
        found.of(CCID, ["a", "b"])


def test_a_changed_file_counts_from_then_on(tmp_path):
    found = one(tmp_path, "pids: 1")
    assert found.of(CCID, ["parcels"]).run.pids == 1
    path = write(tmp_path, "chaindock: {chaincodes: {parcels: {pids: 12}}}\n")
    os.utime(path, ns=(1, 1))
    assert found.of(CCID, ["parcels"]).run.pids == 12
    path.unlink()
    assert found.of(CCID, ["parcels"]).run == RunSettings()


def test_a_typo_in_one_section_affects_no_other_contract(tmp_path):
    """Other contracts are launched with their settings, as if the typo were not there."""
    found = sections(
        tmp_path, "chaindock: {chaincodes: {parcels: {pids: 1}, shop: {pids: 2}}}\n"
    )
    shop = Ccid("shop:" + "1" * 64)
    path = write(
        tmp_path,
        "chaindock:\n  chaincodes:\n    parcels:\n      pds: 5\n"
        "    shop:\n      pids: 33\n",
    )
    assert found.of(shop, ["shop"]).run.pids == 33
    assert found.problem_of(shop, ["shop"]) is None
    assert found.of(CCID, ["parcels"]).run.pids == 1
    problem = found.problem_of(CCID, ["parcels"])
    assert problem is not None
    assert f"{path}:4" in problem.message
    assert problem.hint == "did you mean 'pids'?"
    assert found.problems() == [problem]


def test_a_section_that_became_wrong_is_logged_once(tmp_path):
    found = one(tmp_path, "pids: 1")
    write(tmp_path, "chaindock: {chaincodes: {parcels: {pds: 5}}}\n")
    with structlog.testing.capture_logs() as logged:
        for _ in range(3):
            found.of(CCID, ["parcels"])
    (entry,) = logged
    assert entry["event"] == "settings ignored"
    assert "pds" in entry["problem"]


def test_a_section_counts_again_once_it_is_corrected(tmp_path):
    found = one(tmp_path, "pids: 1")
    write(tmp_path, "chaindock: {chaincodes: {parcels: {pds: 5}}}\n")
    assert found.of(CCID, ["parcels"]).run.pids == 1
    write(tmp_path, "chaindock: {chaincodes: {parcels: {pids: 55}}}\n")
    assert found.problem_of(CCID, ["parcels"]) is None
    assert found.of(CCID, ["parcels"]).run.pids == 55


def test_a_section_that_was_never_correct_keeps_its_own_contract_from_starting(
    tmp_path,
):
    found = one(tmp_path, "memry: 1g")
    with pytest.raises(ConfigInvalid, match="memry"):
        found.of(CCID, ["parcels"])
    assert found.of(Ccid("shop:" + "1" * 64), ["shop"]).run == RunSettings()


def test_a_contract_that_ran_without_a_section_is_restarted_despite_a_typo(tmp_path):
    found = sections(tmp_path, "chaindock: {chaincodes: {shop: {pids: 2}}}\n")
    assert found.of(CCID, ["parcels"]).run == RunSettings()
    write(tmp_path, "chaindock: {chaincodes: {parcels: {memry: 1g}}}\n")
    assert found.of(CCID, ["parcels"]).run == RunSettings()
    assert "memry" in str(found.problem_of(CCID, ["parcels"]))


@pytest.mark.parametrize("text", ["a: [", "chaindock: {chaincodes: 5}\n"])
def test_a_file_that_became_unreadable_leaves_all_settings_as_they_were(tmp_path, text):
    found = one(tmp_path, "pids: 1")
    write(tmp_path, text)
    assert found.of(CCID, ["parcels"]).run.pids == 1
    assert str(tmp_path) in str(found.problem_of(CCID, ["parcels"]))
    assert found.problem_of(Ccid("shop:" + "1" * 64), ["shop"]) is None
    assert len(found.problems()) == 1


def test_a_wrong_section_is_shown_as_not_used(tmp_path):
    path = write(tmp_path, "chaindock: {chaincodes: {parcels: {memry: 1g}}}\n")
    row = next(s for s in load(tmp_path, env={}).settings if "parcels" in s.key)
    assert (row.value, row.origin) == ("not used", f"{path}:1")
    assert "memry" in row.help


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("memory: 1m", "6m or more"),
        ("memory: lots", "a size"),
        ("cpus: -1", "a number, 0 or more"),
        ("pids: 1.5", "a whole number"),
        ("tmp: 0", "a size above 0"),
        ("network: host", "not host or none"),
        ("network: 'a b'", "the name of a network"),
        ("extraHosts: [db]", "host:IP"),
        ("user: root", "uid:gid"),
        ("executeTimeout: 30", "with its unit"),
        ("executeTimeout: -3s", "0 or more"),
        ("executeTimeout: 0s", "1s or more"),
        ("env: {CORE_PEER_ADDRESS: x}", "CORE_*"),
        ("env: {CHAINCODE_ID: x}", "CHAINCODE_*"),
        ("env: {CHAINDOCK_NODE: x}", "CHAINDOCK_*"),
        ("env: {'a b': x}", "letters, digits and _"),
        ("env: justtext", "KEY=VALUE"),
        ("pid: 4", "unknown setting"),
    ],
)
def test_wrong_values_say_where_and_what_was_expected(tmp_path, body, expected):
    with pytest.raises(ConfigInvalid) as caught:
        one(tmp_path, body).of(CCID, ["parcels"])
    told = f"{caught.value.message} {caught.value.hint}"
    assert expected in told
    assert f"{tmp_path / 'core.yaml'}:1" in told


@pytest.mark.parametrize("text", ["chaincodes: 5", "chaincodes: {parcels: 5}"])
def test_what_is_no_section_is_refused(tmp_path, text):
    with pytest.raises(ConfigInvalid, match="no section"):
        sections(tmp_path, f"chaindock: {{{text}}}\n").of(CCID, ["parcels"])


def test_an_empty_section_sets_nothing(tmp_path):
    found = sections(tmp_path, "chaindock:\n  chaincodes:\n    parcels:\n")
    assert found.of(CCID, ["parcels"]).run == RunSettings()


def test_values_of_variables_are_shown_nowhere(tmp_path):
    write(tmp_path, ALL)
    config = load(tmp_path, env={})
    assert "hunter2" not in f"{config} {config.chaincodes.of(CCID, ['parcels'])}"
    row = next(one for one in config.settings if one.key.endswith("env.TOKEN"))
    assert (row.value, row.origin) == ("[secret]", f"{tmp_path / 'core.yaml'}:11")
    write(tmp_path, "chaindock: {chaincodes: {a: {env: {CORE_X: hunter2}}}}\n")
    (problem,) = load(tmp_path, env={}).chaincodes.problems()
    assert "hunter2" not in f"{problem.as_dict()}"


def test_a_file_with_variables_that_others_may_read_is_a_warning(tmp_path):
    path = write(tmp_path, ALL)
    assert load(tmp_path, env={}).warnings == ()
    path.chmod(0o644)
    assert "chmod 600" in load(tmp_path, env={}).warnings[0]


def test_the_command_line_sets_limits_and_refuses_variables(tmp_path):
    write(tmp_path, ALL)
    flags = {"chaindock.chaincodes.parcels.memory": "128m"}
    config = load(tmp_path, flags, env={})
    own = config.chaincodes.of(CCID, ["parcels"])
    assert own.run.memory_bytes == 128 * 1024**2
    row = next(one for one in config.settings if one.key.endswith("parcels.memory"))
    assert row.origin == "flag"
    for key in ("env", "env.TOKEN"):
        with pytest.raises(ConfigInvalid, match="command line") as caught:
            load(tmp_path, {f"chaindock.chaincodes.parcels.{key}": "A=hunter2"}, env={})
        assert "hunter2" not in caught.value.message


def test_a_variable_of_the_environment_is_no_place_for_them(tmp_path):
    env = {"CORE_CHAINDOCK_CHAINCODES_PARCELS_MEMORY": "1g"}
    with pytest.raises(ConfigInvalid) as caught:
        load(tmp_path, env=env)
    assert "core.yaml" in str(caught.value.hint)


@pytest.mark.parametrize(
    "value",
    [
        *("'sesame", '"sesame', "@sesame", "*sesame", "!sesame!x y", "[sesame"),
        *("%sesame: -", "sesame: sesame", "\tsesame: x", '"\\sesame"', "|sesame"),
        "[&sesame a, *sesam]",
    ],
)
def test_a_file_that_is_no_yaml_tells_where_and_not_what(tmp_path, value):
    """The line that is wrong may be that of a variable."""
    text = "chaindock:\n  chaincodes:\n    parcels:\n      env:\n        TOKEN: "
    with pytest.raises(ConfigInvalid) as caught:
        sections(tmp_path, f"{text}{value}\n").of(CCID, ["parcels"])
    assert "esam" not in str(caught.value.as_dict())
    assert "line " in caught.value.message
