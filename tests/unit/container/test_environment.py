"""What chaincode is told is what a Fabric peer tells it."""

from __future__ import annotations

import base64

from chaindock.container.contracts import ClientTls, PeerConnection
from chaindock.container.environment import peer_variables, server_variables, tls_files
from chaindock.ids import Ccid
from support.doubles.backend import CountingListener

CCID = Ccid("basic:" + "0" * 64)
TLS = ClientTls("KEY\npem\n", "CERT\npem\n", "ROOT\npem\n")


def peer(tls: ClientTls | None = None) -> PeerConnection:
    logging = {"CORE_CHAINCODE_LOGGING_LEVEL": "INFO"}
    return PeerConnection(CountingListener(), "Org1MSP", tls, logging)


def test_every_tls_variable_names_a_file_in_the_encoding_the_shims_insist_on():
    files = tls_files(TLS)
    told = peer_variables(CCID, peer(TLS), "/tls")
    found = {
        name: files.pop(path.removeprefix("/tls/"))
        for name, path in told.items()
        if path.startswith("/tls/")
    }
    assert found == {
        "CORE_TLS_CLIENT_KEY_PATH": base64.b64encode(b"KEY\npem\n"),
        "CORE_TLS_CLIENT_CERT_PATH": base64.b64encode(b"CERT\npem\n"),
        "CORE_TLS_CLIENT_KEY_FILE": b"KEY\npem\n",
        "CORE_TLS_CLIENT_CERT_FILE": b"CERT\npem\n",
        "CORE_PEER_TLS_ROOTCERT_FILE": b"ROOT\npem\n",
    }
    assert not files


def test_without_tls_no_file_is_named():
    assert peer_variables(CCID, peer(), None) == {
        "CORE_CHAINCODE_ID_NAME": CCID,
        "CORE_CHAINCODE_LOGGING_LEVEL": "INFO",
        "CORE_PEER_TLS_ENABLED": "false",
        "CORE_PEER_LOCALMSPID": "Org1MSP",
    }


def test_a_server_finds_address_and_id_under_the_names_of_every_shim():
    told = server_variables(CCID, "127.0.0.1:1")
    assert {name for name, value in told.items() if value == CCID} == {
        "CHAINCODE_ID",
        "CORE_CHAINCODE_ID",
    }
    assert {name for name, value in told.items() if value != CCID} == {
        "CHAINCODE_SERVER_ADDRESS",
        "CORE_CHAINCODE_ADDRESS",
    }
