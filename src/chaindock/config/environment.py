"""The process environment, and which home a command means.

Every command imports this module, so nothing slow is imported here.
Source: docs/adr/0001-asyncio-one-process.md
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from chaindock.errors import ConfigInvalid

if TYPE_CHECKING:
    from collections.abc import Mapping

HOME_VARIABLE = "CHAINDOCK_HOME"


def environment() -> dict[str, str]:
    """Return a copy of the environment as it is now."""
    return dict(os.environ)  # noqa: TID251  # this is the one place


def quieten_transport() -> None:
    """Keep gRPC from writing a line for each connection that it turns away.

    Whoever reaches the chaincode listener could fill the disk with them. A user who sets
    GRPC_VERBOSITY gets them. Before gRPC is imported for the first time.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # noqa: TID251  # gRPC reads it


def resolve_home(
    flag: str | Path | None = None, env: Mapping[str, str] | None = None
) -> Path:
    """Return the absolute home: `--home`, else CHAINDOCK_HOME, else ~/.chaindock.

    Raises: ConfigInvalid when there is no home directory to start from.
    """
    env = environment() if env is None else env
    named = flag or env.get(HOME_VARIABLE)
    try:
        if named:
            return Path(named).expanduser().absolute()
        return Path.home() / ".chaindock"
    except RuntimeError as error:
        raise ConfigInvalid(
            "there is no home directory for this user",
            hint=f"name a directory with --home DIR or {HOME_VARIABLE}",
            key="home",
        ) from error
