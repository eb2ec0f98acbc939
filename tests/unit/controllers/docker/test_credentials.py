from __future__ import annotations

import base64
import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from chaindock.controllers.docker import endpoints
from chaindock.controllers.docker.endpoints import registry_auth

if TYPE_CHECKING:
    from pathlib import Path


def write(folder: Path, settings: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def basic(user: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


async def auth(image: str, folder: Path) -> dict[str, str] | None:
    files = [folder / "config.json", folder / "auth.json"]
    found = await registry_auth(image, files)
    return None if found is None else json.loads(base64.urlsafe_b64decode(found))


async def test_credentials_of_the_right_registry_are_used(tmp_path: Path):
    auths = {
        "reg.example": basic("u", "p:w"),
        "https://other.example/x": basic("o", ""),
    }
    write(tmp_path, {"auths": auths})
    assert await auth("reg.example/cc:1", tmp_path) == {
        "username": "u",
        "password": "p:w",
        "serveraddress": "reg.example",
    }
    assert (await auth("other.example/cc", tmp_path) or {})["username"] == "o"
    assert await auth("third.example/cc", tmp_path) is None
    assert await auth("golang:1.24", tmp_path) is None


async def test_the_default_registry_has_its_own_key(tmp_path: Path):
    write(tmp_path, {"auths": {"https://index.example/v1/": basic("u", "p")}})
    for image in ("golang:1.24", "docker.io/library/golang:1.24"):
        assert (await auth(image, tmp_path) or {})["username"] == "u"


async def test_logins_of_podman_are_used_too_and_the_closest_counts(tmp_path: Path):
    auths = {
        "reg.example": basic("all", "p"),
        "reg.example/team": basic("team", "p"),
        "docker.io": basic("hub", "p"),
    }
    (tmp_path / "auth.json").write_text(json.dumps({"auths": auths}))
    for image, user in (
        ("reg.example/team/cc:1", "team"),
        ("reg.example/teams/cc:1", "all"),
        ("golang:1.24", "hub"),
    ):
        assert (await auth(image, tmp_path) or {})["username"] == user
    write(tmp_path, {"auths": {"reg.example": basic("cli", "p")}})
    assert (await auth("reg.example/team/cc:1", tmp_path) or {})["username"] == "cli"


async def test_a_store_is_asked_for_registries_that_the_file_does_not_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    helper = tmp_path / "docker-credential-test"
    helper.write_text(
        '#!/bin/sh\nread key\nprintf \'{"Username": "u", "Secret": "%s"}\' "$key"\n'
    )
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.defpath}")
    write(tmp_path, {"credsStore": "test"})
    assert (await auth("reg.example/cc", tmp_path) or {})["password"] == "reg.example"


async def test_a_helper_program_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    helper = tmp_path / "docker-credential-test"
    helper.write_text(
        '#!/bin/sh\nread key\nprintf \'{"Username": "<token>", "Secret": "%s"}\' "$key"\n'
    )
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.defpath}")
    write(tmp_path, {"credHelpers": {"reg.example": "test"}})
    found = await auth("reg.example/cc", tmp_path)
    assert found == {"identitytoken": "reg.example", "serveraddress": "reg.example"}


async def test_a_helper_may_leave_a_daemon_with_its_errors_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    helper = tmp_path / "docker-credential-test"
    answer = '{"Username": "u", "Secret": "p"}'
    helper.write_text(f"#!/bin/sh\nsleep 5 >/dev/null &\necho '{answer}'\n")
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.defpath}")
    monkeypatch.setattr(endpoints, "HELPER_S", 3.0)
    write(tmp_path, {"credsStore": "test"})
    assert (await auth("reg.example/cc", tmp_path) or {})["password"] == "p"


@pytest.mark.parametrize("text", ["#!/bin/sh\nexit 1\n", "no program", "#!/none\n"])
async def test_a_helper_that_fails_leaves_the_pull_anonymous(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
):
    helper = tmp_path / "docker-credential-test"
    helper.write_text(text)
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.defpath}")
    write(tmp_path, {"credHelpers": {"reg.example": "test", "b.example": "missing"}})
    assert await auth("reg.example/cc", tmp_path) is None
    assert await auth("b.example/cc", tmp_path) is None


@pytest.mark.parametrize(
    "settings",
    [None, [], {"auths": {"reg.example": {}}}, {"credHelpers": ["reg.example"]}, "x"],
)
async def test_settings_that_say_nothing_are_no_error(tmp_path: Path, settings: Any):
    assert await auth("reg.example/cc", write(tmp_path, settings)) is None
    assert await registry_auth("reg.example/cc", []) is None
