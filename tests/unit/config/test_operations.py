"""Where the operations endpoint listens, and which lines are logged."""

from pathlib import Path

import pytest

from chaindock.config.load import load
from chaindock.errors import ConfigInvalid


def core(folder: Path, text: str) -> Path:
    path = folder / "core.yaml"
    path.write_text(text)
    return path


def test_endpoint_is_where_fabric_has_it_when_the_file_says_so(tmp_path):
    core(
        tmp_path,
        "operations:\n  listenAddress: 127.0.0.1:9443\n"
        "  tls:\n    enabled: false\n    cert:\n      file:\n"
        "    clientAuthRequired: false\n    clientRootCAs:\n      files: []\n"
        "metrics:\n  provider: disabled\n  statsd:\n    network: udp\n",
    )
    found = load(tmp_path, env={}).operations
    assert found.address == ("127.0.0.1", 9443)
    assert (found.tls, found.metrics, found.client_roots) == (False, "disabled", ())


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("[::1]:0", ("::1", 0)),
        ("localhost:80", ("localhost", 80)),
        ("127.8.8.8:1", ("127.8.8.8", 1)),
        ("", None),
    ],
)
def test_endpoint_without_tls_takes_loopback_or_nothing(tmp_path, text, address):
    config = load(tmp_path, {"operations.listenAddress": text}, {})
    assert config.operations.address == address


@pytest.mark.parametrize("text", ["0.0.0.0:9443", ":9443", "10.1.2.3:1", "host:1"])
def test_endpoint_without_tls_takes_nothing_else(tmp_path, text):
    with pytest.raises(ConfigInvalid, match="expected a loopback address") as caught:
        load(tmp_path, {"operations.listenAddress": text}, {})
    assert "operations.tls" in str(caught.value.hint)
    flags = {"operations.listenAddress": text, "operations.tls.enabled": "true"}
    assert load(tmp_path, flags, {}).operations.address


@pytest.mark.parametrize("text", ["9443", "::1:80", "host", "a b:1", "h:99999"])
def test_endpoint_that_is_no_address_is_refused(tmp_path, text):
    with pytest.raises(ConfigInvalid, match="host:port"):
        load(tmp_path, {"operations.listenAddress": text}, {})


def test_roots_of_clients_are_beside_the_file(tmp_path):
    core(tmp_path, "operations: {tls: {clientRootCAs: {files: [a.pem, /b.pem]}}}\n")
    roots = load(tmp_path, env={}).operations.client_roots
    assert [str(one) for one in roots] == [str(tmp_path / "a.pem"), "/b.pem"]


def test_levels_come_from_fabrics_variable_unless_ours_says_otherwise(tmp_path):
    env = {"FABRIC_LOGGING_SPEC": "warn"}
    config = load(tmp_path, env=env)
    assert config.log.spec == "warn"
    (shown,) = [one for one in config.settings if one.key == "chaindock.log.spec"]
    assert shown.origin == "env FABRIC_LOGGING_SPEC"
    env["CORE_CHAINDOCK_LOG_SPEC"] = "error"
    assert load(tmp_path, env=env).log.spec == "error"
    assert load(tmp_path, {"chaindock.log.spec": "debug"}, env).log.spec == "debug"


def test_wrong_levels_are_refused_before_anything_starts(tmp_path):
    with pytest.raises(ConfigInvalid, match="LOGGER"):
        load(tmp_path, env={"FABRIC_LOGGING_SPEC": "loud"})
