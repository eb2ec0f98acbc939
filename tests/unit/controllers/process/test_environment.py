"""What programs are told, and nothing else."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import pytest

from chaindock.container.contracts import ClientTls
from chaindock.errors import ConfigInvalid
from chaindock.processes.folders import base_environment, ca_environment, write_tls

if TYPE_CHECKING:
    from pathlib import Path

TLS = ClientTls("KEY\npem\n", "CERT\npem\n", "ROOT\npem\n")


def test_base_environment_is_private_and_minimal(tmp_path: Path):
    env = base_environment(tmp_path, ["/a", "/b", "/a"])
    assert set(env) == {"PATH", "HOME", "TMPDIR", "LANG"}
    assert env["PATH"] == "/a:/b"
    for name in ("HOME", "TMPDIR"):
        mode = stat.S_IMODE((tmp_path / env[name]).stat().st_mode)
        assert mode == 0o700


def test_tls_files_are_for_the_user_alone(tmp_path: Path):
    write_tls(TLS, tmp_path / "tls")
    modes = {stat.S_IMODE(one.stat().st_mode) for one in (tmp_path / "tls").iterdir()}
    assert modes == {0o600}
    assert stat.S_IMODE((tmp_path / "tls").stat().st_mode) == 0o700
    assert (tmp_path / "tls/client_pem.key").read_text() == TLS.key_pem


def test_ca_bundle_is_added_to_the_usual_authorities(tmp_path: Path):
    extra = tmp_path / "corp.pem"
    extra.write_text("-----CORP-----\n")
    env = ca_environment(extra, tmp_path)
    assert env["NODE_EXTRA_CA_CERTS"] == str(extra)
    both = {env[n] for n in env if n != "NODE_EXTRA_CA_CERTS"}
    assert len(both) == 1
    assert "-----CORP-----" in (tmp_path / both.pop()).read_text()
    assert {"SSL_CERT_FILE", "PIP_CERT", "GIT_SSL_CAINFO", "npm_config_cafile"} <= set(
        env
    )


def test_a_missing_ca_bundle_is_named(tmp_path: Path):
    with pytest.raises(ConfigInvalid, match=r"corp\.pem"):
        ca_environment(tmp_path / "corp.pem", tmp_path)
