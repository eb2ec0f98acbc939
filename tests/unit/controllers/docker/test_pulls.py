"""What a failed pull means, and where an image comes from then."""

from __future__ import annotations

import urllib.parse
from typing import TYPE_CHECKING

import pytest

from chaindock.container.attempt import Attempt
from chaindock.controllers.docker.engine import Engine
from chaindock.controllers.docker.images import (
    BaseImage,
    BaseImages,
    failure_of,
    places,
)
from chaindock.controllers.docker.options import DockerOptions, EndpointOptions, Mirror
from chaindock.errors import (
    EngineError,
    ImageNotFound,
    ImagePlatformMissing,
    RateLimited,
    RegistryDenied,
    RegistryUnavailable,
)
from chaindock.ids import Ccid
from chaindock.platforms.base import LanguageImages
from support.doubles.fake_engine import fake_engine

if TYPE_CHECKING:
    from pathlib import Path

    from chaindock.platforms.base import Pull
    from support.doubles.fake_engine import Request

CCID = Ccid("cc:1")
LIMIT = (
    "toomanyrequests: You have reached your pull rate limit. You may increase the limit "
    "by authenticating and upgrading"
)


@pytest.mark.parametrize(
    ("text", "kind", "retryable"),
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
def test_each_failure_has_its_name(text: str, kind: type[Exception], retryable: bool):
    found = failure_of(EngineError(f"pull a/b:1: {text}", status=500), "a/b:1")
    assert type(found) is kind
    assert found.retryable is retryable
    assert found.hint
    assert found.image == "a/b:1"
    assert text in found.message


def test_what_nobody_knows_stays_as_it_is():
    assert failure_of(EngineError("the moon is full"), "a") is None


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


MIRRORS = (
    Mirror("docker.io", "one.example"),
    Mirror("docker.io/library", "two.example/m"),
    Mirror("reg.example/team", "docker.io/team"),
)


def where(image: str, mirrors: tuple[Mirror, ...]) -> list[str]:
    return places(image, "amd64", DockerOptions(mirrors=mirrors))


@pytest.mark.parametrize(
    ("image", "also"),
    [
        (
            "golang:1.24",
            ["one.example/library/golang:1.24", "two.example/m/golang:1.24"],
        ),
        ("docker.io/golang", ["one.example/library/golang", "two.example/m/golang"]),
        ("a/b", ["one.example/a/b"]),
        ("libraryx/b", ["one.example/libraryx/b"]),
        ("reg.example/team/cc:1", ["docker.io/team/cc:1"]),
        ("reg.example/teams/cc:1", []),
        ("localhost:5000/a:1", []),
    ],
)
def test_where_else_an_image_may_be(image: str, also: list[str]):
    assert where(image, MIRRORS) == [image, *also]


def test_a_digest_holds_at_a_mirror_too():
    image = "golang@sha256:" + "0" * 64
    assert where(image, MIRRORS[:1]) == [image, f"one.example/library/{image}"]


def test_fabrics_own_images_are_published_in_two_places():
    known = DockerOptions().mirrors
    image = "hyperledger/fabric-ccenv:2.5"
    assert where(image, known) == [image, f"ghcr.io/{image}"]
    assert where("golang:1.24", known) == ["golang:1.24"]


class Fetches:
    """An engine that can fetch what is in `has`; else it says what `says` has of it."""

    def __init__(self, folder: Path, *has: str, says: dict[str, str] | None = None):
        self._socket, self._has, self._says = folder / "s", set(has), says or {}
        self.asked: list[str] = []
        self.there: set[str] = set()
        self.attempt = Attempt(CCID)

    async def _create(self, request: Request) -> None:
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(request.path).query)
        image = query["fromImage"][0]
        self.asked.append(image)
        if image in self._has:
            self.there.add(image)
            await request.stream(b'{"status": "Pull complete", "id": "a"}\n')
        else:
            await request.json({"message": self._says.get(image, LIMIT)}, 500)

    async def _inspect(self, request: Request) -> None:
        image = urllib.parse.unquote(request.path).split("/images/")[1][: -len("/json")]
        if image in self.there:
            await request.json({"Id": f"id of {image}"})
        else:
            await request.json({"message": "no such image"}, 404)

    async def get(self, image: str, pull: Pull = "missing") -> BaseImage:
        """Resolve `image` with the mirrors one.example and two.example."""
        replies = {"POST create": self._create, "GET json": self._inspect}
        async with fake_engine(self._socket, replies):
            found = await Engine.connect(
                EndpointOptions(docker_host=f"unix://{self._socket}")
            )
            try:
                mirrors = tuple(
                    Mirror("docker.io", f"{n}.example") for n in ("one", "two")
                )
                options = DockerOptions(pull=pull, mirrors=mirrors)
                images = BaseImages(found, options)
                base, _ = await images.resolve(LanguageImages(image), self.attempt)
                return base
            finally:
                await found.aclose()


ONE, TWO = "one.example/library/golang:1.24", "two.example/library/golang:1.24"


async def test_a_mirror_takes_over_and_what_it_gave_keeps_its_name(tmp_path: Path):
    engine = Fetches(tmp_path, TWO)
    base = await engine.get("golang:1.24")
    assert base == BaseImage(TWO, f"id of {TWO}")
    assert engine.asked == ["golang:1.24", ONE, TWO]
    assert any(TWO in note for note in engine.attempt.reused)
    assert any("pull rate limit" in line for line in engine.attempt.tail())


async def test_what_is_there_from_a_mirror_is_used_without_asking(tmp_path: Path):
    engine = Fetches(tmp_path, ONE)
    engine.there.add(TWO)
    assert (await engine.get("golang:1.24", "never")).reference == TWO
    assert (await engine.get("golang:1.24")).reference == TWO
    assert engine.asked == []
    assert (await engine.get("golang:1.24", "always")).reference == ONE


async def test_what_no_place_has_is_told_with_what_each_said(tmp_path: Path):
    away = "dial tcp: connection refused"
    engine = Fetches(tmp_path, says={"golang:1.24": "manifest unknown", ONE: away})
    with pytest.raises(ImageNotFound) as caught:
        await engine.get("golang:1.24")
    error = caught.value
    assert [one["image"] for one in error.tried] == ["golang:1.24", ONE, TWO]
    kinds = ["image-not-found", "registry-unavailable", "rate-limited"]
    assert [one["error"] for one in error.tried] == kinds
    assert all(said in error.message for said in ("manifest unknown", away, LIMIT))
    assert error.retryable, "the mirrors may give it later"


async def test_a_full_disk_is_not_tried_again_with_a_mirror(tmp_path: Path):
    engine = Fetches(tmp_path, ONE, says={"golang:1.24": "no space left on device"})
    with pytest.raises(EngineError, match="no space"):
        await engine.get("golang:1.24")
    assert engine.asked == ["golang:1.24"]


async def test_a_failure_without_a_name_passes_on_too(tmp_path: Path):
    said = "tls: failed to verify certificate"
    engine = Fetches(tmp_path, TWO, says={ONE: said})
    assert (await engine.get("golang:1.24")).reference == TWO
