"""A program that keeps idle connections open, and opens those again that are closed.

    python crowd.py HOST PORT CONNECTIONS SECONDS [UID]

It says "full" as soon as all are open, and at the end how many it has opened.
"""

from __future__ import annotations

import os
import resource
import select
import socket
import sys
import time


def crowd(host: str, port: int, number: int, seconds: float) -> int:
    """Keep `number` connections for `seconds`; return how many were opened."""
    end, opened, told = time.monotonic() + seconds, 0, False
    held: dict[int, socket.socket] = {}
    ends = select.epoll()
    while time.monotonic() < end:
        if len(held) < number:
            one = socket.socket()  # another user may not load what a look-up needs
            one.settimeout(1)
            try:
                one.connect((host, port))
            except OSError:
                one.close()
                time.sleep(0.01)
                continue
            opened += 1
            held[one.fileno()] = one
            ends.register(one, select.EPOLLIN | select.EPOLLRDHUP)
        full = len(held) == number
        if full and not told:
            told = True
            print("full", flush=True)
        for gone, _ in ends.poll(0.05 if full else 0):
            ends.unregister(gone)
            held.pop(gone).close()
    return opened


if __name__ == "__main__":
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if len(sys.argv) > 5:
        os.setuid(int(sys.argv[5]))
    print(crowd(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])))
