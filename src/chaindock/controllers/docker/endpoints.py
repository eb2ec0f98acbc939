"""Find the engine (every place it may be, and why each did not answer) and its logins.

Source: how the Docker CLI finds them
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import hashlib
import json
import shutil
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import aiohttp

from chaindock.aio import run_program
from chaindock.controllers.docker.names import DEFAULT_REGISTRY, full_image
from chaindock.controllers.docker.options import EndpointOptions
from chaindock.errors import EngineUnavailable
from chaindock.telemetry import get_logger

_log = get_logger("docker.credentials")
HELPER_S = 20.0
_DEFAULT_REGISTRY_SUFFIX = "/v1/"  # only the default registry's key still ends so
VAR_RUN = Path("/var/run")


class Verdict(StrEnum):
    """Result of the probe of a candidate."""

    ANSWERS = "answers"
    MISSING = "missing"
    NO_PERMISSION = "no permission"
    REFUSED = "refused"
    NO_ANSWER = "no answer"
    NOT_AN_ENGINE = "not an engine"
    TLS = "TLS"
    INVALID = "invalid address"


_REMEDIES = {
    Verdict.ANSWERS: "",
    Verdict.MISSING: "start the engine, or name its place: vm.endpoint, or else DOCKER_HOST",
    Verdict.NO_PERMISSION: "add your user to the group that owns the socket "
    "(often `docker`) and log in again, or use a rootless engine",
    Verdict.REFUSED: "the socket exists, but no engine listens: start the engine",
    Verdict.NO_ANSWER: "restart the engine: it accepts connections and does not answer",
    Verdict.NOT_AN_ENGINE: "something else listens there: correct the address",
    Verdict.TLS: "check the certificates (DOCKER_CERT_PATH, vm.docker.tls), and whether "
    "the engine expects TLS on this port",
    Verdict.INVALID: "write unix:///path, tcp://host:port or https://host:port",
}


@dataclass(frozen=True)
class Candidate:
    """A place where an engine may be, and who named it.

    `address` is a URL with unix, http or https; `problem` says why it cannot be tried.
    """

    address: str
    origin: str
    tls: ssl.SSLContext | None = field(default=None, repr=False, compare=False)
    problem: str = ""

    def connector(self) -> aiohttp.BaseConnector:
        """Return a connector without a limit: each run keeps two streams open."""
        scheme, _, rest = self.address.partition("://")
        if scheme == "unix":
            return aiohttp.UnixConnector(rest, limit=0)
        return aiohttp.TCPConnector(ssl=self.tls or True, limit=0)

    @property
    def base_url(self) -> str:
        """The URL that requests start with."""
        scheme = self.address.partition("://")[0]
        return self.address if scheme in {"http", "https"} else f"{scheme}://localhost"


@dataclass(frozen=True)
class Probe:
    """The verdict on one candidate."""

    address: str
    origin: str
    verdict: Verdict
    detail: str = ""

    @property
    def remedy(self) -> str:
        """What to do about it, in one line; "" when it answers."""
        return _REMEDIES[self.verdict]


async def find_engine(options: EndpointOptions) -> Candidate:
    """Return the first that answers. Raises: EngineUnavailable: `tried` has all Probes."""
    tried: list[Probe] = []
    for candidate in candidates(options):
        probe = await _probe(candidate, options.connect_s)
        if probe.verdict is Verdict.ANSWERS:
            return candidate
        tried.append(probe)
    worst = next((p for p in tried if p.verdict is not Verdict.MISSING), tried[0])
    detail = worst.detail if worst.verdict is not Verdict.MISSING else ""
    where = " at" if len(tried) == 1 else f": tried {len(tried)} places;"
    raise EngineUnavailable(
        f"no container engine answers{where} {worst.address} ({worst.origin}): "
        f"{worst.verdict}{detail and f', {detail}'}",
        hint=worst.remedy,
        endpoint=worst.address,
        verdict=str(worst.verdict),
        tried=tried,
    )


async def probe_all(options: EndpointOptions) -> list[Probe]:
    """Return the verdict on every candidate, side by side, in order."""
    every = (_probe(one, options.connect_s) for one in candidates(options))
    return await asyncio.gather(*every)


def candidates(options: EndpointOptions) -> Iterator[Candidate]:
    """Yield where to look; after a named one nothing more is looked at."""
    for origin, address in (
        ("vm.endpoint", options.endpoint),
        ("DOCKER_HOST", options.docker_host),
    ):
        if address:
            yield _named(address, origin, options)
            return
    if (context := _context(options)) is not None:
        yield context
    if not options.named:
        for origin, path in _usual_sockets(options):
            yield Candidate(f"unix://{path}", origin)


def _usual_sockets(options: EndpointOptions) -> Iterator[tuple[str, Path]]:
    home, run = options.home, options.runtime_dir
    for origin, folder, socket in (
        ("usual socket", VAR_RUN, "docker.sock"),
        ("rootless Docker", run, "docker.sock"),
        ("Docker Desktop", home, ".docker/run/docker.sock"),
        ("Docker Desktop", home, ".docker/desktop/docker.sock"),
        ("Colima", home, ".colima/default/docker.sock"),
        ("Rancher Desktop", home, ".rd/docker.sock"),
        ("OrbStack", home, ".orbstack/run/docker.sock"),
        ("rootless Podman", run, "podman/podman.sock"),
        ("Podman", VAR_RUN, "podman/podman.sock"),
        ("Podman machine", home, ".local/share/containers/podman/machine/podman.sock"),
    ):
        if folder:
            yield origin, folder / socket


def _named(address: str, origin: str, options: EndpointOptions) -> Candidate:
    scheme, sep, rest = address.partition("://")
    if not sep or not rest or scheme not in {"unix", "tcp", "http", "https"}:
        return Candidate(address, origin, problem=f"found {address!r}")
    if scheme == "unix":
        return Candidate(address, origin)
    rest = rest.rstrip("/")
    if scheme != "https" and not options.tls:
        return Candidate(f"http://{rest}", origin)
    try:
        context = ssl.create_default_context(cafile=options.ca_file)
        if options.cert_file:
            context.load_cert_chain(options.cert_file, options.key_file)
    except (OSError, ssl.SSLError) as error:
        problem = f"certificate files: {error}"
        return Candidate(f"https://{rest}", origin, problem=problem)
    return Candidate(f"https://{rest}", origin, tls=context)


def _context(options: EndpointOptions) -> Candidate | None:
    """Return the engine of the Docker CLI's context; None for its default one."""
    folder = _cli_folder(options)
    name = options.docker_context
    if folder and not name:
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            found = json.loads((folder / "config.json").read_bytes())["currentContext"]
            name = found if isinstance(found, str) else ""
    if name in {"", "default"}:
        return None
    origin = f"docker context {name!r}"
    if not folder:
        problem = "neither HOME nor DOCKER_CONFIG is set"
        return Candidate(f"context://{name}", origin, problem=problem)
    digest = hashlib.sha256(name.encode()).hexdigest()
    try:
        meta = json.loads((folder / f"contexts/meta/{digest}/meta.json").read_bytes())
        address = str(meta["Endpoints"]["docker"]["Host"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"its description cannot be read: {error!r}"
        return Candidate(f"context://{name}", origin, problem=problem)
    files = folder / f"contexts/tls/{digest}/docker"
    if not files.is_dir():
        return _named(address, origin, options)
    ca, cert, key = (
        path if (path := files / f"{part}.pem").exists() else None
        for part in ("ca", "cert", "key")
    )
    tls = replace(options, tls=True, ca_file=ca, cert_file=cert, key_file=key)
    return _named(address, origin, tls)


def _cli_folder(options: EndpointOptions) -> Path | None:
    return options.docker_config or (options.home and options.home / ".docker")


async def _probe(candidate: Candidate, limit_s: float) -> Probe:
    scheme, _, path = candidate.address.partition("://")
    found = _look_at_socket(Path(path)) if scheme == "unix" else None
    if candidate.problem:
        verdict = Verdict.TLS if scheme == "https" else Verdict.INVALID
        found = verdict, candidate.problem
    found = found or await _ask(candidate, limit_s)
    return Probe(candidate.address, candidate.origin, *found)


async def _ask(candidate: Candidate, limit_s: float) -> tuple[Verdict, str]:
    try:
        async with asyncio.timeout(limit_s):
            return await _ping(candidate)
    except TimeoutError:
        return Verdict.NO_ANSWER, f"waited {limit_s:g} s"
    except (aiohttp.ClientSSLError, ssl.SSLError) as error:
        return Verdict.TLS, str(error)
    except aiohttp.ClientConnectorError as error:
        return _of_errno(error.os_error), str(error)
    except (aiohttp.ClientError, ValueError) as error:
        return Verdict.NOT_AN_ENGINE, str(error) or repr(error)
    except OSError as error:
        return _of_errno(error), str(error)


async def _ping(candidate: Candidate) -> tuple[Verdict, str]:
    async with (
        aiohttp.ClientSession(connector=candidate.connector()) as session,
        session.get(f"{candidate.base_url}/_ping", allow_redirects=False) as answer,
    ):
        text = (await answer.content.read(200)).decode("utf-8", "replace").strip()
    if "Api-Version" in answer.headers:
        return Verdict.ANSWERS, f"API {answer.headers['Api-Version']}"
    if answer.status == 400 and candidate.address.startswith("http:"):
        # Nothing is wrong with the request, so it is the missing TLS.
        return Verdict.TLS, text
    return Verdict.NOT_AN_ENGINE, f"HTTP {answer.status} {text}"


def _look_at_socket(path: Path) -> tuple[Verdict, str] | None:
    try:
        if path.is_socket():
            return None
        mode = path.stat().st_mode
    except OSError as error:
        return _of_errno(error), str(error)
    return Verdict.NOT_AN_ENGINE, f"no socket, file mode {mode:o}"


def _of_errno(error: OSError) -> Verdict:
    if error.errno in {errno.EACCES, errno.EPERM}:
        return Verdict.NO_PERMISSION
    if error.errno in {errno.ECONNREFUSED, errno.ECONNRESET}:
        return Verdict.REFUSED
    if error.errno in {errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH}:
        return Verdict.NO_ANSWER
    return Verdict.MISSING


# --- logins --------------------------------------------------------------------------


def login_files(options: EndpointOptions) -> list[Path]:
    """Return what may hold logins: files of the Docker CLI, then of Podman."""
    places = (
        (_cli_folder(options), "config.json"),
        (options.auth_file, ""),
        (options.runtime_dir, "containers/auth.json"),
        (options.home, ".config/containers/auth.json"),
    )
    return [folder / name for folder, name in places if folder]


async def registry_auth(image: str, files: Sequence[Path]) -> str | None:
    """Return the X-Registry-Auth header to pull `image`; None = anonymous.

    The first of `files`, which have the form of config.json, that knows it counts.
    """
    for file in files:
        if (found := await _in_file(image, file)) is not None:
            return base64.urlsafe_b64encode(json.dumps(found).encode()).decode()
    return None


async def _in_file(image: str, file: Path) -> dict[str, str] | None:
    try:
        settings = json.loads(file.read_bytes())
        auths = dict(settings.get("auths") or {})
        helpers = dict(settings.get("credHelpers") or {})
    except (OSError, ValueError, AttributeError, TypeError):
        return None
    store = settings.get("credsStore")
    key = _key_for(image, [*auths, *helpers])
    if key is None and store:
        # A store may know more than the file lists.
        registry = full_image(image).partition("/")[0]
        key = None if registry == DEFAULT_REGISTRY else registry
    if key is None:
        return None
    helper = helpers.get(key) or store
    found = helper and await _from_helper(str(helper), key)
    found = found or _from_entry(auths.get(key))
    return {**found, "serveraddress": key} if found else None


def _key_for(image: str, keys: list[str]) -> str | None:
    """Return the key of the longest part of an image's name that has one."""
    path = full_image(image)
    default = path.startswith(f"{DEFAULT_REGISTRY}/")
    best, size = None, 0
    for key in keys:
        host = (key.partition("://")[2] or key).rstrip("/")
        if default and key.endswith(_DEFAULT_REGISTRY_SUFFIX):
            host = DEFAULT_REGISTRY
        elif "://" in key or host.partition("/")[2].startswith("v"):
            host = host.partition("/")[0]  # an address of its API, not a part of it
        if f"{path}/".startswith(f"{host}/") and len(host) > size:
            best, size = key, len(host)
    return best


def _from_entry(entry: Any) -> dict[str, str] | None:
    if not isinstance(entry, dict):
        return None
    if token := entry.get("identitytoken"):
        return {"identitytoken": str(token)}
    try:
        user, _, password = base64.b64decode(entry["auth"]).decode().partition(":")
    except (KeyError, ValueError, TypeError):
        return None
    return {"username": user, "password": password}


async def _from_helper(helper: str, key: str) -> dict[str, str] | None:
    program = shutil.which(f"docker-credential-{helper}")
    if program is None:
        _log.warning("credential helper is missing", helper=helper, registry=key)
        return None
    quiet = asyncio.subprocess.DEVNULL  # its daemon may keep a pipe open
    try:
        _, text, _ = await run_program(
            program, "get", text=key.encode(), limit_s=HELPER_S, stderr=quiet
        )
        found = json.loads(text)
        user, secret = str(found["Username"]), str(found["Secret"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = str(error)
        _log.warning(
            "credential helper gave nothing", helper=helper, registry=key, why=why
        )
        return None
    if user == "<token>":
        return {"identitytoken": secret}
    return {"username": user, "password": secret}
