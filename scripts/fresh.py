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

import aiodocker

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
    async with aiodocker.Docker(url=os.environ["DOCKER_HOST"]) as docker:  # noqa: TID251
        container = await docker.containers.create(
            {
                "Image": image,
                "User": "dev",
                "Env": ["HOME=/home/dev", "CI=", "LANG=C.UTF-8"],
                "Cmd": ["/bin/bash", "-c", SCRIPT],
                "Labels": {"org.chaindock.role": "fresh-test"},
                "HostConfig": {"Binds": [f"{seed}:/seed:ro"], "Init": True},
            }
        )
        try:
            async with asyncio.timeout(LIMIT_S):
                await container.start()
                async for chunk in container.log(stdout=True, stderr=True, follow=True):
                    sys.stdout.write(chunk)
                    sys.stdout.flush()
                result = await container.wait()
        finally:
            await container.delete(force=True, v=True)
    return int(result["StatusCode"])


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
