"""What a program of a build or a run is told on this machine: its environment.

Nothing of the node's own environment is inherited. A variable's name is a shell
identifier: the gate is a shell and drops others.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from chaindock.container.environment import CA_VARIABLES, merged_ca, tls_files

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from chaindock.container.contracts import ClientTls

SYSTEM_PATH = ("/usr/local/bin", "/usr/bin", "/bin")
_LANG = "C.UTF-8" if sys.platform != "darwin" else "en_US.UTF-8"


def base_environment(private: Path, path: Iterable[str]) -> dict[str, str]:
    """Return what every program gets; makes HOME and TMPDIR below `private`."""
    home, temp = private / "home", private / "tmp"
    for folder in (home, temp):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return {
        "PATH": ":".join(dict.fromkeys(path)),
        "HOME": str(home),
        "TMPDIR": str(temp),
        "LANG": _LANG,
    }


def run_path(tools: Sequence[str]) -> list[str]:
    """Return the PATH of a running chaincode: where its toolchain lies, the system."""
    return [*(str(Path(tool).parent) for tool in tools), *SYSTEM_PATH]


def ca_environment(bundle: Path, private: Path) -> dict[str, str]:
    """Return the variables that make tools trust `bundle` besides the usual CAs.

    Raises: ConfigInvalid when the bundle cannot be read.
    """
    both = private / "ca.pem"
    both.write_bytes(merged_ca(bundle))
    variables = dict.fromkeys(CA_VARIABLES, str(both))
    return variables | {"NODE_EXTRA_CA_CERTS": str(bundle)}  # it keeps its own list


def write_tls(tls: ClientTls, folder: Path) -> None:
    """Write the TLS files into `folder`."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, content in tls_files(tls).items():
        path = folder / name
        path.touch(mode=0o600)
        path.write_bytes(content)
