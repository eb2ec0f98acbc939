"""A fetch that fails for a while is told from one that fails for good: real tools.

The registry is a port of this machine: nobody listens on it, or it answers as told.
"""

from __future__ import annotations

import http.server
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from chaindock.container.attempt import Attempt
from chaindock.container.contracts import BuildEnvironment, NodeLabels
from chaindock.controllers.process.controller import ProcessController
from chaindock.controllers.process.options import ProcessOptions
from chaindock.errors import BuildFailed
from chaindock.packaging.store import PackageStore
from chaindock.packaging.writer import package_directory
from chaindock.platforms.registry import platform_for
from support.doubles.backend import built
from support.need import need

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chaindock.packaging.store import StoredPackage

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
CLOSED = "http://127.0.0.1:1"
NODE = NodeLabels("node1", "peer0", "dev")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


def registry(url: str) -> dict[str, str]:
    """Send every tool to `url`, and let none of them try long."""
    return {
        "GOPROXY": url,
        "GOSUMDB": "off",
        "npm_config_registry": url,
        "npm_config_fetch_retries": "0",
        "npm_config_replace_registry_host": "always",
        "PIP_INDEX_URL": f"{url}/simple",
        "PIP_RETRIES": "1",  # with none it does not say what was wrong
        "PIP_CONFIG_FILE": os.devnull,
    }


@pytest.fixture
def answers(request: pytest.FixtureRequest) -> Iterator[str]:
    """Yield the address of a registry that answers everything with one status."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(request.param)

        def log_message(self, *_: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


async def failure(folder: Path, language: str, url: str) -> BuildFailed:
    need({"go": "go", "node": "npm", "python": "python3"}[language])
    data = folder / "package.tar.gz"
    source = EXAMPLES / language
    with data.open("wb") as out:
        package_directory(source, out, label="basic_1.0")
    package: StoredPackage = PackageStore(folder / "store").add(data)
    options = ProcessOptions(
        folder / "process",
        folder / "cache",
        path=os.environ.get("PATH", ""),  # noqa: TID251  # tests have no config
    )
    environment = BuildEnvironment(registry(url))
    async with ProcessController(
        options, NODE, environment, platforms=platform_for
    ) as builder:
        with pytest.raises(BuildFailed) as caught:
            await built(builder, package, Attempt(package.ccid))
    return caught.value


LANGUAGES = ["go", "node", "python"]


@pytest.mark.parametrize("language", LANGUAGES)
async def test_a_registry_that_is_down_may_come_back(tmp_path: Path, language: str):
    error = await failure(tmp_path, language, CLOSED)
    assert error.phase == "dependencies"
    assert error.retryable, error.output


@pytest.mark.parametrize("answers", [429, 503], indirect=True)
@pytest.mark.parametrize("language", LANGUAGES)
async def test_a_registry_in_trouble_may_get_over_it(
    tmp_path: Path, language: str, answers: str
):
    error = await failure(tmp_path, language, answers)
    assert error.retryable, error.output


@pytest.mark.parametrize("answers", [404], indirect=True)
@pytest.mark.parametrize("language", LANGUAGES)
async def test_what_the_registry_does_not_have_stays_missing(
    tmp_path: Path, language: str, answers: str
):
    error = await failure(tmp_path, language, answers)
    assert not error.retryable, error.output
