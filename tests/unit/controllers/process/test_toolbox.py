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
        assert await tools.version("tool", "x") == "v1 --version"
    assert asked.read_text() == "x\n"
    program(tmp_path, "echo v2")
    os.utime(path, (1, 1))
    assert await tools.version("tool", "x") == "v2"


async def test_go_is_asked_in_its_own_way(tmp_path: Path):
    program(tmp_path, "echo $1", name="go")
    assert await toolbox(tmp_path).version("go", "golang") == "version"


@pytest.mark.parametrize("content", [b"\0\0garbage", b"#!/bin/sh\nexit 2\n"])
async def test_a_program_that_tells_no_version_is_known_by_its_file(
    tmp_path: Path, content: bytes
):
    path = tmp_path / "tool"
    path.write_bytes(content)
    path.chmod(0o755)
    before = await toolbox(tmp_path).identify(["tool"], "x")
    assert await toolbox(tmp_path).identify(["tool"], "x") == before
    os.utime(path, (1, 1))
    assert await toolbox(tmp_path).identify(["tool"], "x") != before


async def test_a_program_need_not_be_run_to_be_known(tmp_path: Path):
    """`npm --version` alone takes half a second."""
    asked, path = tmp_path / "asked", tmp_path / "tool"
    # "sh" in the name of a folder makes no shell of what is in it.
    (tmp_path / "fresh").mkdir()
    python = tmp_path / "fresh" / "python3"
    python.symlink_to(sys.executable)
    path.write_text(f"#!{python}\nopen({str(asked)!r}, 'a').write('x')\n")
    path.chmod(0o755)
    await toolbox(tmp_path).identify(["tool"], "x")
    assert not asked.exists()


@pytest.mark.parametrize("shell", ["/bin/sh", "/usr/bin/env bash", "/bin/bash -e"])
async def test_a_version_manager_is_asked_what_it_would_run(tmp_path: Path, shell: str):
    path, answer = program(tmp_path, ""), tmp_path / "answer"
    path.write_text(f"#!{shell}\ncat {answer}")
    found = []
    for version in ("v1", "v2", "v2"):
        answer.write_text(version)
        found.append(await toolbox(tmp_path).identify(["tool"], "x"))
    assert found[0] != found[1] == found[2]
