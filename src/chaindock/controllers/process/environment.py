"""What a program of a build or a run is told: its environment.

Owns:    minimal environments, CA variables, TLS files.
Not:     which variables a language wants (platforms).
Entry:   base_environment, ca_environment, write_tls
Holds:   nothing of the node's own environment is inherited; a variable's name is a shell
         identifier (the gate is a shell and drops others).
Source:  launch.md §3.7, §9 W49, W54; shim-protocol.md §1.5-1.7; needs.md row 5
"""

from __future__ import annotations

import ssl
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from chaindock.container.environment import CA_VARIABLES, tls_files
from chaindock.errors import ConfigInvalid

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from chaindock.container.contracts import ClientTls

SYSTEM_PATH = ("/usr/local/bin", "/usr/bin", "/bin")
_LANG = "C.UTF-8" if sys.platform != "darwin" else "en_US.UTF-8"
_SYSTEM_CA = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)


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

    Most of them replace the tool's own list, so they name a file that holds both.

    Raises:
        ConfigInvalid: the bundle cannot be read.
    """
    try:
        extra = bundle.read_bytes()
    except OSError as error:
        raise ConfigInvalid(
            f"CA bundle {str(bundle)!r} cannot be read: {error.strerror}",
            hint="give a PEM file with --ca",
            key="ca",
        ) from error
    both = private / "ca.pem"
    both.write_bytes(_system_ca() + b"\n" + extra)
    variables = dict.fromkeys(CA_VARIABLES, str(both))
    return variables | {"NODE_EXTRA_CA_CERTS": str(bundle)}  # it keeps its own list


def _system_ca() -> bytes:
    for path in (ssl.get_default_verify_paths().openssl_cafile, *_SYSTEM_CA):
        try:
            return Path(path).read_bytes()
        except OSError:
            continue
    return b""


def write_tls(tls: ClientTls, folder: Path) -> None:
    """Write the TLS files into `folder`."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, content in tls_files(tls).items():
        path = folder / name
        path.touch(mode=0o600)
        path.write_bytes(content)
