"""Follow the README in a bare container: what is missing there is our defect.

The container has the distribution's Python with venv, make and git, and nothing else.
A clone of this repository's last commit runs `make demo`, and again warm, then
`make quick`. The user in the container has no privileges.

Needs DOCKER_HOST, and CHAINDOCK_TEST_IMAGE_FRESH (scripts/base_images.py makes it).
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from chaindock.controllers.docker.engine import Engine
from chaindock.controllers.docker.options import EndpointOptions
from chaindock.controllers.docker.streams import OutputLines

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = """
set -eu
cp /seed/ca.pem /tmp/ca.pem 2>/dev/null || : > /tmp/ca.pem
if [ -s /tmp/ca.pem ]; then export PIP_CERT=/tmp/ca.pem SSL_CERT_FILE=/tmp/ca.pem; fi
cd "$HOME"
git clone -q -c advice.detachedHead=false /seed/chaindock.bundle chaindock
cd chaindock
echo "== make demo (cold)"; make demo
echo "== make demo (warm)"; time -p make demo
echo "== make quick"; make quick
test -z "$(ps -e -o args= 2>/dev/null | grep '[c]haindock up' || true)"
echo "== fresh: all good"
"""
LIMIT_S = 1500


async def run(image: str, seed: Path) -> int:
    """Run SCRIPT in `image` and stream its output."""
    host = os.environ["DOCKER_HOST"]  # noqa: TID251
    engine = await Engine.connect(EndpointOptions(docker_host=host))
    body = {
        "Image": image,
        "User": "dev",
        "Env": ["HOME=/home/dev", "CI=", "LANG=C.UTF-8"],
        "Cmd": ["/bin/bash", "-c", SCRIPT],
        "Labels": {"org.chaindock.role": "fresh-test"},
        "HostConfig": {"Binds": [f"{seed}:/seed:ro"], "Init": True},
    }
    container = await engine.create_container(None, body)
    try:
        async with asyncio.timeout(LIMIT_S):
            await engine.start_container(container)
            lines = OutputLines(lambda line, _: print(line, flush=True))
            async for data in engine.logs(container, None, follow="1"):
                await lines.feed(data)
            lines.end()
            return await engine.wait_container(container)
    finally:
        await engine.remove_container(container)
        await engine.aclose()


def main() -> int:
    """Bundle the last commit and run it."""
    image = os.environ.get("CHAINDOCK_TEST_IMAGE_FRESH")  # noqa: TID251
    if not image:
        if os.environ.get("CI") == "true":  # noqa: TID251
            print("error: no engine or no image for the fresh test", file=sys.stderr)
            return 1
        print("skipped: no engine or no image for the fresh test")
        return 0
    with tempfile.TemporaryDirectory(prefix="chaindock-fresh-") as scratch:
        seed = Path(scratch)
        seed.chmod(0o755)
        bundle = [
            "git",
            "bundle",
            "create",
            "-q",
            str(seed / "chaindock.bundle"),
            "HEAD",
        ]
        subprocess.run(bundle, cwd=ROOT, check=True)
        bundle_ca = os.environ.get("SSL_CERT_FILE")  # noqa: TID251
        if bundle_ca and Path(bundle_ca).is_file():
            (seed / "ca.pem").write_bytes(Path(bundle_ca).read_bytes())
        for file in seed.iterdir():
            file.chmod(0o644)
        return asyncio.run(run(image, seed))


if __name__ == "__main__":
    sys.exit(main())
