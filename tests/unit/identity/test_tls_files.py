"""TLS of an organisation: what clients find, and what becomes of it in later years."""

import datetime as dt
import ipaddress
import shutil
import ssl
import stat
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from chaindock.durable import write_file
from chaindock.errors import ConfigInvalid
from chaindock.identity import ca as authorities
from chaindock.identity import files as module
from chaindock.identity.files import read_key
from chaindock.identity.msp import Msp
from chaindock.identity.organization import Organization, Organizations

DOMAIN = "org1.example.com"


def opened(home: Path, *, orders: bool = True) -> Organization:
    return Organization.open(home, "Org1MSP", DOMAIN, orders=orders)


@pytest.fixture(scope="module")
def org(tmp_path_factory: Any) -> Organization:
    return opened(tmp_path_factory.mktemp("home"))


def read(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_the_files_are_where_the_samples_have_them(org):
    org.user("User1")
    server = {"ca.crt", "server.crt", "server.key"}
    for owner in (f"peers/peer0.{DOMAIN}", f"orderers/orderer.{DOMAIN}"):
        assert {one.name for one in (org.path / owner / "tls").iterdir()} == server
    client = {"ca.crt", "client.crt", "client.key"}
    for user in ("Admin", "User1"):
        folder = org.path / "users" / f"{user}@{DOMAIN}" / "tls"
        assert {one.name for one in folder.iterdir()} == client
    root = org.path / "tlsca" / f"tlsca.{DOMAIN}-cert.pem"
    for msp in org.path.rglob("msp"):
        assert (msp / "tlscacerts" / root.name).read_bytes() == root.read_bytes()
    assert len(list(org.path.rglob("msp"))) == 5


def test_keys_are_readable_by_their_owner_only(org):
    keys = [*org.path.rglob("*.key"), org.path / "tlsca" / "priv_sk"]
    assert len(keys) >= 4
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}


def test_the_peer_answers_to_its_names_and_to_those_of_this_machine(org):
    root, certificate, _ = org.tls
    found = x509.load_pem_x509_certificate(certificate)
    found.verify_directly_issued_by(x509.load_pem_x509_certificate(root))
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    dns = names.get_values_for_type(x509.DNSName)
    assert dns == [f"peer0.{DOMAIN}", f"orderer.{DOMAIN}", "localhost"]
    addresses = [ipaddress.ip_address(one) for one in ("127.0.0.1", "::1")]
    assert names.get_values_for_type(x509.IPAddress) == addresses


def shake_hands(org: Organization, name: str, *, client: Path | None = None) -> Any:
    """Return the certificate of the client that the server saw."""
    root, certificate, key = org.tls
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    dialling = ssl.create_default_context(cadata=root.decode())
    dialling.verify_flags |= ssl.VERIFY_X509_STRICT
    pair = org.path / "pair.pem"
    pair.write_bytes(key + certificate)
    serving.load_cert_chain(pair)
    if client:
        serving.verify_mode = ssl.CERT_REQUIRED
        serving.load_verify_locations(cadata=root.decode())
        dialling.load_cert_chain(client / "client.crt", client / "client.key")
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = dialling.wrap_bio(back, there, server_hostname=name)
    other = serving.wrap_bio(there, back, server_side=True)
    for end in (one, other, one, other):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
    pair.unlink()
    return other.getpeercert()


@pytest.mark.parametrize(
    "name", [f"peer0.{DOMAIN}", f"orderer.{DOMAIN}", "localhost", "127.0.0.1", "::1"]
)
def test_a_client_that_knows_the_root_connects_by_each_name(org, name):
    shake_hands(org, name)


@pytest.mark.parametrize("host", ["10.7.0.1", "build.lan", "fd00::7"])
def test_the_certificate_names_where_the_peer_listens_now(tmp_path, host):
    org = opened(tmp_path)
    root, _, key = org.tls
    org.listen_at(host)
    shake_hands(org, host)
    again = opened(tmp_path)
    assert again.tls == org.tls
    again.listen_at(host)
    assert again.tls == org.tls
    again.listen_at("127.0.0.1")
    assert (again.tls[0], again.tls[2]) == (root, key)
    shake_hands(again, "localhost")
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        shake_hands(again, host)


def test_another_name_or_root_is_refused(org, tmp_path):
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        shake_hands(org, "peer0.org2.example.com")


def test_a_user_has_a_pair_for_mutual_tls(org):
    org.user("User1")
    folder = org.user_msp("User1").parent / "tls"
    seen = shake_hands(org, "localhost", client=folder)
    assert (("commonName", f"User1@{DOMAIN}"),) in seen["subject"]


