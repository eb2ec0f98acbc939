"""What tools and chaincode find when they read the organisation's files."""

import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import NameOID

from chaindock.errors import ConfigInvalid, InvalidInput
from chaindock.identity import organization as module
from chaindock.identity.ca import ATTRIBUTES_OID, attributes_of
from chaindock.identity.msp import Role
from chaindock.identity.organization import Organization, Organizations
from support.need import need


@pytest.fixture(scope="module")
def home(tmp_path_factory: Any) -> Any:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def org(home: Any) -> Any:
    return Organization.open(home, "Org1MSP", "org1.example.com")


def certificate(signer: Any) -> Any:
    return x509.load_pem_x509_certificate(signer.certificate_pem)


def test_opening_again_gives_the_same_identities(org, home):
    again = Organization.open(home, "Org1MSP", "org1.example.com")
    assert again.ca_pem == org.ca_pem
    assert again.peer.creator == org.peer.creator
    assert again.orderer.creator == org.orderer.creator
    assert again.admin.creator == org.admin.creator


def test_directories_are_those_of_the_usual_samples(org, home):
    base = home / "peerOrganizations" / "org1.example.com"
    assert org.path == base
    org.user("User1")
    for msp in (
        base / "users" / "User1@org1.example.com" / "msp",
        base / "users" / "Admin@org1.example.com" / "msp",
        base / "peers" / "peer0.org1.example.com" / "msp",
        base / "orderers" / "orderer.org1.example.com" / "msp",
    ):
        assert len(list((msp / "signcerts").iterdir())) == 1
        assert [p.name for p in (msp / "keystore").iterdir()] == ["priv_sk"]
        ous = yaml.safe_load((msp / "config.yaml").read_text())["NodeOUs"]
        assert ous["Enable"] is True
        for role in ("Client", "Peer", "Admin", "Orderer"):
            unit = ous[f"{role}OUIdentifier"]
            assert unit["OrganizationalUnitIdentifier"] == role.lower()
            assert (msp / unit["Certificate"]).read_bytes() == org.ca_pem
    assert (base / "msp" / "config.yaml").exists()


def test_keys_are_pkcs8_and_readable_by_the_owner_only(org):
    org.user("User1")
    keys = list(org.path.rglob("priv_sk"))
    assert len(keys) >= 5
    for key in keys:
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        assert key.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----")
        serialization.load_pem_private_key(key.read_bytes(), None)


def test_certificates_that_lie_in_transactions_are_short(org):
    cert = certificate(org.peer)
    assert cert.subject.rfc4514_string() == "CN=peer0.org1.example.com,OU=peer"
    assert cert.issuer.rfc4514_string() == "CN=ca.org1.example.com"
    (extension,) = cert.extensions
    assert isinstance(extension.value, x509.AuthorityKeyIdentifier)
    assert len(org.peer.certificate_pem) < 560


def test_each_identity_has_its_role(org):
    roles = {
        org.peer.creator: Role.PEER,
        org.orderer.creator: Role.ORDERER,
        org.admin.creator: Role.ADMIN,
        org.user("User1").creator: Role.CLIENT,
    }
    for creator, role in roles.items():
        identity = org.msp.identify(creator)
        assert identity.role is role
        assert identity.mspid == "Org1MSP"
        assert not identity.expired


def test_attributes_are_raw_json_under_the_oid_that_the_shims_read(org):
    cert = certificate(org.user("carol", {"email": "c@x.org", "role": "auditor"}))
    extension = cert.extensions.get_extension_for_oid(ATTRIBUTES_OID)
    assert not extension.critical
    assert extension.value.public_bytes().startswith(b'{"attrs":{')
    assert attributes_of(cert) == {
        "email": "c@x.org",
        "role": "auditor",
        "hf.Affiliation": "",
        "hf.EnrollmentID": "carol",
        "hf.Type": "client",
    }


def test_names_and_attributes_that_no_certificate_takes_are_refused(org, tmp_path):
    with pytest.raises(InvalidInput, match="16384"):
        org.user("heavy", {"k": "v" * 20_000})
    assert not org.user_msp("heavy").exists()
    assert org.user("heavy", {"k": "v" * 10_000})
    long = Organization.open(tmp_path, "Org1MSP", "a" * 50)
    with pytest.raises(InvalidInput, match="64"):
        long.user("b" * 32)


def test_a_user_stays_the_same_until_the_attributes_change(org, home):
    first = org.user("dave", {"level": "1"})
    assert org.user("dave").creator == first.creator
    assert org.user("dave", {"level": "1"}).creator == first.creator
    other = Organization.open(home, "Org1MSP", "org1.example.com")
    assert other.user("dave").creator == first.creator
    second = org.user("dave", {"level": "2"})
    old, new = certificate(first), certificate(second)
    assert attributes_of(new)["level"] == "2"
    assert new.public_key() == old.public_key()
    assert new.subject == old.subject
    assert org.user("dave").creator == second.creator


