"""Programs are found on the configured path, and asked for their version once."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

from chaindock.errors import ToolMissing
from chaindock.processes.toolbox import Toolbox

if TYPE_CHECKING:
    from pathlib import Path


def program(folder: Path, text: str, name: str = "tool") -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def toolbox(folder: Path) -> Toolbox:
    return Toolbox(str(folder), {"PATH": "/usr/bin:/bin"})


def test_a_missing_tool_says_for_what_and_what_to_install(tmp_path: Path):
    with pytest.raises(ToolMissing, match="'go', which golang chaincode") as caught:
        toolbox(tmp_path).find("go", "golang")
    assert caught.value.tool == "go"
    assert "install Go" in str(caught.value.hint)


async def test_a_program_is_asked_once_until_it_changes(tmp_path: Path):
    asked = tmp_path / "asked"
    path = program(tmp_path, f"echo x >> {asked}; echo v1 $1")
    tools = toolbox(tmp_path)
    for _ in range(3):
        assert await tools.versions(["tool"], "x") == {"tool": "v1 --version"}
    assert asked.read_text() == "x\n"
    program(tmp_path, "echo v2")
    os.utime(path, (1, 1))
    assert await tools.versions(["tool"], "x") == {"tool": "v2"}


async def test_go_is_asked_in_its_own_way(tmp_path: Path):
    program(tmp_path, "echo $1", name="go")
    assert await toolbox(tmp_path).versions(["go"], "golang") == {"go": "version"}


async def test_a_program_without_a_version_is_known_by_its_file(tmp_path: Path):
    path = program(tmp_path, "exit 2")
    before = await toolbox(tmp_path).versions(["tool"], "x")
    os.utime(path, (1, 1))
    assert await toolbox(tmp_path).versions(["tool"], "x") != before


async def test_a_program_that_cannot_run_is_known_by_its_file(tmp_path: Path):
    (tmp_path / "tool").write_bytes(b"\0\0garbage")
    (tmp_path / "tool").chmod(0o755)
    assert "tool" in (await toolbox(tmp_path).versions(["tool"], "x"))["tool"]


async def test_the_answer_outlives_the_node(tmp_path: Path):
    asked, memory = tmp_path / "asked", tmp_path / "tools.json"
    path = program(tmp_path, "", name="tool")
    # "sh" in the name of a folder makes no shell of what is in it.
    (tmp_path / "fresh").mkdir()
    python = tmp_path / "fresh" / "python3"
    python.symlink_to(sys.executable)
    path.write_text(f"#!{python}\nopen({str(asked)!r}, 'a').write('x')\nprint('v1')")
    for _ in range(2):
        tools = Toolbox(str(tmp_path), {}, memory)
        assert await tools.versions(["tool"], "x") == {"tool": "v1"}
    assert asked.read_text() == "x"


@pytest.mark.parametrize("shell", ["/bin/sh", "/usr/bin/env bash", "/bin/bash -e"])
async def test_the_answer_of_a_shell_script_does_not(tmp_path: Path, shell: str):
    asked, memory = tmp_path / "asked", tmp_path / "tools.json"
    path = program(tmp_path, "")
    path.write_text(f"#!{shell}\necho x >> {asked}; echo v1")
    for _ in range(2):
        await Toolbox(str(tmp_path), {"PATH": "/bin"}, memory).versions(["tool"], "x")
    assert asked.read_text() == "x\nx\n"


@pytest.mark.parametrize("text", ["", "{", "[1]"])
async def test_a_damaged_memory_is_as_none(tmp_path: Path, text: str):
    (tmp_path / "tools.json").write_text(text)
    program(tmp_path, "echo v1")
    tools = Toolbox(str(tmp_path), {}, tmp_path / "tools.json")
    assert await tools.versions(["tool"], "x") == {"tool": "v1"}


async def test_answers_that_cannot_be_kept_are_asked_for_again(tmp_path: Path):
    real = tmp_path / "tool"
    real.symlink_to(sys.executable)
    memory = tmp_path / "no such folder" / "tools.json"
    for _ in range(2):
        tools = Toolbox(str(tmp_path), {"PATH": "/usr/bin:/bin"}, memory)
        assert "Python" in (await tools.versions(["tool"], "x"))["tool"]
