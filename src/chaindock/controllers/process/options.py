"""Options of the process back end."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from chaindock.options import option, setting
from chaindock.values import GIB, MIB, Bytes, Memory, Seconds


@dataclass(frozen=True)
class ProcessOptions:
    """How chaincode is built and run as local processes."""

    root: Path
    """Where runs are kept; belongs to this node alone."""
    cache_root: Path = field(metadata=setting("chaindock.process.cache"))
    """Directory of finished builds and of the toolchains' caches; the nodes of one user
    may share it."""
    path: str = "/usr/local/bin:/usr/bin:/bin"
    """Directories in which builds look for toolchains."""
    sandbox: Literal["auto", "require", "off"] = option(
        "auto", "chaindock.process.sandbox"
    )
    """Isolation of processes by bubblewrap: auto = where it works, require or off."""
    keep_builds: int = 3
    """Finished builds kept per label; one in use is never removed."""
    max_open_files: int = 4096
    """Of one process of a running chaincode."""
    max_file_bytes: Bytes = option(256 * MIB, "chaindock.process.maxFileSize")
    """Largest file that a chaincode may write."""
    memory_bytes: Memory = option(2 * GIB, "vm.docker.hostConfig.Memory")
    tmp_bytes: Bytes = option(GIB, "chaindock.process.tmp")
    """Size of the private directory of a chaincode; in a sandbox it counts for
    memory."""
    silence_s: Seconds = option(600.0, "chaindock.build.silence")
    limit_s: float = 24 * 3600.0
    """Longest build in seconds; the launch's own limits are much shorter."""
