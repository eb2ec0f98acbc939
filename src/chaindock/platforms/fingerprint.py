"""Know when code that decides about builds was changed.

An edited planner never meets a build that was planned before the edit.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chaindock.platforms.base import Platform


@functools.cache
def modules_hash(folder: Path) -> str:
    """Return a hash of the modules in a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def planner_fingerprint(planner: type[Platform]) -> str:
    """Return what differs between planners, and after an edit beside one's module."""
    origin = getattr(sys.modules.get(planner.__module__), "__file__", None)
    modules = modules_hash(Path(origin).parent) if origin else ""
    return f"{planner.__qualname__} {modules}"
