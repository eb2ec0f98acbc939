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
        max_open_files: of one process of a running chaincode; None = as the node has it.
        max_file_bytes: largest file that it may write; 0 = unlimited.
        memory_bytes: of all processes of a chaincode together; 0 = unlimited.
        tmp_bytes: what it may keep in its private directory; 0 = unlimited.
        close_grace_s: how long what still runs at the node's end may take, in seconds.
        silence_s: a build step that prints nothing for so long has failed.
        limit_s: a build that takes longer has failed, whatever it prints; the clocks of
            its phases are the launch's.
        durable_builds: flush each build to disk, so that it outlives a power failure.
    """

    root: Path
    cache_root: Path
    path: str = "/usr/local/bin:/usr/bin:/bin"
    keep_builds: int = 3
    max_open_files: int | None = 4096
    max_file_bytes: int = 256 * 1024 * 1024
    memory_bytes: int = 2048 * 1024 * 1024
    tmp_bytes: int = 1024 * 1024 * 1024
    close_grace_s: float = 2.0
    silence_s: float = 600.0
    limit_s: float = 24 * 3600.0
    durable_builds: bool = True
