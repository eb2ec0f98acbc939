"""What is in force, and where it comes from."""

from pathlib import Path

import pytest

from chaindock.config.environment import find_file, resolve_home
from chaindock.config.load import load
from chaindock.config.sections import Config
from chaindock.controllers.docker.options import EndpointOptions
from chaindock.errors import ConfigInvalid

PEM = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


def core(home: Path, text: str) -> Path:
    home.mkdir(exist_ok=True)
    path = home / "core.yaml"
    path.write_text(text)
    return path


def origin(config: Config, key: str) -> str:
    return next(one.origin for one in config.settings if one.key == key)


def shown(config: Config, key: str) -> str:
    return next(one.value for one in config.settings if one.key == key)


def test_nothing_has_to_be_set(tmp_path):
    config = load(tmp_path, env={})
    assert config.home == tmp_path
    assert config.calls.execute_timeout_s == 30
    assert {one.origin for one in config.settings} == {"default"}
    assert config.ignored == ()


def test_flag_beats_variable_beats_file_beats_default(tmp_path):
    path = core(tmp_path, "chaincode:\n  executetimeout: 40s\npeer:\n  id: filed\n")
    env = {"CORE_CHAINCODE_EXECUTETIMEOUT": "50s"}

    config = load(tmp_path, env={})
    assert config.calls.execute_timeout_s == 40
    assert origin(config, "chaincode.executetimeout") == f"{path}:2"
    assert origin(config, "peer.id") == f"{path}:4"
    assert config.node.peer_id == "filed"

    config = load(tmp_path, env=env)
    assert config.calls.execute_timeout_s == 50
    assert origin(config, "chaincode.executetimeout") == (
        "env CORE_CHAINCODE_EXECUTETIMEOUT"
    )

    config = load(tmp_path, {"chaincode.ExecuteTimeout": "1m"}, env=env)
    assert config.calls.execute_timeout_s == 60
    assert origin(config, "chaincode.executetimeout") == "flag"
    assert shown(config, "chaincode.executetimeout") == "1m"


def test_keys_of_the_file_have_no_case(tmp_path):
    core(tmp_path, "CHAINCODE: {StartupTimeout: 90s}\n")
    assert load(tmp_path, env={}).launch.startup_timeout_s == 90


def test_unknown_key_in_our_section_names_the_nearest_one(tmp_path):
    path = core(tmp_path, "chaindock:\n  chanel: c1\n")
    with pytest.raises(ConfigInvalid) as caught:
        load(tmp_path, env={})
    assert "'chaindock.chanel'" in caught.value.message
    assert f"{path}:2" in caught.value.message
    assert caught.value.hint == "did you mean 'chaindock.channel'?"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("chaindock:\n  - backend\n", "chaindock"),
        ("chaindock: {block: manual}", "block"),
    ],
)
def test_a_section_that_has_a_value_is_named_as_a_section(tmp_path, text, name):
    core(tmp_path, text)
    with pytest.raises(ConfigInvalid, match=f"{name}' ") as caught:
        load(tmp_path, env={})
    assert "is a section: write its settings below it" in (caught.value.hint or "")


def test_unknown_variable_of_ours_names_the_nearest_one(tmp_path):
    with pytest.raises(ConfigInvalid) as caught:
        load(tmp_path, env={"CORE_CHAINDOCK_BACKENDS": "docker"})
    assert caught.value.hint == "did you mean 'CORE_CHAINDOCK_BACKEND'?"


def test_unknown_key_on_the_command_line_is_refused(tmp_path):
    with pytest.raises(ConfigInvalid) as caught:
        load(tmp_path, {"chaincode.startup": "9s"}, env={})
    assert caught.value.hint == "did you mean 'chaincode.startuptimeout'?"


def test_unknown_key_of_fabric_is_listed_with_its_reason(tmp_path):
    path = core(
        tmp_path,
        "peer:\n  gossip:\n    orgLeader: true\nmetrics:\n  statsd:\n    prefix: x\n",
    )
    config = load(tmp_path, env={"CORE_PEER_TLS_ROOTCERT_FILE": "x"})
    found = {one.key: one for one in config.ignored}
    assert found["peer.gossip.orgLeader"].origin == f"{path}:3"
    assert found["metrics.statsd.prefix"].reason.startswith("metrics are read")
    assert "CORE_PEER_TLS_ROOTCERT_FILE" in found


