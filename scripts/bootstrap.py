"""Make a virtual environment with exactly the pinned packages, and Chaindock in it.

Needs Python 3.11 to 3.13 with the venv module; nothing else. Says what it downloads.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import venv
from pathlib import Path

LOWEST, HIGHEST = (3, 11), (3, 13)


def main() -> int:
    """Run from the Makefile."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venv", type=Path, required=True)
    parser.add_argument("--requirements", type=Path, required=True)
    args = parser.parse_args()
    if not LOWEST <= sys.version_info[:2] <= HIGHEST:
        found = ".".join(map(str, sys.version_info[:3]))
        print(
            f"error: expected Python 3.11 to 3.13, found {found} ({sys.executable})\n"
            "hint: name another one, e.g. make PYTHON=python3.12 …",
            file=sys.stderr,
        )
        return 1
    python = args.venv / "bin" / "python"
    if not python.exists():
        print(f"set-up: virtual environment in {args.venv}", flush=True)
        try:
            venv.create(args.venv, with_pip=True)
        except subprocess.CalledProcessError:
            print(
                "error: this Python cannot make a virtual environment with pip\n"
                "hint: on Debian and Ubuntu install the package python3-venv",
                file=sys.stderr,
            )
            return 1
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install"]
    print(f"set-up: packages of {args.requirements}", flush=True)
    for what in (
        [*pip, "--require-hashes", "-r", str(args.requirements)],
        [*pip, "--no-deps", "-e", "."],
    ):
        done = subprocess.run([*what, "--no-input"], check=False)
        if done.returncode != 0:
            print(
                f"error: pip ended with {done.returncode}\nhint: behind a proxy set "
                "HTTPS_PROXY; for a private CA set PIP_CERT to its PEM file",
                file=sys.stderr,
            )
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
