"""Pin the dependencies of pyproject.toml with hashes into requirements/*.txt.

Needs `uv` on the PATH. The files name no registry.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FILES: dict[str, list[str]] = {"run": [], "dev": ["--group", "dev"]}
COMPILE = [
    *("uv", "pip", "compile", "--quiet", "--universal", "--python-version", "3.11"),
    *("--generate-hashes", "--no-header", "--no-annotate", "--prerelease", "allow"),
    "pyproject.toml",
]


def main() -> int:
    """Write the files."""
    for name, groups in FILES.items():
        out = Path("requirements") / f"{name}.txt"
        subprocess.run([*COMPILE, *groups, "--output-file", str(out)], check=True)
        lines = out.read_text().splitlines(keepends=True)
        options = ("--find-links", "--index-url", "--extra-index-url", "-f ", "-i ")
        out.write_text("".join(x for x in lines if not x.startswith(options)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
