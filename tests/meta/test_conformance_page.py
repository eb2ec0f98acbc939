"""docs/conformance.md tells which test shows which statement about a peer."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_is_generated_from_the_tests():
    script = ROOT / "scripts" / "gen_conformance.py"
    done = subprocess.run(
        [sys.executable, str(script), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
