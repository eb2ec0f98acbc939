"""What chaincode and builds are told, whatever they run in.

Names, order and encodings of variables and TLS files are Fabric's.
Source: docs/fabric/builds.md#environment
"""

from __future__ import annotations

import base64
import ssl
from pathlib import Path

from chaindock.container.contracts import ClientTls, PeerConnection
from chaindock.errors import ConfigInvalid, os_errors_as
from chaindock.ids import Ccid

CA_VARIABLES = (
    "SSL_CERT_FILE",
    "NODE_EXTRA_CA_CERTS",
    "PIP_CERT",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "npm_config_cafile",
)
"""Variables that name a CA file; most tools then trust only the CAs in that file."""
CONTENT_VARIABLES = ("GOFLAGS",)
"""Build variables that change the result, not only where things come from."""
_SYSTEM_CA = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
_TLS_FILES = {
    "CORE_TLS_CLIENT_KEY_PATH": "client.key",
    "CORE_TLS_CLIENT_CERT_PATH": "client.crt",
    "CORE_TLS_CLIENT_KEY_FILE": "client_pem.key",
    "CORE_TLS_CLIENT_CERT_FILE": "client_pem.crt",
    "CORE_PEER_TLS_ROOTCERT_FILE": "peer.crt",
}


def peer_variables(
    ccid: Ccid, peer: PeerConnection, tls_folder: str | None
) -> dict[str, str]:
    """Return the variables by which chaincode finds the node, and `tls_files`, if any."""
    files = {} if tls_folder is None else _TLS_FILES
    return {
        "CORE_CHAINCODE_ID_NAME": ccid,
        **peer.logging,
        "CORE_PEER_TLS_ENABLED": "false" if tls_folder is None else "true",
        **{variable: f"{tls_folder}/{name}" for variable, name in files.items()},
        "CORE_PEER_LOCALMSPID": peer.msp_id,
    }


def server_variables(ccid: Ccid, listen: str) -> dict[str, str]:
    """Return the names under which shims look for address and id when serving."""
    return {
        "CHAINCODE_SERVER_ADDRESS": listen,
        "CORE_CHAINCODE_ADDRESS": listen,
        "CHAINCODE_ID": ccid,
        "CORE_CHAINCODE_ID": ccid,
    }


def tls_files(tls: ClientTls) -> dict[str, bytes]:
    """Return name and content of the TLS files.

    The `_PATH` variables name base64 on one line without a line end (the Java shim
    insists), the others the PEM text itself.
    """
    key, cert = tls.key_pem.encode(), tls.cert_pem.encode()
    return {
        "client.key": base64.b64encode(key),
        "client.crt": base64.b64encode(cert),
        "client_pem.key": key,
        "client_pem.crt": cert,
        "peer.crt": tls.root_pem.encode(),
    }


def merged_ca(bundle: Path, trusted: bytes = b"") -> bytes:
    """Return the user's extra certificates and the usual ones, as one PEM file.

    Most tools take one file instead of their own list, so it must hold both. `trusted`
    are the usual ones; b"" = those of this machine.

    Raises: ConfigInvalid when the bundle cannot be read.
    """
    hint = "give a readable PEM file with --ca"
    with os_errors_as(ConfigInvalid, f"CA bundle {str(bundle)!r}", hint=hint, key="ca"):
        extra = bundle.read_bytes()
    return extra.rstrip() + b"\n" + (trusted or _system_ca())


def _system_ca() -> bytes:
    for path in (ssl.get_default_verify_paths().openssl_cafile, *_SYSTEM_CA):
        try:
            return Path(path).read_bytes()
        except OSError:
            continue
    return b""
