"""Find the engine: every place it may be, in order, and why each did not answer."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import ssl
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp

from chaindock.errors import EngineUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chaindock.controllers.docker.options import EndpointOptions

VAR_RUN = Path("/var/run")
DEFAULT_CONTEXT = "default"
"""The context of the Docker CLI that names no engine."""


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
    Verdict.MISSING: "start the engine, or set DOCKER_HOST to where it listens",
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
    """A place where an engine may be.

    Args:
        address: a URL with unix, http or https.
        origin: who named it, for people.
        problem: why it cannot even be tried.
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
    """Return the first candidate that answers.

    Raises:
        EngineUnavailable: none does; fact `tried` has a Probe for each.
    """
    tried: list[Probe] = []
    for candidate in candidates(options):
        probe = await probe_one(candidate, options.connect_s)
        if probe.verdict is Verdict.ANSWERS:
            return candidate
        tried.append(probe)
    worst = next((p for p in tried if p.verdict is not Verdict.MISSING), tried[0])
    where = " at" if is_named(options) else f": tried {len(tried)} places;"
    raise EngineUnavailable(
        f"no container engine answers{where} {worst.address} ({worst.origin}): "
        f"{worst.verdict}{worst.detail and f', {worst.detail}'}",
        hint=worst.remedy,
        endpoint=worst.address,
        verdict=str(worst.verdict),
        tried=tried,
    )


async def probe_all(options: EndpointOptions) -> list[Probe]:
    """Return the verdict on every candidate, side by side, in order."""
    found = list(candidates(options))
    return await asyncio.gather(*(probe_one(c, options.connect_s) for c in found))


def is_named(options: EndpointOptions) -> bool:
    """Whether the user named the engine: then no other is looked for."""
    default = options.docker_context in {"", DEFAULT_CONTEXT}
    return bool(options.endpoint or options.docker_host or not default)


def candidates(options: EndpointOptions) -> Iterator[Candidate]:
    """Yield where to look; after a named one nothing more is looked at."""
    for origin, address in (
        ("vm.endpoint", options.endpoint),
        ("DOCKER_HOST", options.docker_host),
    ):
        if address:
            yield _named(address, origin, options)
            return
    context = _context(options)
    if context is not None:
        yield context
    if is_named(options):
        return
    for origin, path in _usual_sockets(options):
        yield Candidate(f"unix://{path}", origin)


def _usual_sockets(options: EndpointOptions) -> Iterator[tuple[str, Path]]:
    home, run = options.home, options.runtime_dir
    yield "usual socket", VAR_RUN / "docker.sock"
    if run:
        yield "rootless Docker", run / "docker.sock"
    if home:
        yield "Docker Desktop", home / ".docker/run/docker.sock"
        yield "Docker Desktop", home / ".docker/desktop/docker.sock"
        yield "Colima", home / ".colima/default/docker.sock"
        yield "Rancher Desktop", home / ".rd/docker.sock"
        yield "OrbStack", home / ".orbstack/run/docker.sock"
    if run:
        yield "rootless Podman", run / "podman/podman.sock"
    yield "Podman", VAR_RUN / "podman/podman.sock"
    if home:
        machine = home / ".local/share/containers/podman/machine"
        yield "Podman machine", machine / "podman.sock"


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
        context = _tls(options.ca_file, options.cert_file, options.key_file)
    except (OSError, ssl.SSLError) as error:
        problem = f"certificate files: {error}"
        return Candidate(f"https://{rest}", origin, problem=problem)
    return Candidate(f"https://{rest}", origin, tls=context)


def _tls(ca: Path | None, cert: Path | None, key: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(ca) if ca else None)
    if cert:
        context.load_cert_chain(str(cert), str(key) if key else None)
    return context


def _context(options: EndpointOptions) -> Candidate | None:
    """Return the engine of the Docker CLI's context; None for its default one."""
    folder = options.docker_config or (options.home and options.home / ".docker")
    name = options.docker_context or (_current_context(folder) if folder else "")
    if name in {"", DEFAULT_CONTEXT}:
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
    own = replace(options, tls=True, ca_file=ca, cert_file=cert, key_file=key)
    return _named(address, origin, own)


def _current_context(folder: Path) -> str:
    try:
        settings = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return ""
    name = settings.get("currentContext") if isinstance(settings, dict) else None
    return name if isinstance(name, str) else ""


async def probe_one(candidate: Candidate, limit_s: float) -> Probe:
    """Return the verdict on one candidate within `limit_s`."""
    verdict, detail = await _judge(candidate, limit_s)
    return Probe(candidate.address, candidate.origin, verdict, detail)


async def _judge(candidate: Candidate, limit_s: float) -> tuple[Verdict, str]:
    scheme, _, path = candidate.address.partition("://")
    if candidate.problem:
        verdict = Verdict.TLS if scheme == "https" else Verdict.INVALID
        return verdict, candidate.problem
    if scheme == "unix" and (early := _look_at_socket(Path(path))):
        return early
    try:
        async with asyncio.timeout(limit_s):
            return await _ping(candidate)
    except TimeoutError:
        return Verdict.NO_ANSWER, f"waited {limit_s:g} s"
    except (aiohttp.ClientError, OSError, ValueError) as error:
        return _of_error(error), str(error) or repr(error)


def _of_error(error: Exception) -> Verdict:
    if isinstance(error, (aiohttp.ClientSSLError, ssl.SSLError)):
        return Verdict.TLS
    if isinstance(error, aiohttp.ClientConnectorError):
        return _of_errno(error.os_error)
    if isinstance(error, OSError) and not isinstance(error, aiohttp.ClientError):
        return _of_errno(error)
    return Verdict.NOT_AN_ENGINE


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
        return None if path.is_socket() else _absent(path)
    except OSError as error:
        return _of_errno(error), str(error)


def _absent(path: Path) -> tuple[Verdict, str]:
    try:
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