def test_empty_values_of_the_file_set_nothing(tmp_path):
    core(tmp_path, "vm: {docker: {hostConfig: {Dns: }}}\n")
    assert load(tmp_path, env={}).docker.sandbox.dns == ()


def test_values_are_taken_as_they_are_written(tmp_path):
    core(tmp_path, "peer: {id: 007, networkId: 1:30}\n")
    config = load(tmp_path, env={})
    assert (config.node.peer_id, config.node.network_id) == ("007", "1:30")


def test_fabrics_floors_hold(tmp_path):
    flags = {"chaincode.startuptimeout": "1s", "chaincode.executetimeout": "500ms"}
    config = load(tmp_path, flags, env={})
    assert config.launch.startup_timeout_s == 5
    assert config.calls.execute_timeout_s == 30


def test_a_file_elsewhere_is_read_when_it_is_named(tmp_path):
    core(tmp_path / "fabric", "peer: {id: elsewhere}\n")
    core(tmp_path / "home", "peer: {id: home}\n")
    home, folder = tmp_path / "home", tmp_path / "fabric"
    assert load(home, env={}, folder=folder).node.peer_id == "elsewhere"
    assert load(home, env={}).node.peer_id == "home"


def test_folder_without_a_file_is_an_error(tmp_path):
    with pytest.raises(ConfigInvalid, match=r"there is no core\.yaml") as caught:
        find_file(tmp_path, tmp_path)
    assert caught.value.origin == "flag"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a: [", "is not YAML"),
        ("- a\n", "expected keys and values"),
        ("#" * 1_100_000, "is larger than"),
        ("a: " + "[" * 5000, "is not YAML"),
    ],
)
def test_file_that_is_no_configuration_is_refused(tmp_path, text, what):
    core(tmp_path, text)
    with pytest.raises(ConfigInvalid) as caught:
        load(tmp_path, env={})
    assert what in caught.value.message


def test_empty_file_is_fine(tmp_path):
    core(tmp_path, "# nothing\n")
    assert load(tmp_path, env={}).node.channel == "mychannel"


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("chaincode.executetimeout", "30", "a duration with its unit"),
        ("chaincode.installTimeout", "0s", "a duration above 0"),
        ("chaincode.pull", "maybe", "true or false"),
        ("chaindock.output.keep", "-1", "a whole number"),
        ("chaindock.output.keep", "0", "a whole number above 0"),
        ("chaindock.output.size", "many", "a size"),
        ("chaindock.sandbox.cpus", "inf", "a number"),
        ("chaindock.channel", "My Channel", "a lower-case letter"),
        ("chaindock.docker.pull", "often", "one of missing, never, always"),
        ("peer.chaincodeListenAddress", "0.0.0.0:port", "host:port"),
        ("peer.chaincodeListenAddress", "0.0.0.0:" + "9" * 5000, "host:port"),
        ("chaindock.output.keep", "9" * 30, "above 0, 2147483647 at most"),
        ("chaindock.launch.retries", "nan", "a whole number"),
        ("chaindock.block.mode", "size=" + "9" * 5000, "N from 1 to 5000"),
        ("chaindock.block.mode", "interval=" + "9" * 400 + "s", "at most 106751d"),
    ],
)
def test_wrong_value_says_what_was_expected(tmp_path, key, value, expected):
    with pytest.raises(ConfigInvalid) as caught:
        load(tmp_path, {key: value}, env={})
    assert expected in caught.value.message
    assert repr(value)[:20] in caught.value.message
    assert caught.value.key == key


def test_the_number_that_stands_for_no_limit_elsewhere_is_one(tmp_path):
    """The largest int of Java and Go programs with 32 bits."""
    given = {"ledger.state.totalQueryLimit": "2147483647"}
    assert load(tmp_path, given, env={}).stream.total_query_limit == 2**31 - 1


def test_a_path_that_is_no_path_is_refused(tmp_path):
    """As when the certificate itself was written in the place of its file."""
    with pytest.raises(ConfigInvalid, match="cannot be read: File name too long"):
        load(tmp_path, {"operations.tls.cert.file": PEM * 10}, env={})


