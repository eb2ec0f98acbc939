"""A Docker Engine for the tests: the one that answers, else one of our own.

Usage: engine.py start|stop|status. `start` prints DOCKER_HOST=… on standard output and
everything else on standard error. Needs Python 3.11 or newer, no packages.

The own engine needs root on a Debian-like Linux. It keeps everything under
${XDG_CACHE_HOME:-~/.cache}/chaindock-test/engine: data, sockets, process id, log.
"""

from __future__ import annotations

import fcntl
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

START_S, STOP_S, PING_S = 60.0, 20.0, 5.0
USUAL_SOCKET = Path("/var/run/docker.sock")
PACKAGES = {"dockerd": "docker.io", "iptables": "iptables"}
SECOND = {
    "podman": "podman",
    "runc": "runc",
    "catatonit": "catatonit",
    "/usr/lib/podman/netavark": "netavark",
    "/usr/lib/podman/aardvark-dns": "aardvark-dns",
    "newuidmap": "uidmap",
    "slirp4netns": "slirp4netns",
    "bwrap": "bubblewrap",
}
"""Programs of engines that tests start (tests/support/engines/own_engine.py), and of
those that run without root (tests/support/engines/rootless.py)."""
ENV = os.environ  # noqa: TID251  # a script has no config layer


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def connection(endpoint: str, timeout: float = 600.0) -> http.client.HTTPConnection:
    """Return a connection to `unix://…` or `tcp://…` (without TLS)."""
    scheme, _, where = endpoint.partition("://")
    if scheme == "unix":
        return UnixConnection(where, timeout)
    return http.client.HTTPConnection(where, timeout=timeout)


def answers(endpoint: str) -> bool:
    """Return whether an engine answers there."""
    link = connection(endpoint, PING_S)
    try:
        link.request("GET", "/_ping")
        return link.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        link.close()


def home() -> Path:
    """Return the folder of everything the tests keep between runs."""
    cache = ENV.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
    return Path(cache) / "chaindock-test"


def own_endpoint() -> str:
    """Return where the own engine listens, running or not."""
    return f"unix://{home() / 'engine' / 'docker.sock'}"


def running() -> str | None:
    """Return the endpoint of an engine that answers: the user's, else ours."""
    for endpoint in (ENV.get("DOCKER_HOST"), f"unix://{USUAL_SOCKET}", own_endpoint()):
        if endpoint and answers(endpoint):
            return endpoint
    return None


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def install_packages(wanted: dict[str, str], *, must: bool) -> None:
    """Install from the distribution what is missing; without `must`, if that works."""
    missing = [name for tool, name in wanted.items() if shutil.which(tool) is None]
    if not missing:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        if not must:
            return
        sys.exit(
            f"error: no engine answers, and these are missing: {' '.join(missing)}\n"
            "hint: start Docker and set DOCKER_HOST, or run this as root on Debian"
        )
    say(f"engine: installing {' '.join(missing)}")
    settings = {**ENV, "DEBIAN_FRONTEND": "noninteractive"}
    # The packages would start a service of their own; the tests want theirs alone.
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        for what in (
            ["update", "-q"],
            ["install", "-q", "-y", "--no-install-recommends", *missing],
        ):
            subprocess.run(
                ["apt-get", *what], check=must, env=settings, stdout=sys.stderr
            )
    finally:
        if ours:
            policy.unlink(missing_ok=True)


def start() -> int:
    """Start the own engine unless one answers; print where it is."""
    install_packages(SECOND, must=False)
    if endpoint := running():
        say(f"engine: {endpoint} answers")
        print(f"DOCKER_HOST={endpoint}")
        return 0
    folder = home() / "engine"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several test runs may begin at once
        return start_own(folder)


def clear_dead(folder: Path) -> None:
    """Remove what a killed engine left, which would keep a new one from starting."""
    helper = folder / "exec" / "containerd" / "containerd.pid"
    try:
        pid = int(helper.read_text())
        if str(folder).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
    except (OSError, ValueError):
        pass  # it is dead, or there was none
    for path in (folder / "docker.pid", *helper.parent.glob("containerd.[ps]*")):
        path.unlink(missing_ok=True)


def start_own(folder: Path) -> int:
    """Start the own engine in `folder`, unless somebody just did."""
    if answers(own_endpoint()):
        print(f"DOCKER_HOST={own_endpoint()}")
        return 0
    install_packages(PACKAGES, must=True)
    if os.geteuid() != 0:
        sys.exit("error: starting dockerd needs root\nhint: set DOCKER_HOST")
    if owner() is None:
        clear_dead(folder)
    with (folder / "dockerd.log").open("ab") as log:
        daemon = subprocess.Popen(
            [
                "dockerd",
                f"--data-root={folder / 'data'}",
                f"--exec-root={folder / 'exec'}",
                f"--pidfile={folder / 'docker.pid'}",
                f"--host={own_endpoint()}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and daemon.poll() is None:
        if answers(own_endpoint()):
            say(f"engine: started, process {daemon.pid}")
            print(f"DOCKER_HOST={own_endpoint()}")
            return 0
        time.sleep(0.2)
    if daemon.poll() is None:
        daemon.terminate()
    tail = (folder / "dockerd.log").read_text(errors="replace").splitlines()[-15:]
    say("error: the engine did not start; its last lines:")
    say("\n".join(tail))
    return 1


def owner() -> int | None:
    """Return the process id of the own engine if that process is a dockerd."""
    try:
        pid = int((home() / "engine" / "docker.pid").read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return None
    return pid if b"dockerd" in command.split(b"\0", 1)[0] else None


def stop() -> int:
    """End the own engine: the process in its own file and no other."""
    pid = owner()
    if pid is None:
        say("engine: none of ours runs")
        return 0
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_S
    while time.monotonic() < deadline:
        if owner() is None:
            say(f"engine: process {pid} ended")
            return 0
        time.sleep(0.1)
    say(f"error: process {pid} did not end within {STOP_S:g} s")
    return 1


def status() -> int:
    """Print the engine that answers; 1 when there is none."""
    endpoint = running()
    if endpoint is None:
        say("engine: none answers")
        return 1
    print(f"DOCKER_HOST={endpoint}")
    return 0


def main() -> int:
    acts = {"start": start, "stop": stop, "status": status}
    if len(sys.argv) != 2 or sys.argv[1] not in acts:
        sys.exit("usage: engine.py start|stop|status")
    return acts[sys.argv[1]]()


if __name__ == "__main__":
    sys.exit(main())
