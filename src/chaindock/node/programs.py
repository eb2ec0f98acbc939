"""Let programs that a user starts by hand dial the node (chaincode.mode: dev).

With TLS, the files that such a program shows lie in the home while the node runs.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from chaindock.container.environment import tls_files
from chaindock.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from chaindock.chaincode.server import ChaincodeListener
    from chaindock.container.contracts import ClientTls

_log = get_logger("node")


@asynccontextmanager
async def programs_admitted(
    listener: ChaincodeListener, folder: Path
) -> AsyncIterator[None]:
    """Listen for programs; keep their TLS files in `folder` until this is left.

    The names of the files are those that launched chaincode gets.

    Raises: StartFailed when the address cannot be bound.
    """
    address, tls = await listener.listen_for_programs()
    try:
        await asyncio.to_thread(_fill, folder, tls)
        files = str(folder) if tls else None
        _log.info("programs started by hand dial here", address=address, tls=files)
        yield
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def _fill(folder: Path, tls: ClientTls | None) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # of a node that was killed
    if tls is None:
        return
    folder.mkdir(mode=0o700, parents=True)
    for name, content in tls_files(tls).items():
        fd = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(fd, "wb") as file:  # noqa: PTH123  # it has no other name for an fd
            file.write(content)