def test_relative_paths_start_at_the_file_that_has_them(tmp_path, monkeypatch):
    (tmp_path / "ca.pem").write_text(PEM)
    core(tmp_path, "chaindock: {ca: ca.pem}\n")
    assert load(tmp_path, env={}).build.ca_bundle == tmp_path / "ca.pem"
    monkeypatch.chdir(tmp_path)
    env = {"CORE_CHAINDOCK_CA": "ca.pem"}
    assert load(tmp_path / "x", env=env).build.ca_bundle == tmp_path / "ca.pem"


def test_named_ca_bundle_must_be_one(tmp_path):
    (tmp_path / "ca.pem").write_text("hello")
    for name, why in (("ca.pem", "holds no PEM"), ("gone.pem", "cannot be read")):
        with pytest.raises(ConfigInvalid) as caught:
            load(tmp_path, {"chaindock.ca": str(tmp_path / name)}, env={})
        assert why in caught.value.message


def test_ca_of_the_environment_is_used_when_it_can_be(tmp_path):
    (tmp_path / "ca.pem").write_text(PEM)
    env = {
        "SSL_CERT_FILE": str(tmp_path / "gone.pem"),
        "PIP_CERT": str(tmp_path / "ca.pem"),
    }
    config = load(tmp_path, env=env)
    assert config.build.ca_bundle == tmp_path / "ca.pem"
    assert origin(config, "chaindock.ca") == "env PIP_CERT"
    assert "SSL_CERT_FILE" in config.warnings[0]


def test_builds_get_proxies_and_registries_and_nothing_else(tmp_path):
    env = {
        "HTTPS_PROXY": "http://me:word@proxy:3128",
        "no_proxy": "localhost",
        "GOPROXY": "https://mirror",
        "npm_config_registry": "https://npm",
        "NPM_CONFIG_CACHE": "/mine",
        "NPM_TOKEN": "t0k3n",
        "AWS_SECRET_ACCESS_KEY": "no",
        "GOPATH": "/mine",
        "HTTP_PROXY": "",
    }
    config = load(tmp_path, {"chaindock.build.variables": "A=1,B=2"}, env=env)
    assert dict(config.build.variables) == {
        "HTTPS_PROXY": "http://me:word@proxy:3128",
        "no_proxy": "localhost",
        "GOPROXY": "https://mirror",
        "npm_config_registry": "https://npm",
        "NPM_TOKEN": "t0k3n",
        "A": "1",
        "B": "2",
    }
    text = shown(config, "chaindock.build.variables")
    assert "word" not in text
    assert "t0k3n" not in text
    assert "http://[secret]@proxy:3128" in text


MIRRORS = "chaindock.docker.mirrors"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one.example/hub", "docker.io=one.example/hub"),
        ("[one.example, two:5000/]", "docker.io=one.example,docker.io=two:5000"),
        (
            "{docker.io: [one.example, two.example], reg.example/team: docker.io/team}",
            "docker.io=one.example,docker.io=two.example,reg.example/team=docker.io/team",
        ),
        ("localhost:5000=one.example", "localhost:5000=one.example"),
        ("''", ""),
    ],
)
def test_mirrors_can_be_given_in_each_form(tmp_path, text, expected):
    core(tmp_path, f"chaindock: {{docker: {{mirrors: {text}}}}}\n")
    config = load(tmp_path, env={})
    assert shown(config, MIRRORS) == expected
    # What is shown can be given again.
    assert load(tmp_path, {MIRRORS: expected}, env={}).docker == config.docker


@pytest.mark.parametrize(
    "text",
    [
        *("https://one.example", "golang=one.example/go", "a b", "reg.example="),
        "one/hub",  # engines read that as somebody's images at docker.io
        "docker.io=one",
    ],
)
def test_a_mirror_that_is_no_place_is_refused(tmp_path, text):
    with pytest.raises(ConfigInvalid, match="host/path"):
        load(tmp_path, {MIRRORS: text}, env={})


def test_no_size_of_a_batch_is_the_usual_one(tmp_path):
    for key in ("maxSizeWriteBatch", "maxSizeGetMultipleKeys"):
        config = load(tmp_path, {f"chaincode.runtimeParams.{key}": "0"}, env={})
        assert shown(config, f"chaincode.runtimeParams.{key}") == "1000"