def test_certificates_serve_both_ends_and_sign_nothing(org):
    for path in (*org.path.rglob("server.crt"), *org.path.rglob("client.crt")):
        extensions = read(path).extensions
        usages = set(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
        assert usages == {
            ExtendedKeyUsageOID.CLIENT_AUTH,
            ExtendedKeyUsageOID.SERVER_AUTH,
        }
        assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_opening_again_changes_nothing(org):
    def content() -> dict[Path, bytes]:
        return {p: p.read_bytes() for p in org.path.rglob("*") if p.is_file()}

    before = content()
    opened(org.path.parents[1])
    assert content() == before


def test_a_home_from_before_gets_its_tls_and_keeps_its_identities(tmp_path):
    first = opened(tmp_path)
    user = first.user("User1")
    for folder in ("tlsca", "tls", "tlscacerts"):
        for path in list(first.path.rglob(folder)):
            shutil.rmtree(path)
    again = opened(tmp_path)
    assert again.peer.creator == first.peer.creator
    assert again.user("User1").creator == user.creator
    assert (again.user_msp("User1").parent / "tls" / "client.key").exists()
    assert (again.user_msp("User1") / "tlscacerts").is_dir()
    assert again.tls[0] != first.tls[0]


def test_the_authorities_of_an_earlier_version_keep_their_longer_names(
    tmp_path, monkeypatch
):
    place = ((x509.NameOID.COUNTRY_NAME, "US"), (x509.NameOID.LOCALITY_NAME, "Rome"))
    short = authorities._name
    with monkeypatch.context() as patch:
        patch.setattr(authorities, "_name", lambda *parts: short(*place, *parts))
        issued_long_ago(patch, 9.95)
        first = opened(tmp_path)
    again = opened(tmp_path)
    user = x509.load_pem_x509_certificate(again.user("User1").certificate_pem)
    assert user.issuer.rfc4514_string() == f"CN=ca.{DOMAIN},L=Rome,C=US"
    assert user.subject.rfc4514_string() == f"CN=User1@{DOMAIN},OU=client"
    assert again.msp.identify(again.user("User1").creator).role == "client"
    root = x509.load_pem_x509_certificate(again.tls[0])
    assert again.tls[0] != first.tls[0]
    assert root.subject.rfc4514_string() == f"CN=tlsca.{DOMAIN},L=Rome,C=US"
    folder = again.user_msp("User1").parent / "tls"
    shake_hands(again, "localhost", client=folder)


def test_what_is_no_user_gets_nothing(tmp_path):
    users = opened(tmp_path).path / "users"
    (users / "notes.txt").write_text("mine")
    (users / "old").mkdir()
    opened(tmp_path)
    assert (users / "notes.txt").read_text() == "mine"
    assert not list((users / "old").iterdir())


def test_only_the_first_organisation_has_an_orderer(tmp_path):
    second = Organizations(tmp_path, opened(tmp_path)).make("Org2")
    assert not (second.path / "orderers").exists()
    assert second.tls[0] != opened(tmp_path).tls[0]


def issued_long_ago(monkeypatch: Any, years: float) -> None:
    """Let certificates be issued as of then."""

    class Then(dt.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return dt.datetime.now(tz) - dt.timedelta(days=365 * years)

    class Clock:
        datetime = Then
        UTC, timedelta = dt.UTC, dt.timedelta

    monkeypatch.setattr(authorities, "dt", Clock)


def test_expired_certificates_are_replaced_and_keep_their_keys(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        issued_long_ago(patch, 10)
        first = opened(tmp_path)
    assert module._is_over(x509.load_pem_x509_certificate(first.tls[1]))
    keys = {p: p.read_bytes() for p in first.path.rglob("*.key")}
    again = opened(tmp_path)
    now = dt.datetime.now(dt.UTC)
    found = [*again.path.rglob("*.crt"), *again.path.rglob("tlscacerts/*")]
    assert min(read(path).not_valid_after_utc for path in found) > now
    assert {p: p.read_bytes() for p in again.path.rglob("*.key")} == keys
    shake_hands(again, "localhost")


def test_a_root_that_is_replaced_still_vouches_for_what_it_issued(
    tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        issued_long_ago(patch, 10)
        opened(tmp_path)
    first = opened(tmp_path)
    root = first.path / "tlsca" / f"tlsca.{DOMAIN}-cert.pem"
    made = authorities.CertificateAuthority(
        read(root), read_key(root.parent / "priv_sk")
    )
    with monkeypatch.context() as patch:
        issued_long_ago(patch, 10)
        old = authorities.CertificateAuthority.create(DOMAIN, tls=True, former=made)
    root.write_bytes(authorities.certificate_pem(old.certificate))
    again = opened(tmp_path)
    assert again.tls[1:] == first.tls[1:]
    assert again.tls[0] != first.tls[0]
    shake_hands(again, "localhost")


def test_a_crash_leaves_no_pair_by_halves(tmp_path, monkeypatch):
    class PowerCut(BaseException):
        pass

    written = write_file
    for left in range(12):
        count = left

        def cut(*args: Any, **named: Any) -> None:
            nonlocal count
            if count == 0:
                raise PowerCut
            count -= 1
            written(*args, **named)

        home = tmp_path / str(left)
        with monkeypatch.context() as patch:
            patch.setattr(module, "write_file", cut)
            patch.setattr("chaindock.identity.files.write_file", cut)
            patch.setattr("chaindock.identity.files.shutil.rmtree", lambda *_, **__: 0)
            with pytest.raises(PowerCut):
                opened(home)
        org = opened(home)
        shake_hands(org, "localhost")
        assert not list(org.path.rglob(".unfinished-*"))


def test_a_damaged_file_is_named_and_never_replaced(tmp_path):
    path = opened(tmp_path).path / "peers" / f"peer0.{DOMAIN}" / "tls" / "server.key"
    path.write_bytes(b"")
    with pytest.raises(ConfigInvalid, match=r"server\.key"):
        opened(tmp_path)
    assert path.read_bytes() == b""


def test_the_configuration_of_a_channel_has_the_root(org):
    assert org.msp.tls_roots == (org.tls[0],)
    again = Msp.of(org.msp.config().SerializeToString())
    assert again.tls_roots == org.msp.tls_roots
