"""The images that the container tests run on, made on this machine.

Usage: base_images.py. Prints one CHAINDOCK_TEST_IMAGE_NAME=IMAGE line per image on
standard output, everything else on standard error. Needs Python 3.11 or newer, no
packages; an engine (engine.py), root, debootstrap, and Go and Node on this machine.

An image carries the hash of its recipe as tag, so it is made once per machine.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import IO

import engine

SUITE = "bookworm"
NODE_MAJOR = 20
PLAIN_LIBRARIES = ("libc.", "libm.", "libdl.", "libpthread.", "libstdc++", "libgcc_s")
CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
UNUSED_GO = {"api", "doc", "misc", "test"}
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


def apt(*packages: str) -> str:
    """Return the recipe line that installs distribution packages.

    The certificates serve this step only: images must not trust this machine's, or the
    tests of the CA setting would pass without it.
    """
    return (
        "RUN echo 'Acquire::https::CaInfo \"/tmp/ca.pem\";' > /etc/apt/apt.conf.d/ca"
        " && apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y"
        f" --no-install-recommends {' '.join(packages)}"
        " && rm -rf /etc/apt/apt.conf.d/ca /tmp/ca.pem /var/lib/apt/lists/*\n"
    )


RECIPES = {
    "runtime": "FROM {base}\n",
    "golang": (
        "FROM {base}\nADD files.tar /usr/local/\n"
        "ENV PATH=/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:"
        "/usr/sbin:/usr/bin:/sbin:/bin GOTOOLCHAIN=local\n"
    ),
    "node": (
        "FROM {base}\nADD files.tar /usr/local/\n"
        "RUN ln -s ../lib/node_modules/npm/bin/npm-cli.js /usr/local/bin/npm"
        " && ln -s ../lib/node_modules/npm/bin/npx-cli.js /usr/local/bin/npx\n"
    ),
    "python": "FROM {base}\nADD files.tar /tmp/\n" + apt("python3", "python3-venv"),
    # What README asks for, and nothing else (scripts/fresh.py).
    "fresh": (
        "FROM {base}\nADD files.tar /tmp/\n"
        + apt("python3", "python3-venv", "make", "git")
        + "RUN useradd --create-home --shell /bin/bash dev\n"
    ),
}
Files = Callable[[tarfile.TarFile], None]


def fail(problem: str, hint: str) -> None:
    sys.exit(f"error: {problem}\nhint: {hint}")


def output(*command: str) -> str:
    """Return what a program prints; "" when it is missing or fails."""
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def call(endpoint: str, path: str, body: IO[bytes]) -> bytes:
    """Return what the engine answers to a POST; exit when it refuses."""
    link = engine.connection(endpoint)
    headers = {"Content-Type": "application/x-tar", "Transfer-Encoding": "chunked"}
    link.request("POST", path, body=body, headers=headers, encode_chunked=True)
    answer = link.getresponse()
    text = answer.read()
    link.close()
    if answer.status >= 400 or b'"errorDetail"' in text:
        fail(f"POST {path}: {answer.status} {text[-800:].decode()}", "see above")
    return text


def exists(endpoint: str, image: str) -> bool:
    """Return whether the engine has `image`."""
    link = engine.connection(endpoint)
    link.request("GET", f"/images/{image}/json")
    found = link.getresponse().status == 200
    link.close()
    return found


def apt_mirror() -> str | None:
    """Return where this machine gets the packages of the suite; None = unknown."""
    listed = output(
        "apt-get",
        "indextargets",
        "--format",
        "$(REPO_URI) $(RELEASE)",
        "Created-By: Packages",
    )
    for line in listed.splitlines():
        where, _, suite = line.partition(" ")
        if suite == SUITE:
            return where
    return None


def copy_apt_settings(tree: Path) -> None:
    """Make apt in `tree` fetch the way it does here (proxies, validity checks)."""
    for path in sorted(Path("/etc/apt/apt.conf.d").glob("*")):
        text = path.read_text(errors="replace")
        if "Acquire::" in text and "Invoke" not in text:
            (tree / "etc/apt/apt.conf.d" / path.name).write_text(text)


def make_base(endpoint: str, image: str) -> None:
    """Make a minimal Debian and import it."""
    if shutil.which("debootstrap") is None and shutil.which("apt-get"):
        subprocess.run(
            ["apt-get", "install", "-q", "-y", "debootstrap"],
            check=False,
            stdout=sys.stderr,
        )
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        fail("base images need root and debootstrap", "run this as root on Debian")
    with tempfile.TemporaryDirectory(dir=engine.home()) as folder:
        tree = Path(folder) / "tree"
        mirror = apt_mirror()
        command = ["debootstrap", "--variant=minbase", "--include=ca-certificates"]
        log = engine.home() / "debootstrap.log"
        with log.open("w") as told:
            done = subprocess.run(
                [*command, SUITE, str(tree), *([mirror] if mirror else [])],
                check=False,
                stdout=told,
                stderr=told,
            )
        if done.returncode != 0:
            fail(log.read_text()[-1500:], f"debootstrap failed; its log is {log}")
        copy_apt_settings(tree)
        for path in (tree / "var/cache/apt/archives").glob("*.deb"):
            path.unlink()
        with tempfile.TemporaryFile(dir=engine.home()) as packed:
            subprocess.run(
                ["tar", "-C", str(tree), "--exclude=./dev/*", "-c", "."],
                check=True,
                stdout=packed,
            )
            packed.seek(0)
            name, _, tag = image.partition(":")
            call(endpoint, f"/images/create?fromSrc=-&repo={name}&tag={tag}", packed)


def build(endpoint: str, image: str, recipe: str, files: Files) -> None:
    """Build `image` from the recipe and the files it adds."""
    with (
        tempfile.TemporaryFile(dir=engine.home()) as inner,
        tempfile.TemporaryFile(dir=engine.home()) as outer,
    ):
        with tarfile.open(fileobj=inner, mode="w") as tar:
            files(tar)
        dockerfile = io.BytesIO(recipe.encode())
        with tarfile.open(fileobj=outer, mode="w") as tar:
            for name, data in (("Dockerfile", dockerfile), ("files.tar", inner)):
                entry = tarfile.TarInfo(name)
                entry.size = data.seek(0, 2)
                data.seek(0)
                tar.addfile(entry, data)
        outer.seek(0)
        proxies = {n: engine.ENV[n] for n in PROXIES if engine.ENV.get(n)}
        arguments = urllib.parse.quote(json.dumps(proxies))
        call(
            endpoint,
            f"/build?t={image}&networkmode=host&rm=1&forcerm=1&buildargs={arguments}",
            outer,
        )


def no_files(_tar: tarfile.TarFile) -> None:
    """Add nothing."""


def go_files(tar: tarfile.TarFile) -> None:
    """Add this machine's Go."""
    root = Path(output("go", "env", "GOROOT"))
    for path in sorted(root.iterdir()):
        if path.name not in UNUSED_GO:
            tar.add(path, f"go/{path.name}")


