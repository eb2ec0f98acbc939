"""An engine that belongs to one test: it may be stopped, killed and started again.

`own_docker("runtime")` and `own_podman("runtime")` are context managers; the images come
from the shared engine by way of a file that is kept between runs. Everything is below
one of a few numbered folders in the test cache (engine_slots.py), which keep the images.

The second dockerd sets no firewall rules: it would flush those of the first one. It has a
default bridge of its own; told to have none, or to take its networks from other addresses,
a dockerd removes `docker0`, which is the first one's. Its networks reach this machine and
nothing else: builds that need a registry do not work on it.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.parse
from abc import ABC, abstractmethod
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar

import psutil

from chaindock.controllers.docker.names import own_tags
from support.engines.kept import is_kept
from support.engines.slots import CLEAN, cache, end_processes, remove_links, slot
from support.need import missing, need, need_docker, need_image

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.engines.slots import Pool

START_S, STOP_S = 60.0, 40.0


class _Unix(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def request(
    endpoint: str,
    method: str,
    path: str,
    body: IO[bytes] | bytes | None = None,
    into: IO[bytes] | None = None,
    timeout: float = 300.0,
) -> tuple[int, bytes]:
    """Make one plain call to an engine at a unix socket; return (status, body)."""
    link = _Unix(endpoint.removeprefix("unix://"), timeout)
    chunked = body is not None and not isinstance(body, bytes)
    headers = {"Content-Type": "application/x-tar" if chunked else "application/json"}
    if chunked:
        headers["Transfer-Encoding"] = "chunked"
    try:
        link.request(method, path, body, headers, encode_chunked=chunked)
        answer = link.getresponse()
        if into is not None and answer.status == 200:
            shutil.copyfileobj(answer, into, 1 << 20)
            return 200, b""
        return answer.status, answer.read()
    finally:
        link.close()


class OwnEngine(ABC):
    """One engine in a folder of its own. All methods block: use a thread on a loop.

    Args:
        folder: holds everything of it.
        pool: addresses of its networks.
        flags: more arguments of its daemon.
    """

    kind: ClassVar[str]

    def __init__(self, folder: Path, pool: Pool, *flags: str) -> None:
        self.folder, self.pool, self.flags = folder, pool, flags
        self.socket = folder / "s"
        self.loaded: list[str] = []
        self._daemon: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """Where it listens, running or not: unix://…"""
        return f"unix://{self.socket}"

    @property
    def pid(self) -> int | None:
        """Process id of the daemon; None when it does not run."""
        daemon = self._daemon
        return None if daemon is None or daemon.poll() is not None else daemon.pid

    @property
    def log(self) -> str:
        """What the daemon wrote, of all its lives."""
        return (self.folder / "log").read_text(errors="replace")

    @abstractmethod
    def command(self) -> list[str]:
        """The arguments that start the daemon."""

    @abstractmethod
    def clear_dead(self) -> None:
        """Remove what a killed daemon left that keeps the next one from starting."""

    def variables(self) -> dict[str, str]:
        """Return what the daemon gets beside the environment of the tests."""
        return {}

    def start(self) -> None:
        """Start the daemon; it answers afterwards. Harmless when it runs."""
        if self.pid is not None:
            return
        self.clear_dead()
        with (self.folder / "log").open("ab") as log:
            self._daemon = daemon = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=self.folder,  # Podman's monitor writes a file "oom" where it is
                env={**os.environ, **self.variables()},  # noqa: TID251
            )
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and daemon.poll() is None:
            if self.answers():
                return
            time.sleep(0.05)
        self.kill()
        raise AssertionError(f"{self.kind} did not start: {self.log[-3000:]}")

    def answers(self) -> bool:
        """Whether it answers a ping."""
        try:
            return request(self.endpoint, "GET", "/_ping", timeout=5)[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def stop(self) -> None:
        """Ask the daemon to end (SIGTERM), and wait; after STOP_S it is killed."""
        if self._daemon is None or self.pid is None:
            return
        self._daemon.terminate()
        try:
            self._daemon.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End the daemon with SIGKILL. Its containers may go on."""
        if self._daemon is not None:
            self._daemon.kill()
            self._daemon.wait()

    def pause(self) -> None:
        """Have the daemon hang: it takes connections and answers nothing."""
        if (pid := self.pid) is not None:
            os.kill(pid, signal.SIGSTOP)

    def resume(self) -> None:
        """End `pause`."""
        if (pid := self.pid) is not None:
            os.kill(pid, signal.SIGCONT)

    def load(self, *images: str) -> None:
        """Load images of the shared engine, by whole name, unless they are there."""
        self.loaded += images
        for image in images:
            if request(self.endpoint, "GET", f"/images/{image}/json")[0] == 200:
                continue
            with saved(image).open("rb") as tar:
                status, text = request(self.endpoint, "POST", "/images/load", tar)
            assert status == 200, text

    def get(self, path: str) -> Any:
        """Return the JSON that answers GET `path`."""
        status, text = request(self.endpoint, "GET", path)
        assert status == 200, (path, status, text)
        return json.loads(text)

    def containers(self, label: str = "") -> list[dict[str, Any]]:
        """Return all its containers, running or not, optionally those with a label."""
        filters = json.dumps({"label": [label]} if label else {})
        query = urllib.parse.urlencode({"all": "1", "filters": filters})
        found: list[dict[str, Any]] = self.get(f"/containers/json?{query}")
        return found

    def networks(self) -> set[str]:
        """Return the names of the networks that somebody made."""
        usual = {"none", "host", "bridge", "podman"}
        return {one["Name"] for one in self.get("/networks")} - usual

    def delete(self, path: str) -> None:
        """Remove something; that it is gone is fine."""
        request(self.endpoint, "DELETE", path)

    def remove(self) -> None:
        """Remove all that tests made, and end it. Its images are kept for the next."""
        with contextlib.suppress(AssertionError, OSError, KeyError):
            self.resume()
            self.start()
            self._clear()
            self.stop()
            (self.folder / CLEAN).touch()
        self.kill()
        end_processes(self.folder)
        remove_links(self.folder, self.pool)

    def _clear(self) -> None:
        for one in self.containers():
            self.delete(f"/containers/{one['Id']}?force=1&v=1")
        for name in self.networks():
            self.delete(f"/networks/{name}")
        for volume in self.get("/volumes").get("Volumes") or []:
            self.delete(f"/volumes/{volume['Name']}")
        for image in self.get("/images/json"):
            if not (own_tags(image) & set(self.loaded) or is_kept(image)):
                self.delete(f"/images/{image['Id']}?force=1")
        assert not self.containers()
        assert not self.networks()


class OwnDocker(OwnEngine):
    """A dockerd beside the shared one."""

    kind = "dockerd"

    def command(self) -> list[str]:
        """See the head of this module for bridge and firewall."""
        folder = self.folder
        return [
            "dockerd",
            f"--data-root={folder / 'data'}",
            f"--exec-root={folder / 'exec'}",
            f"--pidfile={folder / 'pid'}",
            f"--host={self.endpoint}",
            f"--bridge={self._bridge()}",
            "--iptables=false",
            "--ip-masq=false",
            "--ip-forward=false",
            "--userland-proxy=false",
            "--shutdown-timeout=5",
            *self.flags,
        ]

    def _bridge(self) -> str:
        """Make the default bridge unless it is there; return its name."""
        name = f"cd-own-{self.pool.number}"
        if name not in psutil.net_if_addrs():
            for act in (
                ["link", "add", name, "type", "bridge"],
                ["address", "add", self.pool.bridge, "dev", name],
                ["link", "set", name, "up"],
            ):
                subprocess.run(["ip", *act], check=True, capture_output=True)
        return name

    def clear_dead(self) -> None:
        """Remove the process id files; a containerd without its dockerd ends first."""
        helper = self.folder / "exec/containerd/containerd.pid"
        with contextlib.suppress(OSError, ValueError, psutil.Error):
            process = psutil.Process(int(helper.read_text()))
            if any(str(self.folder) in word for word in process.cmdline()):
                process.kill()
                process.wait(10)
        for path in (self.folder / "pid", *helper.parent.glob("containerd.[ps]*")):
            path.unlink(missing_ok=True)


class OwnPodman(OwnEngine):
    """Podman's API service with its own storage. Containers outlive the service.

    It takes a registry without TLS at localhost:`registry_port`, and nowhere else.
    """

    kind = "podman"

    def __init__(self, folder: Path, pool: Pool, *flags: str) -> None:
        super().__init__(folder, pool, *flags)
        with socket.create_server(("127.0.0.1", 0)) as taken:
            self.registry_port = int(taken.getsockname()[1])

    def variables(self) -> dict[str, str]:
        """Name the settings that `command` wrote."""
        return {
            "CONTAINERS_CONF": str(self.folder / "containers.conf"),
            "CONTAINERS_REGISTRIES_CONF": str(self.folder / "registries.conf"),
        }

    def command(self) -> list[str]:
        """Write its settings; see `components.md` for the ones machines need."""
        folder = self.folder
        (folder / "containers.conf").write_text(
            f"""\
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
tmp_dir = "{folder}/tmp"
static_dir = "{folder}/static"
volume_path = "{folder}/volumes"
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
[network]
network_backend = "netavark"
network_config_dir = "{folder}/networks"
default_subnet_pools = [{{"base" = "{self.pool.nets}", "size" = 24}}]
"""
        )
        (folder / "registries.conf").write_text(
            "[[registry]]\ninsecure = true\n"
            f'location = "localhost:{self.registry_port}"\n'
        )
        return [
            "podman",
            f"--root={folder / 'data'}",
            f"--runroot={folder / 'run'}",
            *self.flags,
            "system",
            "service",
            "--time=0",
            self.endpoint,
        ]

    def clear_dead(self) -> None:
        """Remove the socket."""
        self.socket.unlink(missing_ok=True)


def saved(image: str) -> Path:
    """Return a file with an image of the shared engine, made once per machine."""
    folder = cache() / "saved"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{image.replace('/', '-').replace(':', '-')}.tar"
    if not path.exists():
        part = path.with_suffix(f".{os.getpid()}")
        with part.open("wb") as tar:
            where = f"/images/{urllib.parse.quote(image, safe='')}/get"
            status, text = request(need_docker(), "GET", where, into=tar)
        assert status == 200, text
        part.rename(path)
    return path


@contextlib.contextmanager
def own_docker(*names: str, live_restore: bool = False) -> Iterator[OwnDocker]:
    """Start a dockerd of our own with base images (`runtime`, `python` …) on it.

    Args:
        live_restore: its containers go on while it is down.
    """
    need("dockerd", "ip")
    images = [need_image(name) for name in names]
    flags = ["--live-restore"] if live_restore else []
    with slot("docker") as (folder, pool):
        yield from running(OwnDocker(folder, pool, *flags), images)


@contextlib.contextmanager
def own_podman(*names: str) -> Iterator[OwnPodman]:
    """Start Podman's API service of our own with base images on it."""
    need("podman", "runc", "catatonit", "ip")
    if not Path("/usr/lib/podman/netavark").exists():
        missing("netavark is not installed (Podman's networks)")
    images = [need_image(name) for name in names]
    with slot("podman") as (folder, pool):
        yield from running(OwnPodman(folder, pool), images)


def running(engine: Any, images: list[str]) -> Iterator[Any]:
    """Yield an engine that runs and has these images; remove what was made on it."""
    if os.geteuid() != 0:
        missing("an engine of the test's own needs root")
    try:
        engine.start()
        engine.load(*images)
        yield engine
    finally:
        engine.remove()
