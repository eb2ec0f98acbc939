"""What a program of a build or a run is told: its environment.

Owns:    minimal environments, CA variables, TLS files.
Not:     which variables a language wants (platforms).
Entry:   base_environment, ca_environment, peer_environment, write_tls
Holds:   nothing of the node's own environment is inherited; a variable's name is a shell
         identifier (the gate is a shell and drops others).
Source:  launch.md §3.7, §9 W49, W54; shim-protocol.md §1.5-1.7; needs.md row 5
"""

from __future__ import annotations

import base64
import ssl
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from chaindock.errors import ConfigInvalid

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from chaindock.container.contracts import ClientTls, PeerConnection
    from chaindock.ids import Ccid

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
    names = (
        "SSL_CERT_FILE",
        "PIP_CERT",
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
        "GIT_SSL_CAINFO",
        "npm_config_cafile",
    )
    return {**dict.fromkeys(names, str(both)), "NODE_EXTRA_CA_CERTS": str(bundle)}


def _system_ca() -> bytes:
    for path in (ssl.get_default_verify_paths().openssl_cafile, *_SYSTEM_CA):
        try:
            return Path(path).read_bytes()
        except OSError:
            continue
    return b""


def peer_environment(ccid: Ccid, peer: PeerConnection, *, tls: bool) -> dict[str, str]:
    """Return what a chaincode that calls back is told about the node."""
    return {
        **peer.logging,
        "CORE_CHAINCODE_ID_NAME": ccid,
        "CORE_PEER_TLS_ENABLED": "true" if tls else "false",
        "CORE_PEER_LOCALMSPID": peer.msp_id,
    }


def server_environment(ccid: Ccid, listen: str) -> dict[str, str]:
    """Return the names under which the shims look for address and id when serving."""
    return {
        "CHAINCODE_SERVER_ADDRESS": listen,
        "CORE_CHAINCODE_ADDRESS": listen,
        "CHAINCODE_ID": ccid,
        "CORE_CHAINCODE_ID": ccid,
    }


def write_tls(tls: ClientTls, folder: Path) -> dict[str, str]:
    """Write the TLS files below `folder` and return the variables that name them.

    The `_PATH` pair is base64 on one line without a line end (the Java shim insists),
    the `_FILE` pair is PEM.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    files = {
        "CORE_TLS_CLIENT_KEY_PATH": ("client.key", _base64(tls.key_pem)),
        "CORE_TLS_CLIENT_CERT_PATH": ("client.crt", _base64(tls.cert_pem)),
        "CORE_TLS_CLIENT_KEY_FILE": ("client_pem.key", tls.key_pem),
        "CORE_TLS_CLIENT_CERT_FILE": ("client_pem.crt", tls.cert_pem),
        "CORE_PEER_TLS_ROOTCERT_FILE": ("peer.crt", tls.root_pem),
    }
    for name, text in files.values():
        path = folder / name
        path.touch(mode=0o600)
        path.write_text(text)
    return {variable: str(folder / name) for variable, (name, _) in files.items()}


def _base64(pem: str) -> str:
    return base64.b64encode(pem.encode()).decode()
