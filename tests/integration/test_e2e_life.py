"""The life of a chaincode: logs, stop and start, upgrade, names, package files."""

from __future__ import annotations

import hashlib
import json
import shutil
from typing import TYPE_CHECKING

import pytest

from support.nodes.node import FIXTURES, Node, eventually

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.slow,
    pytest.mark.nodejs,
    pytest.mark.network,
    pytest.mark.timeout(600),
]
CHATTY = FIXTURES / "hostile" / "prints-a-lot"
SHIM = FIXTURES / "foreign" / "node-shim"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of a contract that a test may edit."""
    return shutil.copytree(SHIM, tmp_path / "notes")


def edit(source: Path, before: str, after: str) -> None:
    file = source / "chaincode.js"
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after))


# --- upgrades -------------------------------------------------------------------------


def test_an_edited_source_is_an_upgrade_that_keeps_the_state(node: Node, source: Path):
    name = "edited"
    first = node.ask("deploy", source, "--name", name)
    node.invoke(name, "put", "n1", "kept")
    old = node.where(name)

    edit(source, "does not exist", "is not in our books")
    second = node.ask("deploy", source, "--name", name)
    assert (first["sequence"], second["sequence"]) == (1, 2)
    assert (first["version"], second["version"]) == ("1.0", "2.0")
    assert first["package_id"] != second["package_id"]
    assert node.query(name, "get", "n1") == b"kept"
    refused = node.invoke(name, "get", "n2", code=1)
    assert refused["message"] == "note n2 is not in our books"

    eventually(lambda: not node.runs(old), "the old instance is gone")
    line = node.ps(name)
    assert line is not None
    assert (line["sequence"], line["package_id"]) == (2, second["package_id"])
    assert first["package_id"] not in node.remains.runs()


def test_the_same_source_again_changes_nothing(node: Node, source: Path):
    name = "same"
    first = node.ask("deploy", source, "--name", name)
    place, height = node.where(name), node.ask("status")["height"]
    again = node.ask("deploy", source, "--name", name)
    assert (first["changed"], again["changed"]) == (True, False)
    assert (again["sequence"], again["package_id"]) == (1, first["package_id"])
    assert node.where(name) == place
    assert node.ask("status")["height"] == height


def test_after_a_failed_upgrade_the_old_version_serves(node: Node, source: Path):
    name = "unbroken"
    node.ask("deploy", source, "--name", name)
    node.invoke(name, "put", "n1", "kept")
    before, place = node.ps(name), node.where(name)
    file = source / "chaincode.js"
    file.write_text(f"{file.read_text()}\nthis is no JavaScript\n")
    told = node.ask("deploy", source, "--name", name, code=4)
    assert told["error"] == "exited-early"
    assert "SyntaxError" in "\n".join(told["facts"]["output"])
    assert node.ps(name) == before
    assert node.where(name) == place
    assert node.query(name, "get", "n1") == b"kept"
    running = [one["package_id"] for one in node.ask("ps")]
    eventually(lambda: node.remains.beside(running) == [], "nothing of it is left")
    said = node.cli("logs", told["facts"]["ccid"]).out
    assert b"SyntaxError" in said
    assert b"SyntaxError" not in node.cli("logs", name).out


# --- names and packages ---------------------------------------------------------------


def test_a_package_file_deploys_and_its_id_is_its_hash(node: Node, tmp_path: Path):
    file, again = tmp_path / "notes.tar.gz", tmp_path / "again.tar.gz"
    node.cli("package", SHIM, "-o", file, "--label", "notes_1.0")
    node.cli("package", SHIM, "-o", again, "--label", "notes_1.0")
    assert file.read_bytes() == again.read_bytes()
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    told = node.cli("package-id", file).out.decode()
    assert told == f"notes_1.0:{digest}\n"
    assert node.ask("inspect", file)["id"] == told.strip()
    done = node.ask("deploy", file)
    assert (done["name"], done["package_id"]) == ("notes", told.strip())
    node.invoke("notes", "put", "n1", "from a file")
    assert node.query("notes", "get", "n1") == b"from a file"


def test_two_names_share_a_package_and_nothing_else(node: Node, tmp_path: Path):
    file = tmp_path / "twins.tar.gz"
    node.cli("package", SHIM, "-o", file, "--label", "twins_1.0")
    ids = [node.ask("deploy", file, "--name", name)["package_id"] for name in "ab"]
    assert ids[0] == ids[1]
    assert node.where("a") == node.where("b")
    node.invoke("a", "put", "n1", "of a")
    refused = node.invoke("b", "get", "n1", code=1)
    assert refused["message"] == "note n1 does not exist"
    node.cli("stop", "a")
    assert node.invoke("b", "put", "n1", "of b")["code"] == 0
    node.cli("rm", "a")
    assert node.query("b", "get", "n1") == b"of b"
    node.cli("rm", "b")
    assert ids[0] not in node.remains.runs()


# --- stop, start, rm ------------------------------------------------------------------


def test_a_stopped_chaincode_comes_up_when_it_is_started(node: Node):
    name, place = "stopped", ""
    node.deploy(SHIM, name)
    node.invoke(name, "put", "n1", "kept")
    place = node.where(name)
    node.cli("stop", name)
    assert not node.runs(place)
    line = node.ps(name)
    assert line is not None
    assert line["state"] == "stopped"
    refused = node.cli("query", name, "get", "n1", code=None)
    assert refused.code != 0
    assert refused.out == b""
    assert f"chaindock start {name}" in refused.err
    node.cli("stop", name)

    done = node.ask("start", name)
    assert (done["name"], done["sequence"]) == (name, 1)
    assert node.query(name, "get", "n1") == b"kept"
    assert node.where(name) != place


def test_a_removed_chaincode_is_forgotten_and_its_state_is_not(node: Node):
    name = "removed"
    first = node.ask("deploy", SHIM, "--name", name)
    node.invoke(name, "put", "n1", "kept")
    place = node.where(name)
    node.cli("rm", name)
    assert not node.runs(place)
    assert node.ps(name) is None
    for words in (("query", name, "get", "n1"), ("stop", name), ("logs", name)):
        assert "removed" in node.cli(*words, code=5).err
    again = node.ask("deploy", SHIM, "--name", name)
    assert again["sequence"] == first["sequence"] + 1
    assert node.query(name, "get", "n1") == b"kept"


# --- logs -----------------------------------------------------------------------------


def test_logs_show_the_build_and_the_run(node: Node):
    name = "chatty"
    node.deploy(CHATTY, name)
    node.query(name, "lines", "4")

    def lines() -> list[dict[str, str]]:
        out = node.cli("--json", "logs", name).out.decode().splitlines()
        return [json.loads(line) for line in out]

    def written() -> list[tuple[str, str]]:
        found = [(one["stream"], one["line"]) for one in lines()]
        return found if ("stderr", "line 4 of 4") in found else []

    found = eventually(written, "the lines are there")
    assert ("stdout", "line 1 of 4") in found
    assert ("stdout", "line 3 of 4") in found
    assert all(one["time"].endswith("Z") for one in lines())
    plain = node.cli("logs", name).out.decode().splitlines()
    assert plain == [one["line"] for one in lines()]


def test_logs_follow_into_the_next_run(node: Node):
    name = "followed"
    node.deploy(CHATTY, name)
    child = node.spawn("logs", "-f", name)
    assert child.stdout is not None
    try:
        node.query(name, "lines", "2")
        seen = set()
        for line in child.stdout:
            seen.add(line.strip())
            if {"line 1 of 2", "line 2 of 2"} <= seen:
                break
        node.cli("stop", name)
        node.cli("start", name)
        node.query(name, "lines", "1")
        assert "line 1 of 1" in (line.strip() for line in child.stdout)
    finally:
        child.terminate()
        child.stdout.close()
        child.wait(20)


def test_previous_logs_are_those_of_the_run_before(node: Node):
    name = "relaunched"
    node.deploy(CHATTY, name)
    assert node.cli("logs", name, "--previous").out == b""
    node.query(name, "lines", "7")
    eventually(lambda: b"line 7 of 7" in node.cli("logs", name).out, "it is written")
    node.cli("stop", name)
    node.cli("start", name)
    assert b"line 7 of 7\n" in node.cli("logs", name, "--previous").out
    assert b"line 7 of 7\n" not in node.cli("logs", name).out
