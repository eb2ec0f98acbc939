"""Print what the tests need of containers, as `export NAME=VALUE` lines.

Where no engine answers and this is root on a Debian-like Linux, one is installed and
started (scripts/engine.py); then the base images are made (scripts/base_images.py).
Elsewhere nothing is printed and the tests that need it skip; with CI=true that fails.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def run(script: str, *args: str, **env: str) -> list[str]:
    """Return the NAME=VALUE lines that a script of ours prints."""
    done = subprocess.run(
        [sys.executable, str(HERE / script), *args],
        env={**os.environ, **env},  # noqa: TID251
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [line for line in done.stdout.splitlines() if "=" in line]


def main() -> int:
    """Start the engine, make the images, print the lines."""
    try:
        engine = run("engine.py", "start")
        host = dict(line.split("=", 1) for line in engine)["DOCKER_HOST"]
        images = run("base_images.py", DOCKER_HOST=host)
    except (subprocess.CalledProcessError, KeyError, OSError) as error:
        print(f"no engine for the tests: {error}", file=sys.stderr)
        return int(os.environ.get("CI") == "true")  # noqa: TID251
    for line in [*engine, *images]:
        name, _, value = line.partition("=")
        print(f"export {name}={shlex.quote(value)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
