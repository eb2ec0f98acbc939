"""What a failed pull means, and where an image comes from then."""

from __future__ import annotations

import urllib.parse
from typing import TYPE_CHECKING, Any

import pytest

from chaindock.container.attempt import Attempt
from chaindock.controllers.docker.engine import Engine
from chaindock.controllers.docker.options import DockerOptions, EndpointOptions
from chaindock.controllers.docker.pulls import Puller, failure_of
from chaindock.errors import (
    EngineError,
    ImageNotFound,
    ImagePlatformMissing,
    RateLimited,
    RegistryDenied,
    RegistryUnavailable,
)
from chaindock.ids import Ccid
from support.fake_engine import fake_engine

if TYPE_CHECKING:
    from pathlib import Path

    from support.fake_engine import Request

CCID = Ccid("cc:1")
LIMIT = (
    "toomanyrequests: You have reached your pull rate limit. You may increase the limit "
    "by authenticating and upgrading"
)


@pytest.mark.parametrize(
    ("text", "kind", "transient"),
    [
        (LIMIT, RateLimited, True),
        ("received unexpected HTTP status: 429 Too Many Requests", RateLimited, True),
        ("manifest unknown", ImageNotFound, False),
        ("manifest for a/b:1 not found: manifest unknown: x", ImageNotFound, False),
        (
            "no matching manifest for linux/arm64/v8 in the manifest list entries",
            ImagePlatformMissing,
            False,
        ),
        ("unauthorized: authentication required", RegistryDenied, False),
        ("denied: requested access to the resource is denied", RegistryDenied, False),
        ("dial tcp 192.0.2.1:443: i/o timeout", RegistryUnavailable, True),
        ("lookup reg.example: no such host", RegistryUnavailable, True),
        (
            "net/http: request canceled (Client.Timeout exceeded)",
            RegistryUnavailable,
            True,
        ),
        ("unexpected status 503 Service Unavailable", RegistryUnavailable, True),
    ],
)
def test_each_failure_has_its_name(text: str, kind: type[Exception], transient: bool):
    found = failure_of(EngineError(f"pull a/b:1: {text}", status=500), "a/b:1")
    assert type(found) is kind
    assert found.transient is transient
    assert found.hint
    assert found.image == "a/b:1"
    assert text in found.message


def test_what_nobody_knows_stays_as_it_is():
    assert failure_of(EngineError("the moon is full"), "a") is None


def test_a_full_disk_of_the_engine_can_pass():
    said = "pull a: write /var/lib/x: no space left on device"
    found = failure_of(EngineError(said, status=500), "a")
    assert type(found) is EngineError
    assert found.transient
    assert (found.image, found.status) == ("a", 500)
    assert "make room" in (found.hint or "")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("toomanyrequests: retry-after: 30s", 30),
        ("toomanyrequests: limit, try again in 6 hours", 6 * 3600),
        (LIMIT, None),
    ],
)
def test_when_a_limit_ends_is_told_where_the_registry_says_it(
    text: str, seconds: int | None
):
    found = failure_of(EngineError(text), "a")
    assert found is not None
    assert found.retry_after_s == seconds
    if seconds:
        assert str(seconds) in (found.hint or "")


async def pull(
    folder: Path, image: str, has: str, *mirrors: str
) -> tuple[list[str], Any]:
    """Pull from an engine that can fetch only `has`; return what it was asked, and how."""
    asked: list[str] = []

    async def create(request: Request) -> None:
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(request.path).query)
        asked.append(query["fromImage"][0])
        if asked[-1] == has:
            await request.stream(b'{"status": "Pull complete", "id": "a"}\n')
        else:
            await request.json({"message": LIMIT}, 500)

    async def tag(request: Request) -> None:
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(request.path).query)
        asked.append(f"tag {query['repo'][0]} {query['tag'][0]}")
        await request.json({}, 201)

    socket, error = folder / "s", None
    async with fake_engine(socket, {"POST create": create, "POST tag": tag}):
        engine = await Engine.connect(EndpointOptions(docker_host=f"unix://{socket}"))
        try:
            await Puller(engine, DockerOptions(mirrors=mirrors)).pull(
                image, Attempt(CCID)
            )
        except EngineError as caught:
            error = caught
        await engine.aclose()
    return asked, error


async def test_a_mirror_takes_over_and_the_image_has_the_name_that_was_asked_for(
    tmp_path: Path,
):
    has = "two.example/m/library/golang:1.24"
    asked, error = await pull(
        tmp_path, "golang:1.24", has, "one.example", "two.example/m/"
    )
    assert error is None
    assert asked == [
        "golang:1.24",
        "one.example/library/golang:1.24",
        has,
        "tag golang 1.24",
    ]


async def test_without_any_mirror_that_has_it_the_first_reason_counts(tmp_path: Path):
    asked, error = await pull(tmp_path, "a/b", "", "one.example")
    assert asked == ["a/b:latest", "one.example/a/b:latest"]
    assert isinstance(error, RateLimited)
    assert "a/b:latest" in error.message
    assert "one.example" not in error.message


@pytest.mark.parametrize("image", ["reg.example/a:1", "a@sha256:" + "0" * 64])
async def test_mirrors_are_for_tags_of_the_default_registry(tmp_path: Path, image: str):
    asked, error = await pull(tmp_path, image, "", "one.example")
    assert asked == [image]
    assert isinstance(error, RateLimited)