def test_a_password_with_an_at_sign_is_not_shown(tmp_path):
    env = {"HTTPS_PROXY": "http://me:w@rd@proxy:3128/a@b"}
    text = shown(load(tmp_path, env=env), "chaindock.build.variables")
    assert "http://[secret]@proxy:3128/a@b" in text


def test_wrong_value_with_a_password_does_not_show_it(tmp_path):
    with pytest.raises(ConfigInvalid) as caught:
        load(tmp_path, {"chaindock.sandbox.cpus": "http://me:word@x"}, env={})
    assert "word" not in caught.value.message


def test_empty_endpoint_means_no_engine(tmp_path):
    assert load(tmp_path, env={}).node.engine
    assert not load(tmp_path, env={"CORE_VM_ENDPOINT": ""}).node.engine
    assert load(tmp_path, env={"CORE_VM_ENDPOINT": "unix:///x"}).node.engine


def test_development_mode_admits_programs_that_a_user_started(tmp_path):
    assert load(tmp_path, env={}).stream.mode == "net"
    assert load(tmp_path, {"chaincode.mode": "dev"}, env={}).stream.mode == "dev"


def test_engine_look_up_gets_what_the_docker_client_would(tmp_path):
    env = {
        "DOCKER_HOST": "tcp://h:1",
        "DOCKER_CONTEXT": "c",
        "DOCKER_CERT_PATH": "/certs",
        "DOCKER_TLS_VERIFY": "1",
        "HOME": "/home/me",
        "XDG_RUNTIME_DIR": "/run/user/1",
    }
    found = load(tmp_path, env=env).docker.endpoint
    assert found == EndpointOptions(
        docker_host="tcp://h:1",
        docker_context="c",
        runtime_dir=Path("/run/user/1"),
        home=Path("/home/me"),
        tls=True,
        ca_file=Path("/certs/ca.pem"),
        cert_file=Path("/certs/cert.pem"),
        key_file=Path("/certs/key.pem"),
    )


def test_streams_have_tls_unless_it_is_turned_off(tmp_path):
    assert load(tmp_path, env={}).listen.tls
    assert not load(tmp_path, {"peer.tls.enabled": "false"}, env={}).listen.tls


def test_development_mode_has_no_tls_unless_it_is_asked_for(tmp_path):
    found = load(tmp_path, {"chaincode.mode": "dev"}, env={})
    assert not found.listen.tls
    (shown,) = [one for one in found.settings if one.key == "peer.tls.enabled"]
    assert (shown.value, shown.origin) == ("false", "chaincode.mode dev")
    asked = {"chaincode.mode": "dev", "peer.tls.enabled": "true"}
    assert load(tmp_path, asked, env={}).listen.tls


def test_where_the_node_listens_and_what_chaincode_dials_are_two_settings(tmp_path):
    """Fabric's chaincodeListenAddress and chaincodeAddress."""
    nothing = load(tmp_path, env={}).listen
    assert (nothing.bind, nothing.advertise) == (None, None)
    env = {
        "CORE_PEER_CHAINCODELISTENADDRESS": "0.0.0.0:7052",
        "CORE_PEER_CHAINCODEADDRESS": "peer.example.com:7052",
    }
    found = load(tmp_path, env=env).listen
    assert found.bind == ("0.0.0.0", 7052)
    assert found.advertise == ("peer.example.com", 7052)


def test_home_is_flag_then_variable_then_default(tmp_path, monkeypatch):
    env = {"CHAINDOCK_HOME": "/b"}
    assert resolve_home("/a", env) == Path("/a")
    assert resolve_home(None, env) == Path("/b")
    assert resolve_home(None, {}) == Path.home() / ".chaindock"
    monkeypatch.chdir(tmp_path)
    assert resolve_home("here", {}) == tmp_path / "here"


def test_settings_of_authentication_are_no_secrets(tmp_path):
    config = load(tmp_path, {"peer.tls.clientAuthRequired": "true"}, {})
    shown = {one.key: one.value for one in config.settings}
    assert shown["peer.tls.clientAuthRequired"] == "true"
    assert shown["peer.authentication.timewindow"] == "15m"
