"""A shell that is made ready for the `peer` command changes nothing about the node."""

import dataclasses
from pathlib import Path

import pytest

from chaindock.config.load import load
from chaindock.config.sections import KEYS

SHELL = {
    "FABRIC_CFG_PATH": "/etc/hyperledger/fabric",
    "ORDERER_CA": "/organizations/tlsca.pem",
    "CORE_PEER_ADDRESS": "127.0.0.1:9051",
    "CORE_PEER_LOCALMSPID": "Org2MSP",
    "CORE_PEER_LOCALMSPTYPE": "bccsp",
    "CORE_PEER_MSPCONFIGPATH": "/organizations/users/Admin@org2.example.com/msp",
    "CORE_PEER_CLIENT_CONNTIMEOUT": "3s",
    "CORE_PEER_TLS_ENABLED": "false",
    "CORE_PEER_TLS_ROOTCERT_FILE": "/organizations/tls/ca.crt",
    "CORE_PEER_TLS_SERVERHOSTOVERRIDE": "peer0.org2.example.com",
    "CORE_PEER_TLS_CLIENTAUTHREQUIRED": "true",
    "CORE_PEER_TLS_CLIENTCERT_FILE": "/organizations/tls/client.crt",
    "CORE_PEER_TLS_CLIENTKEY_FILE": "/organizations/tls/client.key",
}


def test_the_node_is_the_same_in_a_shell_of_the_peer_command(tmp_path: Path):
    """Also when the directory that FABRIC_CFG_PATH names is not there."""
    plain, found = load(tmp_path, env={}), load(tmp_path, env=SHELL)
    assert found.settings == plain.settings
    same = dataclasses.replace(found, ignored=(), chaincodes=plain.chaincodes)
    assert same == plain


def test_the_file_of_the_peer_command_is_not_read(tmp_path: Path):
    (tmp_path / "fabric").mkdir()
    text = "peer: {localMspId: Org2MSP, listenAddress: '0.0.0.0:7051'}\n"
    (tmp_path / "fabric" / "core.yaml").write_text(text)
    env = {"FABRIC_CFG_PATH": str(tmp_path / "fabric")}
    assert load(tmp_path, env=env).settings == load(tmp_path, env={}).settings


@pytest.mark.parametrize("name", sorted(SHELL.keys() - {"ORDERER_CA"}))
def test_what_is_not_used_is_told(tmp_path: Path, name: str):
    ignored = load(tmp_path, env={name: SHELL[name]}).ignored
    assert [(one.key, one.origin) for one in ignored] == [(name, f"env {name}")]
    if "LOCALMSPID" in name or "TLS_ENABLED" in name or "FABRIC" in name:
        assert "peer" in ignored[0].reason


def test_other_variables_of_a_peer_are_taken(tmp_path: Path):
    env = {"CORE_PEER_ID": "peer7", "CORE_CHAINCODE_EXECUTETIMEOUT": "50s"}
    found = load(tmp_path, env=env)
    assert (found.node.peer_id, found.calls.execute_timeout_s) == ("peer7", 50)


def test_no_setting_has_a_variable_of_the_peer_command():
    names = {name for key in KEYS for name in key.variables}
    assert not names & SHELL.keys()
    assert not [name for name in names if name.startswith("CORE_PEER_TLS_")]
