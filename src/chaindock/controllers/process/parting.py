"""Let a chaincode end with the node that started it.

Owns:    the words before a program's own that ask the system for it.
Not:     finding what is left all the same (records.py): a program may ignore the signal,
         and its children do not get it.
Entry:   with_node
Source:  launch.md §9 W17

Without it a chaincode of a node that was killed goes on until the next start. That is
not harmless: fabric-shim for Node, 2.5, does not end with its stream; it takes half a
processor, and memory without end.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from typing import Final

_LIMIT_S: Final = 5.0
_PLACES: Final = "/usr/bin:/bin:/usr/sbin:/sbin"


@functools.cache
def with_node() -> tuple[str, ...]:
    """Return what to put before a program: it gets SIGTERM when this process is gone.

    Nothing where the system has no such thing. Blocks for some milliseconds, once.
    """
    # The one of util-linux. Others of that name do not know the option.
    tool = shutil.which("setpriv", path=_PLACES) if sys.platform == "linux" else None
    if tool is None:
        return ()
    words = (tool, "--pdeathsig", "TERM")
    try:
        done = subprocess.run(
            [*words, "/bin/true"], capture_output=True, timeout=_LIMIT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return words if done.returncode == 0 else ()
