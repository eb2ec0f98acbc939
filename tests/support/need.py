"""Tools that a test needs: missing ones skip on a user's machine and fail in CI."""

from __future__ import annotations

import os
import shutil
import socket
from typing import NoReturn

import pytest


def missing(reason: str) -> NoReturn:
    """Skip with the reason; with CI=true, fail."""
    if os.environ.get("CI") == "true":  # noqa: TID251  # tests have no config
        pytest.fail(f"CI lacks something the tests need: {reason}", pytrace=False)
    pytest.skip(reason)


def need(*tools: str) -> None:
    """Require programs on the PATH."""
    for tool in tools:
        if shutil.which(tool) is None:
            missing(f"{tool} is not on the PATH")


def need_docker() -> str:
    """Require a Docker Engine; return its endpoint (unix://… or tcp://…)."""
    endpoint = os.environ.get("DOCKER_HOST")  # noqa: TID251  # tests have no config
    if not endpoint:
        missing("no engine: set DOCKER_HOST, or run `make engine`")
    return endpoint


def need_image(name: str) -> str:
    """Require one of the base images of scripts/base_images.py; return its name."""
    variable = f"CHAINDOCK_TEST_IMAGE_{name.upper()}"
    image = os.environ.get(variable)  # noqa: TID251  # tests have no config
    if not image:
        missing(f"no {name} base image: set {variable}, or run `make engine`")
    return image


def need_ipv6() -> None:
    """Require an IPv6 loopback address; not every container has one, in CI neither."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("the machine has no IPv6 loopback")
