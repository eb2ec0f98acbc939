"""Settings of the process back end.

Owns:    ProcessOptions.
Not:     where values come from (config).
Entry:   ProcessOptions
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class ProcessOptions:
    """How chaincode is built and run as local processes.

    Args:
        root: where runs are kept; belongs to this node alone.
        cache_root: finished builds, and the caches of the toolchains; nodes of one user
            may share it.
        path: where programs are looked for, as a PATH value.
        keep_builds: finished builds kept per label; one in use is never removed.
        max_open_files: limit of a running chaincode; None = as the node has it.
        close_grace_s: how long what still runs at the node's end may take, in seconds.
        durable_builds: flush each build to disk, so that it outlives a power failure.
    """

    root: Path
    cache_root: Path
    path: str = "/usr/local/bin:/usr/bin:/bin"
    keep_builds: int = 3
    max_open_files: int | None = 4096
    close_grace_s: float = 2.0
    durable_builds: bool = True