def fetched_node(folder: str) -> Path:
    """Return a Node fetched as an ordinary npm package into `folder`."""
    subprocess.run(
        ["npm", "install", "--prefix", folder, f"node@{NODE_MAJOR}"],
        check=True,
        stdout=sys.stderr,
    )
    return Path(folder) / "node_modules/node/bin/node"


def node_files(tar: tarfile.TarFile) -> None:
    """Add this machine's Node, or a fetched one when that needs other libraries."""
    with tempfile.TemporaryDirectory(dir=engine.home()) as folder:
        program = Path(output("node", "-p", "process.execPath"))
        libraries = [
            line.split()[0] for line in output("ldd", str(program)).split("\n")
        ]
        plain = ("linux-vdso", "/lib", *PLAIN_LIBRARIES)
        if not host_node_fits() or not all(n.startswith(plain) for n in libraries):
            program = fetched_node(folder)
        tar.add(program, "bin/node")
    npm = Path(shutil.which("npm") or "").resolve().parents[1]
    tar.add(npm, "lib/node_modules/npm")


def host_node_fits() -> bool:
    """Return whether this machine's Node has the wanted version."""
    return output("node", "--version").startswith(f"v{NODE_MAJOR}.")


def ca_file(tar: tarfile.TarFile) -> None:
    """Add the certificates that this machine trusts."""
    if CA_BUNDLE.exists():
        tar.add(CA_BUNDLE.resolve(), "ca.pem")


FILES: dict[str, tuple[Files, str, Callable[[], str]]] = {
    "runtime": (no_files, "", str),
    "golang": (go_files, "go", lambda: output("go", "version")),
    "node": (node_files, "npm", lambda: output("node", "--version")),
    "python": (ca_file, "", str),
    "fresh": (ca_file, "", str),
}


def recipe_hash(*parts: str) -> str:
    """Return the tag of a recipe."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def main() -> int:
    endpoint = engine.running()
    if endpoint is None:
        fail("no engine answers", "run engine.py start, or set DOCKER_HOST")
    engine.home().mkdir(parents=True, exist_ok=True)
    with (engine.home() / "images.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        base = f"chaindock-test/base:{recipe_hash('1', SUITE, platform.machine())}"
        if not exists(endpoint, base):
            engine.say(f"images: making {base}")
            make_base(endpoint, base)
        print(f"CHAINDOCK_TEST_IMAGE_BASE={base}", flush=True)
        for name, recipe in RECIPES.items():
            files, tool, version = FILES[name]
            if tool and shutil.which(tool) is None:
                engine.say(f"images: no {name}: {tool} is not on the PATH")
                continue
            image = f"chaindock-test/{name}:{recipe_hash(base, recipe, version())}"
            if not exists(endpoint, image):
                engine.say(f"images: making {image}")
                build(endpoint, image, recipe.format(base=base), files)
            print(f"CHAINDOCK_TEST_IMAGE_{name.upper()}={image}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
