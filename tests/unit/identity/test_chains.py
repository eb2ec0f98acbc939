"""Organisations with intermediate CAs, and certificates that were revoked."""

import datetime as dt
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from fabric_protos.msp import identities_pb2, msp_config_pb2

from chaindock.errors import Denied, InvalidInput
from chaindock.identity.ca import CertificateAuthority, certificate_pem, new_key
from chaindock.identity.msp import Msp, Role, certifiers_of
from support.clients.strangers import revocations


def below(
    ca: CertificateAuthority,
    name: str = "ica",
    *,
    days: int = 0,
    limit: int | None = None,
    key: Any = None,
) -> CertificateAuthority:
    """An intermediate CA that begins so many days after its issuer."""
    key = key or new_key()
    begin = ca.certificate.not_valid_before_utc + dt.timedelta(days=days)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
        .issuer_name(ca.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + dt.timedelta(days=100))
        .add_extension(x509.BasicConstraints(ca=True, path_length=limit), critical=True)
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
        )
    )
    return CertificateAuthority(builder.sign(ca.key, hashes.SHA256()), key)


def msp_of(
    root: CertificateAuthority,
    *intermediates: CertificateAuthority,
    lists: Any = (),
    unit_by: CertificateAuthority | None = None,
) -> Msp:
    units: Any = {
        f"{role}_ou_identifier": msp_config_pb2.FabricOUIdentifier(
            organizational_unit_identifier=role,
            certificate=certificate_pem(unit_by.certificate) if unit_by else b"",
        )
        for role in Role
    }
    fabric = msp_config_pb2.FabricMSPConfig(
        name="Org1MSP",
        root_certs=[certificate_pem(root.certificate)],
        intermediate_certs=[certificate_pem(one.certificate) for one in intermediates],
        revocation_list=lists,
        fabric_node_ous=msp_config_pb2.FabricNodeOUs(enable=True, **units),
    )
    config = msp_config_pb2.MSPConfig(config=fabric.SerializeToString())
    read = Msp.of(config.SerializeToString())
    assert read.config() == config
    return read


def issued(ca: CertificateAuthority, role: str = "client") -> Any:
    return ca.issue(new_key().public_key(), "somebody", role)


def creator(certificate: Any) -> Any:
    return identities_pb2.SerializedIdentity(
        mspid="Org1MSP", id_bytes=certificate_pem(certificate)
    ).SerializeToString()


@pytest.fixture(scope="module")
def root() -> CertificateAuthority:
    return CertificateAuthority.create("org1.example.com")


@pytest.fixture(scope="module")
def middle(root: Any) -> CertificateAuthority:
    return below(root)


@pytest.mark.parametrize("turned", [False, True])
def test_an_identity_may_be_two_cas_below_the_root(root, middle, turned):
    last = below(middle, "last")
    cas = [last, middle] if turned else [middle, last]
    found = msp_of(root, *cas, unit_by=last).identify(creator(issued(last, "peer")))
    assert found.role is Role.PEER
    chain = [last.certificate, middle.certificate, root.certificate]
    assert found.certifiers == certifiers_of(chain)


def test_a_ca_that_issued_a_ca_issues_no_identities(root, middle):
    msp = msp_of(root, middle)
    assert msp.identify(creator(issued(middle))).role is Role.CLIENT
    with pytest.raises(Denied, match="issues certificates of CAs") as caught:
        msp.identify(creator(issued(root)))
    assert caught.value.mspid is None


def test_without_the_intermediate_ca_there_is_no_chain(root, middle):
    with pytest.raises(Denied, match="not issued by the CA"):
        msp_of(root).identify(creator(issued(middle)))


def test_a_role_counts_when_the_ca_that_it_names_certifies(root, middle):
    other = below(root, "other")
    msp = msp_of(root, middle, other, unit_by=other)
    assert msp.identify(creator(issued(other))).role is Role.CLIENT
    with pytest.raises(Denied, match="does not have an OU"):
        msp.identify(creator(issued(middle)))
    with pytest.raises(InvalidInput, match="none of its CAs"):
        msp_of(root, middle, unit_by=other)


def test_a_revoked_certificate_is_refused(root, middle):
    revoked, good = issued(middle), issued(middle)
    msp = msp_of(root, middle, lists=[revocations(middle, revoked)])
    assert msp.identify(creator(good)).role is Role.CLIENT
    with pytest.raises(Denied, match="The certificate has been revoked") as caught:
        msp.identify(creator(revoked))
    assert caught.value.mspid == "Org1MSP"


def test_a_list_that_the_ca_did_not_sign_or_make_does_not_count(root, middle):
    one = issued(middle)
    lists = [revocations(middle, one, signer=root), revocations(root, one)]
    found = msp_of(root, middle, lists=lists).identify(creator(one))
    assert found.role is Role.CLIENT


def test_cas_that_do_not_fit_are_no_msp(root, middle):
    stranger = below(CertificateAuthority.create("org2.example.com"))
    no_ca = CertificateAuthority(issued(root), new_key())
    short = below(root, "short", limit=0)
    for found, cas, lists in (
        ("issued by none of the CAs", [stranger], []),
        ("not that of a CA", [no_ca], []),
        ("path length", [short, below(short, "under")], []),
        ("revoked", [middle], [revocations(root, middle.certificate)]),
        ("cannot be read", [], [b"garbage"]),
    ):
        with pytest.raises(InvalidInput, match=found):
            msp_of(root, *cas, lists=lists)


def test_one_key_certified_twice_gives_two_chains(root):
    key = new_key()
    cas = [below(root, "twin", key=key), below(root, "twin", key=key)]
    with pytest.raises(Denied, match="more than one chain"):
        msp_of(root, *cas).identify(creator(issued(cas[0])))


def test_a_certificate_is_judged_as_of_its_beginning(root):
    later = below(root, days=20)
    with pytest.raises(Denied, match="begins outside the validity"):
        msp_of(root, later).identify(creator(issued(later)))
