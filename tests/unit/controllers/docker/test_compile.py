"""Which certificates a build trusts, and its network."""

from __future__ import annotations

import io
import tarfile
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from chaindock.container.attempt import Attempt
from chaindock.container.contracts import BuildEnvironment, NodeLabels
from chaindock.container.environment import merged_ca
from chaindock.controllers.docker.compile import Compiler, build_places
from chaindock.controllers.docker.engine import Engine
from chaindock.controllers.docker.images import BaseImage
from chaindock.controllers.docker.options import (
    CompileOptions,
    DockerOptions,
    EndpointOptions,
    SandboxOptions,
)
from chaindock.errors import EngineError
from chaindock.ids import Ccid
from support.doubles.fake_engine import fake_engine

if TYPE_CHECKING:
    from pathlib import Path

    from chaindock.controllers.docker.instance import EngineSession
    from chaindock.platforms.base import BuildPlan, Platform
    from support.doubles.fake_engine import Request

USUAL, REAL = "/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/bundle.pem"
Content = dict[str, bytes | str]


def packed(content: bytes | str) -> bytes:
    """Return the tar of a file, or of a link to a name."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        entry = tarfile.TarInfo("x")
        if isinstance(content, str):
            entry.type, entry.linkname = tarfile.SYMTYPE, content
            tar.addfile(entry)
        else:
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return file.getvalue()


async def trusted(folder: Path, image: Content) -> bytes:
    async def archive(request: Request) -> None:
        asked = request.path.partition("path=")[2].replace("%2F", "/")
        if asked not in image:
            await request.json({"message": "Could not find the file"}, 404)
            return
        await request.answer(200, packed(image[asked]), "application/x-tar")

    socket, corporate = folder / "s", folder / "corp.pem"
    corporate.write_bytes(b"-CORP-\n")
    async with fake_engine(socket, {"GET archive": archive}):
        engine = await Engine.connect(EndpointOptions(docker_host=f"unix://{socket}"))
        session = SimpleNamespace(
            engine=engine, options=SimpleNamespace(compile=CompileOptions())
        )
        environment = BuildEnvironment(ca_bundle=corporate)
        compiler = Compiler(
            cast("EngineSession", session), environment, Attempt(Ccid("a:1"))
        )
        found = merged_ca(corporate, await compiler._trusted())
        await engine.aclose()
    return found


@pytest.mark.parametrize(
    "image",
    [
        {USUAL: b"-IMAGE-"},
        {USUAL: REAL, REAL: b"-IMAGE-"},
        {USUAL: "../../pki/tls/bundle.pem", REAL: b"-IMAGE-"},
    ],
)
async def test_the_users_and_the_images_certificates_are_trusted(
    tmp_path: Path, image: Content
):
    normal = {path: image[path] for path in image}
    normal["/etc/ssl/certs/../../pki/tls/bundle.pem"] = b"-IMAGE-"
    assert await trusted(tmp_path, normal) == b"-CORP-\n-IMAGE-"


@pytest.mark.parametrize("image", [{}, {USUAL: "ca-certificates.crt"}])
async def test_an_image_without_certificates_gets_those_of_this_machine(
    tmp_path: Path, image: Content
):
    found = await trusted(tmp_path, image)
    assert found.startswith(b"-CORP-\n")
    assert b"-IMAGE-" not in found


def test_in_a_container_programs_are_on_the_path_and_the_rest_lies_together():
    assert build_places().fill("{tool:go} {input}/src {output} {cache:go-mod}") == (
        "go /chaincode/input/src /chaincode/output /chaincode/cache/go-mod"
    )


@pytest.mark.parametrize(
    ("named", "expected"),
    [("", ["network", "fill", "network", "start"]), ("theirs", ["fill", "start"])],
)
async def test_a_build_has_the_name_servers_of_runs_and_a_network_that_is_there(
    tmp_path: Path, named: str, expected: list[str]
):
    class Recorded:
        container = Engine.container

        async def create_container(self, _name: None, body: dict[str, Any]) -> str:
            host = body["HostConfig"]
            assert host["NetworkMode"] == (named or "ours")
            assert host["Dns"] == ["10.0.0.1"]  # as what runs
            return "c1"

        async def for_builds(self) -> str:
            done.append("network")
            return "ours"

        async def put_archive(self, *_: object) -> None:
            done.append("fill")

        async def start_container(self, *_: object) -> None:
            done.append("start")
            raise EngineError("that is enough")

        async def remove_container(self, *_: object) -> None:
            pass

    done, recorded, attempt = list[str](), Recorded(), Attempt(Ccid("a:1"))
    session = SimpleNamespace(
        engine=recorded,
        networks=recorded,
        node=NodeLabels("node1", "peer0", "dev"),
        options=DockerOptions(
            sandbox=SandboxOptions(dns=("10.0.0.1",)),
            compile=CompileOptions(network=named),
        ),
    )
    compiler = Compiler(cast("EngineSession", session), BuildEnvironment(), attempt)
    plan = cast("BuildPlan", SimpleNamespace(caches=(), steps=()))
    (tmp_path / "tree").mkdir()
    with pytest.raises(EngineError, match="enough"):
        await compiler.run(
            plan,
            cast("Platform", None),
            tmp_path / "tree",
            BaseImage("base:1", "sha256:1"),
            io.BytesIO(),
        )
    assert done == expected
