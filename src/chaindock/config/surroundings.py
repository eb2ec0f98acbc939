"""Proxies, registries, CA bundles and engines named by the user's environment.

Only named variables reach builds; what may hold a password is never shown.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from chaindock.container.contracts import BuildEnvironment
from chaindock.container.environment import CA_VARIABLES
from chaindock.controllers.docker.options import EndpointOptions
from chaindock.platforms.registry import PLATFORMS

if TYPE_CHECKING:
    from collections.abc import Mapping

_PROXIES = "(?i:https?_proxy|no_proxy|all_proxy)"
_BUILD_VARIABLE = re.compile(
    "|".join([_PROXIES, *(platform.build_variables for platform in PLATFORMS)])
)
_PASSWORD = re.compile(r"(?<=://)[^/\s]+@")
_SECRET_NAME = re.compile(r"token|auth|passw|secret|_key$", re.IGNORECASE)


def build_environment(
    env: Mapping[str, str],
) -> tuple[BuildEnvironment, str, list[str]]:
    """Return what builds get, which variable named the CA bundle, and warnings."""
    variables = {
        name: value
        for name, value in env.items()
        if value and _BUILD_VARIABLE.fullmatch(name)
    }
    warnings: list[str] = []
    for name in CA_VARIABLES:
        if not (value := env.get(name)):
            continue
        bundle = Path(value).absolute()
        if not (why := problem_of(bundle)):
            return BuildEnvironment(variables, bundle), name, warnings
        warnings.append(f"{name} is not used: {value!r} {why}")
    return BuildEnvironment(variables), "", warnings


def problem_of(bundle: Path) -> str:
    """Return why a CA bundle cannot be used, or nothing."""
    try:
        good = b"-----BEGIN CERTIFICATE-----" in bundle.read_bytes()
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return "" if good else "holds no PEM certificate"


def engine_inputs(env: Mapping[str, str]) -> EndpointOptions:
    """Return what `env` says about where a container engine is."""
    certificates = _path(env, "DOCKER_CERT_PATH")
    return EndpointOptions(
        docker_host=env.get("DOCKER_HOST", ""),
        docker_context=env.get("DOCKER_CONTEXT", ""),
        docker_config=_path(env, "DOCKER_CONFIG"),
        auth_file=_path(env, "REGISTRY_AUTH_FILE"),
        runtime_dir=_path(env, "XDG_RUNTIME_DIR"),
        home=_path(env, "HOME"),
        tls=bool(env.get("DOCKER_TLS_VERIFY") or env.get("DOCKER_TLS")),
        ca_file=certificates and certificates / "ca.pem",
        cert_file=certificates and certificates / "cert.pem",
        key_file=certificates and certificates / "key.pem",
    )


def cache_folder(env: Mapping[str, str], home: Path) -> Path:
    """Return where builds and toolchain caches are kept for all nodes of this user.

    Args:
        env: the environment.
        home: of the node; used where the user has no home directory.
    """
    if (user := _path(env, "HOME")) is None:
        return home / "cache"
    return (_path(env, "XDG_CACHE_HOME") or user / ".cache") / "chaindock"


def _path(env: Mapping[str, str], name: str) -> Path | None:
    value = env.get(name)
    return Path(value) if value else None


def redact(name: str, value: str) -> str:
    """Return `value` as it may be shown: without passwords."""
    if _SECRET_NAME.search(name):
        return "[secret]"
    return _PASSWORD.sub("[secret]@", value)