def test_names_that_would_leave_the_directory_or_pose_as_admin_are_refused(org):
    for name in ("", "../x", "a/b", "admin", "ADMIN", ".x", "x" * 33, "a@b"):
        with pytest.raises(InvalidInput):
            org.user(name)
    with pytest.raises(InvalidInput):
        org.user("Admin", {"a": "b"})
    assert org.user("Admin") is org.admin


def test_a_name_that_differs_only_in_case_is_another_user_or_refused(org):
    first = org.user("erin")
    twin = org.user_msp("Erin").parent
    twin.symlink_to(org.user_msp("erin").parent)  # what a case-folding disk shows
    try:
        with pytest.raises(InvalidInput, match="differs only in case"):
            org.user("Erin")
    finally:
        twin.unlink()
    assert org.user("erin").creator == first.creator


def test_a_crash_half_way_leaves_nothing_that_looks_complete(tmp_path, monkeypatch):
    class PowerCut(BaseException):
        pass

    def die(*_: Any) -> Any:
        raise PowerCut

    with monkeypatch.context() as patch:
        patch.setattr(module, "_write_certificate", die)
        patch.setattr("chaindock.identity.files.shutil.rmtree", lambda *_, **__: None)
        with pytest.raises(PowerCut):
            Organization.open(tmp_path, "Org1MSP", "org1.example.com")
    parent = tmp_path / "peerOrganizations"
    assert not (parent / "org1.example.com").exists()
    assert list(parent.iterdir()) != []
    org = Organization.open(tmp_path, "Org1MSP", "org1.example.com")
    assert org.msp.identify(org.peer.creator).role is Role.PEER
    assert [p.name for p in parent.iterdir()] == ["org1.example.com"]


def test_a_damaged_directory_is_named_and_never_replaced(tmp_path):
    Organization.open(tmp_path, "Org1MSP", "org1.example.com")
    path = tmp_path / "peerOrganizations" / "org1.example.com" / "ca" / "priv_sk"
    path.write_bytes(b"")
    with pytest.raises(ConfigInvalid, match="priv_sk") as caught:
        Organization.open(tmp_path, "Org1MSP", "org1.example.com")
    assert caught.value.origin == str(path)
    assert path.read_bytes() == b""


@pytest.mark.parametrize(
    ("mspid", "domain"), [("Org 1", "a.b"), ("Org1MSP", "../x"), ("", "a.b")]
)
def test_bad_names_of_the_organisation_are_refused(tmp_path, mspid, domain):
    with pytest.raises(InvalidInput):
        Organization.open(tmp_path, mspid, domain)
    assert list(tmp_path.iterdir()) == []


def test_common_names_name_the_domain(org):
    def name_of(signer: Any) -> Any:
        subject = certificate(signer).subject
        return subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value

    assert name_of(org.peer) == "peer0.org1.example.com"
    assert name_of(org.orderer) == "orderer.org1.example.com"
    assert name_of(org.admin) == "Admin@org1.example.com"


def test_openssl_accepts_the_chain(org, tmp_path):
    need("openssl")
    ca, user = tmp_path / "ca.pem", tmp_path / "user.pem"
    ca.write_bytes(org.ca_pem)
    user.write_bytes(org.user("User1").certificate_pem)
    done = subprocess.run(
        ["openssl", "verify", "-x509_strict", "-CAfile", str(ca), str(user)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_many_threads_may_ask_for_users_at_once(tmp_path: Any) -> None:
    org = Organization.open(tmp_path, "Org1MSP", "org1.example.com")
    names = [f"user{n % 4}" for n in range(24)]
    with ThreadPoolExecutor(8) as pool:
        signers = list(pool.map(org.user, names))
    creators = {(n, s.creator) for n, s in zip(names, signers, strict=True)}
    assert len(creators) == 4


def test_no_attributes_means_those_that_are_there(org: Any) -> None:
    first = org.user("frank", {"a": "1"})
    assert org.user("frank", {}).creator == first.creator
    again = org.user("frank", {"a": "1"})
    assert again.creator == org.user("frank").creator


def test_many_threads_may_make_organisations_at_once(tmp_path: Any) -> None:
    """Each channel lets them join on its own."""
    first = Organization.open(tmp_path, "Org1MSP", "org1.example.com")
    organizations = Organizations(tmp_path, first)
    names = [f"Org{number}" for number in (2, 3, 4, 5)] * 2
    with ThreadPoolExecutor(len(names)) as threads:
        made = [one.mspid for one in threads.map(organizations.make, names)]
    assert made == [f"{name}MSP" for name in names]
    again = Organizations(tmp_path, first)
    assert {one.mspid: one.ca_pem for one in again.all()} == {
        one.mspid: one.ca_pem for one in organizations.all()
    }
