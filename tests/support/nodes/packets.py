"""Packets that this machine's filter takes away, as a firewall would."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from typing import TYPE_CHECKING

from support.need import missing

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def dropped(address: str) -> Iterator[None]:
    """Let nothing arrive at an address host:port of this machine, for the block."""
    if os.geteuid() != 0 or shutil.which("iptables") is None:
        missing("root and iptables are needed to set rules")
    host, _, port = address.rpartition(":")
    # Before every other table, so no rule of the node comes first.
    rule = ["PREROUTING", "-p", "tcp", "-d", host, "--dport", port, "-j", "DROP"]
    _iptables("-I", rule)
    try:
        yield
    finally:
        _iptables("-D", rule)


def _iptables(action: str, rule: list[str]) -> None:
    argv = ["iptables", "-w", "5", "-t", "raw", action, *rule]
    subprocess.run(argv, check=True, timeout=20)
