"""Base images and their registry: logins, policies, and what each failure is called."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from chaindock.container.attempt import Attempt
from chaindock.controllers.docker.compile import Compiler
from chaindock.controllers.docker.options import Mirror
from chaindock.errors import (
    BuildFailed,
    ChaindockError,
    ImageNotFound,
    ImagePlatformMissing,
    RateLimited,
    RegistryDenied,
    RegistryUnavailable,
)
from chaindock.platforms.base import LanguageImages
from support.doubles.backend import WatchedAttempt, built
from support.doubles.scripts import hang, leave
from support.engines.registry import Registry
from support.need import need_image

if TYPE_CHECKING:
    from chaindock.platforms.base import Pull
    from support.engines.docker_backend import DockerBackend
    from support.engines.each import Target

pytestmark = [pytest.mark.docker, pytest.mark.timeout(180)]


def use(
    backend: DockerBackend,
    image: LanguageImages,
    *mirrors: Mirror,
    pull: Pull = "missing",
) -> None:
    backend.options = replace(
        backend.options, pull=pull, mirrors=mirrors, images={"script": image}
    )


async def refused(backend: DockerBackend) -> ChaindockError:
    """Return why the images cannot be had."""
    package = await backend.packages.make(hang())
    async with backend.within():
        builder = await backend.builder()
        with pytest.raises(ChaindockError) as caught:
            await builder.build(package, Attempt(package.ccid))
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("user", ["", "alice"])
async def test_missing_images_are_pulled_with_the_users_credentials(
    backend: DockerBackend, target: Target, user: str
):
    registry = Registry(user, "secret")
    async with registry.serve(target.registry_port) as host:
        image = f"{host}/{backend.node_id}:1"
        folder = backend.folder / "docker"
        folder.mkdir()
        auth = "YWxpY2U6c2VjcmV0" if user else ""
        settings = {"auths": {host: {"auth": auth}}}
        (folder / "config.json").write_text(json.dumps(settings))
        endpoint = replace(backend.options.endpoint, docker_config=folder)
        backend.options = replace(backend.options, endpoint=endpoint)
        use(backend, LanguageImages(image))
        package = await backend.packages.make(hang())
        attempt = WatchedAttempt(package)
        async with backend.within():
            # The image is empty, so nothing can be built in it; but it is there.
            with pytest.raises(BuildFailed):
                await built(await backend.builder(), package, attempt)
        assert await backend.engine.inspect_image(image)
        await backend.engine.remove_image(image)
    assert "pull" in attempt.entered
    assert attempt.of("build")


async def test_each_failure_has_a_name_of_its_own(
    backend: DockerBackend, target: Target
):
    registry = Registry()
    async with registry.serve(target.registry_port) as host:
        name = f"{host}/{backend.node_id}"
        use(backend, LanguageImages(f"{name}:2"))
        assert isinstance(await refused(backend), ImageNotFound)
        use(backend, LanguageImages(f"{name}:elsewhere"))
        assert isinstance(await refused(backend), ImagePlatformMissing)
        use(backend, LanguageImages(f"{name}:1"))
        registry.refuses[""] = 429
        limited = await refused(backend)
        assert isinstance(limited, RateLimited)
        assert limited.retryable
        assert limited.retry_after_s == 90
        registry.refuses.clear()
    registry = Registry("alice", "secret")
    async with registry.serve(target.registry_port) as host:
        use(backend, LanguageImages(f"{host}/{backend.node_id}:1"))
        assert isinstance(await refused(backend), RegistryDenied)
    use(backend, LanguageImages(f"localhost:1/{backend.node_id}:1"))
    away = await refused(backend)
    assert isinstance(away, RegistryUnavailable)
    assert away.retryable
    assert f"localhost:1/{backend.node_id}:1" in str(away)


@pytest.mark.parametrize("status", [404, 429])
async def test_a_mirror_takes_over_under_its_own_name(
    backend: DockerBackend, target: Target, status: int
):
    if (target.kind, status) == ("podman", 429):
        pytest.skip("it asks four times; test_each_failure_… has what it says then")
    registry = Registry()
    registry.refuses["first/"] = status
    async with registry.serve(target.registry_port) as host:
        first, second = f"{host}/first", f"{host}/second"
        image, mirror = (f"{place}/{backend.node_id}:1" for place in (first, second))
        use(backend, LanguageImages(image), Mirror(first, second))
        notes = await notes_of_a_build(backend)
        assert [note for note in notes if image in note and mirror in note]
        with pytest.raises(ImageNotFound):
            await backend.engine.inspect_image(image)
        asked = len(registry.asked)
        assert asked
        # It is there now, so nobody is asked again.
        assert await notes_of_a_build(backend) == notes
        assert len(registry.asked) == asked
        await backend.engine.remove_image(mirror)


async def notes_of_a_build(backend: DockerBackend) -> list[str]:
    """Build in an empty image: that fails, but the image has to be there."""
    package = await backend.packages.make(hang())
    attempt = WatchedAttempt(package)
    async with backend.within():
        with pytest.raises(BuildFailed):
            await built(await backend.builder(), package, attempt)
    return attempt.reused


async def test_when_no_place_has_it_each_tells_why(
    backend: DockerBackend, target: Target
):
    registry = Registry()
    registry.refuses[""] = 404
    async with registry.serve(target.registry_port) as host:
        image = f"localhost:1/{backend.node_id}:1"
        use(backend, LanguageImages(image), Mirror("localhost:1", host))
        error = await refused(backend)
    assert isinstance(error, RegistryUnavailable)
    kinds = ["registry-unavailable", "image-not-found"]
    assert [one["error"] for one in error.tried] == kinds
    assert error.tried[0]["image"] == image
    assert all(one["why"] in str(error) for one in error.tried)


async def test_never_pulling_makes_no_request(backend: DockerBackend, target: Target):
    registry = Registry()
    async with registry.serve(target.registry_port) as host:
        image = LanguageImages(f"{host}/{backend.node_id}:1")
        use(backend, image, Mirror(host, f"{host}/mirror"), pull="never")
        answer = await refused(backend)
    assert "may not pull" in str(answer)
    assert isinstance(answer, ImageNotFound)
    assert registry.asked == []


async def test_an_image_is_made_of_what_was_looked_at_even_if_its_tag_moves(
    backend: DockerBackend, monkeypatch: pytest.MonkeyPatch
):
    """The build takes long; somebody tags another image meanwhile."""
    name = f"chaindock-test-moving-{backend.node_id}"
    await backend.engine.tag_image(need_image("runtime"), name, "1")
    use(backend, LanguageImages(f"{name}:1"), pull="never")
    package = await backend.packages.make(leave(0))
    try:
        async with backend.within():
            builder = await backend.builder()
            # As early as possible after the look: the name is gone altogether.
            real = Compiler.run

            async def run(self: Compiler, *args: Any) -> None:
                await backend.engine.remove_image(f"{name}:1")
                await real(self, *args)

            monkeypatch.setattr(Compiler, "run", run)
            instance = await built(builder, package)
            assert instance.describe()["base"].startswith(f"{name}:1 ")
            await instance.start(backend.peer, Attempt(package.ccid))
            assert (await instance.wait()).code == 0
    finally:
        await backend.engine.remove_image(f"{name}:1")
