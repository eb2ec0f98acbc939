"""What `connect` and `env` print, as shells and people read it."""

import json
import shutil
import subprocess

import pytest
from click.testing import CliRunner

from chaindock.cli.connect import snippet
from chaindock.cli.main import root
from support.doubles.fake_connections import connection

FOLDER = 'it\'s "here" $HOME `x` \\ ü'


def read_by(shell: str, lines: str) -> dict[str, str]:
    """Return the variables of a shell that has evaluated the lines."""
    if shell in {"zsh", "fish"} and shutil.which(shell) is None:
        pytest.skip(f"{shell} is not on the PATH")
    done = subprocess.run(
        [shell, "-c", f"{lines}\nenv -0"],
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    found = filter(None, done.stdout.split("\0"))
    return dict(line.split("=", 1) for line in found)


def test_a_shell_is_ready_for_the_peer_command(run, node, home):
    found = read_by("sh", run("env", "peer", "--org", "Org1").stdout)
    assert found["FABRIC_CFG_PATH"] == str(home / "connections" / "peer")
    assert found["CORE_PEER_ADDRESS"] == "127.0.0.1:7051"
    assert found["CORE_PEER_LOCALMSPID"] == "Org1MSP"
    assert found["CORE_PEER_MSPCONFIGPATH"] == str(home / "Admin" / "msp")
    assert found["CORE_PEER_TLS_ENABLED"] == "true"
    assert found["CORE_PEER_TLS_ROOTCERT_FILE"] == str(home / "ca.crt")
    assert found["ORDERER_CA"] == str(home / "orderer.crt")
    assert "CORE_PEER_TLS_CLIENTAUTHREQUIRED" not in found


@pytest.mark.parametrize("shell", ["sh", "bash", "zsh", "fish"])
def test_what_another_network_left_in_the_shell_is_removed(run, node, shell):
    left = "CORE_PEER_TLS_SERVERHOSTOVERRIDE", "CORE_PEER_TLS_CLIENTAUTHREQUIRED"
    word = "set -gx {} x" if shell == "fish" else "export {}=x"
    before = "\n".join(word.format(name) for name in left)
    lines = run("env", "peer", "--shell", shell).stdout
    found = read_by(shell, f"{before}\n{lines}")
    assert not found.keys() & {*left}
    # Names that were not set are no error, also in a shell that ends at one.
    if shell != "fish":
        assert read_by(shell, f"set -eu\n{lines}")["CORE_PEER_LOCALMSPID"] == "Org1MSP"


def test_the_options_for_the_orderer_are_in_a_comment(run, node):
    comment = run("env", "peer").stdout.splitlines()[-1]
    assert comment == (
        '# peer … -o "$ORDERER_ADDRESS" --tls --cafile "$ORDERER_CA" '
        "--ordererTLSHostnameOverride orderer.org1.example.com -C mychannel"
    )


def test_mutual_tls_and_none_are_told_to_the_peer_command(run, node, home):
    node.connections.dialled = {
        "client_tls": {"certificate": "/c.crt", "key": "/c.key"}
    }
    found = read_by("sh", run("env", "peer").stdout)
    assert found["CORE_PEER_TLS_CLIENTAUTHREQUIRED"] == "true"
    assert found["CORE_PEER_TLS_CLIENTCERT_FILE"] == "/c.crt"
    assert found["CORE_PEER_TLS_CLIENTKEY_FILE"] == "/c.key"
    assert "--clientauth" in run("env", "peer").stdout
    assert "asks for a client certificate" in run("env", "app", "basic").stderr
    orderer = {"address": "127.0.0.1:7051", "tls_name": None, "ca": None}
    node.connections.dialled = {"ca": None, "tls_name": None, "orderer": orderer}
    plain = run("env", "peer").stdout
    assert read_by("sh", plain)["CORE_PEER_TLS_ENABLED"] == "false"
    assert "--tls" not in plain


@pytest.mark.parametrize("shell", ["sh", "bash", "zsh", "fish"])
def test_every_shell_reads_every_path(basic, home, shell):
    basic.connections.dialled = {"msp": f"/{FOLDER}/msp", "ca": f"/{FOLDER}/ca.crt"}
    args = ["--home", str(home), "env", "app", "basic", "--shell", shell]
    found = read_by(shell, CliRunner().invoke(root, args).stdout)
    assert found["TLS_CERT_PATH"] == f"/{FOLDER}/ca.crt"
    assert found["CERT_DIRECTORY_PATH"] == f"/{FOLDER}/msp/signcerts"


def test_an_application_finds_what_fabrics_samples_read(run, basic, home):
    lines = run("env", "app", "basic", "--user", "clerk").stdout
    assert run("env", "app", "basic", "--as", "clerk").stdout == lines
    found = read_by("sh", lines)
    assert found["PEER_ENDPOINT"] == "127.0.0.1:7051"
    assert found["PEER_HOST_ALIAS"] == "peer0.org1.example.com"
    assert found["KEY_DIRECTORY_PATH"] == str(home / "clerk" / "msp" / "keystore")
    assert (found["CHANNEL_NAME"], found["CHAINCODE_NAME"]) == ("mychannel", "basic")
    told = json.loads(run("env", "app", "basic", "--json").stdout)
    assert told["MSP_ID"] == "Org1MSP"


def test_another_channel_can_be_named(run, basic):
    told = run("env", "app", "basic", "--channel", "trades", "--json").stdout
    assert json.loads(told)["CHANNEL_NAME"] == "trades"
    assert run("env", "peer", "--channel", "trades").stdout.endswith("-C trades\n")


def test_connect_shows_what_is_needed_and_what_comes_next(run, basic, home):
    result = run("connect", "basic")
    for text in ("127.0.0.1:7051", "peer0.org1.example.com", "Org1MSP", "mychannel"):
        assert text in result.stdout
    assert str(home / "User1" / "msp" / "keystore" / "priv_sk") in result.stdout
    assert f"--home {home} connect basic --lang node|go|java" in result.stderr
    other = run("connect", "basic", "--org", "Org1", "--user", "clerk")
    assert "connect basic --org Org1 --user clerk --lang node|" in other.stderr
    told = json.loads(run("connect", "basic", "--json", "--lang", "go").stdout)
    assert told["contract"] == "basic"
    assert told["program"].startswith("// Calls the contract basic")


def test_a_contract_that_is_not_there_is_told_with_the_next_step(run, basic):
    result = run("connect", "nosuch")
    assert result.exit_code != 0
    told = "no chaincode 'nosuch' is deployed on channel 'mychannel'; there are basic"
    assert told in result.stderr
    assert "deploy DIR --name nosuch" in result.stderr


def test_a_contract_of_another_channel_is_told_with_that_channel(run, basic):
    basic.connections.dialled = {"channel": "trades"}
    result = run("connect", "basic")
    assert result.exit_code != 0
    assert "no chaincode 'basic' is deployed on channel 'trades'" in result.stderr
    assert "--channel mychannel" in result.stderr


def test_the_variables_of_an_application_may_come_before_its_contract(run, node):
    told = json.loads(run("env", "app", "later", "--json").stdout)
    assert told["CHAINCODE_NAME"] == "later"


@pytest.mark.parametrize("args", [["env", "peer"], ["connect", "basic"]])
def test_without_a_node_the_next_step_is_to_start_one(run, args):
    result = run(*args)
    assert result.exit_code == 3
    assert "chaindock up -d" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("lang", ["node", "go", "java"])
def test_a_program_has_every_fact_as_a_string_of_its_language(tmp_path, lang):
    found = connection(tmp_path / FOLDER, "User1")
    text = snippet(lang, "basic", found)
    for key in ("address", "tls_name", "ca", "mspid", "certificate", "key", "channel"):
        assert json.dumps(found[key], ensure_ascii=False) in text
    assert "$" not in text.replace(json.dumps(FOLDER, ensure_ascii=False)[1:-1], "")


@pytest.mark.parametrize("lang", ["node", "go", "java"])
def test_a_program_shows_a_certificate_if_the_node_asks_for_one(tmp_path, lang):
    pair = {"certificate": "/c.crt", "key": "/c.key"}
    text = snippet(lang, "basic", connection(tmp_path, "User1", client_tls=pair))
    assert '"/c.crt"' in text
    assert '"/c.key"' in text
    plain = snippet(lang, "basic", connection(tmp_path, "User1"))
    assert "mutual" not in text + plain
    assert len(plain.splitlines()) < len(text.splitlines())


def test_only_the_program_is_on_standard_output(run, basic):
    result = run("connect", "basic", "--lang", "node")
    assert result.stdout.startswith("// Calls")
    assert result.stdout.endswith("}\n")
    assert result.stderr == ""


def test_a_node_without_tls_shows_facts_and_no_program(run, basic):
    basic.connections.dialled = {"ca": None, "tls_name": None}
    assert "no TLS" in run("connect", "basic").stdout
    refused = run("connect", "basic", "--lang", "go")
    assert refused.exit_code != 0
    assert "insecure credentials for 127.0.0.1:7051" in refused.stderr
