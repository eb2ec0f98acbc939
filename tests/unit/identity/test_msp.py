"""Who is let in, who is not."""

import datetime as dt
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from cryptography.x509.oid import NameOID
from fabric_protos.msp import identities_pb2, msp_config_pb2

from chaindock.errors import Denied, InvalidInput
from chaindock.identity import msp as module
from chaindock.identity.ca import CertificateAuthority, certificate_pem, new_key
from chaindock.identity.msp import Msp, Msps, Role, SigningIdentity, has_low_s

P256 = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


@pytest.fixture(scope="module")
def ca() -> Any:
    return CertificateAuthority.create("org1.example.com")


@pytest.fixture
def msp(ca: Any) -> Any:
    return Msp.of_ca("Org1MSP", ca.certificate)


def creator(pem: Any, mspid: Any = "Org1MSP") -> Any:
    return identities_pb2.SerializedIdentity(
        mspid=mspid, id_bytes=pem
    ).SerializeToString()


def certificate(
    ca: Any,
    *units: Any,
    key: Any = None,
    days: Any = (0, 10),
    extensions: Any = (),
    issuer: Any = None,
) -> Any:
    """A certificate that the CA signs without asking whether it should."""
    names = [x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, u) for u in units]
    names.append(x509.NameAttribute(NameOID.COMMON_NAME, "x"))
    begin = dt.datetime.now(dt.UTC) + dt.timedelta(days=days[0])
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(names))
        .issuer_name(issuer or ca.certificate.subject)
        .public_key((key or new_key()).public_key())
        .serial_number(1)
        .not_valid_before(begin)
        .not_valid_after(begin + dt.timedelta(days=days[1]))
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return certificate_pem(builder.sign(ca.key, hashes.SHA256()))


def test_every_role_is_recognised(ca, msp):
    for role in Role:
        assert msp.identify(creator(certificate(ca, role, "sales"))).role is role


@pytest.mark.parametrize("units", [(), ("sales",), ("client", "peer")])
@pytest.mark.statement(84, of="client")
def test_not_exactly_one_role_is_refused(ca, msp, units):
    with pytest.raises(Denied, match="does not have an OU") as caught:
        msp.identify(creator(certificate(ca, *units)))
    assert caught.value.mspid == "Org1MSP"


def test_another_organisation_and_garbage_are_unknown(ca, msp):
    pem = certificate(ca, "client")
    for data in (
        creator(pem, "Org2MSP"),
        creator(b"no pem"),
        creator(pem + pem),
        creator(pem.replace(b"MII", b"XII")),
        b"\xff\xff",
        b"",
    ):
        with pytest.raises(Denied) as caught:
            msp.identify(data)
        assert caught.value.mspid is None


def test_a_certificate_of_another_ca_with_the_same_name_is_refused(msp):
    twin = CertificateAuthority.create("org1.example.com")
    with pytest.raises(Denied, match="not issued by the CA"):
        msp.identify(creator(certificate(twin, "client")))


def test_the_ca_itself_and_other_cas_are_no_identities(ca, msp):
    with pytest.raises(Denied):
        msp.identify(creator(certificate_pem(ca.certificate)))
    constraint = (x509.BasicConstraints(ca=True, path_length=None), True)
    with pytest.raises(Denied, match="CA certificate"):
        msp.identify(creator(certificate(ca, "client", extensions=[constraint])))


def test_a_self_signed_certificate_is_refused(msp):
    alone = CertificateAuthority.create("elsewhere")
    alone.certificate.public_key()
    with pytest.raises(Denied, match="not issued by the CA"):
        msp.identify(creator(certificate(alone, "admin")))


def test_an_unknown_critical_extension_is_refused(ca, msp):
    odd = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    with pytest.raises(Denied, match=r"1\.2\.3\.4"):
        msp.identify(creator(certificate(ca, "client", extensions=[(odd, True)])))
    msp.identify(creator(certificate(ca, "client", extensions=[(odd, False)])))


def test_an_expired_certificate_is_identified_and_says_so(ca, msp):
    ca_ = CertificateAuthority(ca.certificate, ca.key)
    fresh = certificate(ca_, "client", days=(0, 10))
    assert not msp.identify(creator(fresh)).expired
    begin = ca.certificate.not_valid_before_utc - dt.datetime.now(dt.UTC)
    days = (begin + dt.timedelta(seconds=30)).total_seconds() / 86400
    ended = certificate(ca_, "client", days=(days, 60 / 86400))
    assert msp.identify(creator(ended)).expired


def test_a_certificate_that_begins_before_its_ca_is_refused(ca, msp):
    with pytest.raises(Denied, match="outside the validity"):
        msp.identify(creator(certificate(ca, "client", days=(-2, 10))))


def test_rsa_and_odd_curves_are_refused(ca, msp):
    for key in (
        rsa.generate_private_key(65537, 2048),
        ec.generate_private_key(ec.SECP256K1()),
    ):
        with pytest.raises(Denied, match="not ECDSA"):
            msp.identify(creator(certificate(ca, "client", key=key)))


@pytest.mark.parametrize(
    "curve", [ec.SECP224R1, ec.SECP256R1, ec.SECP384R1, ec.SECP521R1]
)
def test_signatures_have_low_s_and_verify_on_every_curve(ca, msp, curve):
    key = ec.generate_private_key(curve())
    signer = SigningIdentity("Org1MSP", certificate(ca, "client", key=key), key)
    identity = msp.identify(signer.creator)
    for n in range(12):  # every second raw signature would be high
        message = b"message %d" % n
        signature = signer.sign(message)
        assert has_low_s(signature, key.curve)
        identity.verify(message, signature)


def test_high_s_wrong_message_and_garbage_are_refused(ca, msp):
    key = new_key()
    signer = SigningIdentity("Org1MSP", certificate(ca, "client", key=key), key)
    identity = msp.identify(signer.creator)
    good = signer.sign(b"m")
    r, s = decode_dss_signature(good)
    high = encode_dss_signature(r, P256 - s)
    key.public_key().verify(high, b"m", ec.ECDSA(hashes.SHA256()))  # valid, but high
    with pytest.raises(Denied, match="Invalid S"):
        identity.verify(b"m", high)
    for message, signature in ((b"n", good), (b"m", b""), (b"m", good[:-1])):
        with pytest.raises(Denied):
            identity.verify(message, signature)


def test_certificates_of_the_ca_are_low_s(ca):
    for _ in range(8):
        issued = ca.issue(new_key().public_key(), "x@y", "client")
        assert has_low_s(issued.signature, ec.SECP256R1())
    assert has_low_s(ca.certificate.signature, ec.SECP256R1())


def test_the_cache_is_bounded_and_refusals_are_not_kept(ca, monkeypatch):
    monkeypatch.setattr(module, "_CACHED", 3)
    msp = Msp.of_ca("Org1MSP", ca.certificate)
    pem = certificate(ca, "client")
    creators = [creator(pem + b"\n" * n) for n in range(6)]
    found = [msp.identify(c) for c in creators]
    assert msp._known.cache_info().currsize == 3
    assert msp.identify(creators[-1]) is found[-1]
    with pytest.raises(Denied):
        msp.identify(creator(pem, "Org2MSP"))
    assert msp._known.cache_info().currsize == 3


def test_a_padded_creator_is_refused_and_not_kept(ca, msp):
    """Fields that SerializedIdentity does not have are accepted by its parser."""
    msps = Msps([msp])
    small = creator(certificate(ca, "client"))

    def padded(size: int) -> Any:
        padding = identities_pb2.SerializedIdentity(mspid="x" * size)
        raw = b"\x5a" + padding.SerializeToString()[1:]  # field 11
        assert identities_pb2.SerializedIdentity.FromString(small + raw).mspid
        return small + raw

    assert msps.identify(padded(60_000)).role is Role.CLIENT
    for size in (66_560, 9_000_000):
        for one in (msp, msps):
            with pytest.raises(Denied, match="the limit is 66560") as caught:
                one.identify(padded(size))
            assert caught.value.mspid is None
            assert one._known.cache_info().currsize == 1


def test_the_channel_configuration_carries_root_and_roles(ca, msp):
    config = msp_config_pb2.FabricMSPConfig.FromString(msp.config().config)
    assert config.name == "Org1MSP"
    assert list(config.root_certs) == [certificate_pem(ca.certificate)]
    assert config.fabric_node_ous.enable
    unit = config.fabric_node_ous.orderer_ou_identifier
    assert unit.organizational_unit_identifier == "orderer"


# --- several organisations ----------------------------------------------------------


@pytest.fixture
def second() -> Any:
    return CertificateAuthority.create("org2.example.com")


def test_each_identity_is_judged_by_its_own_organisation(ca, msp, second):
    msps = Msps([msp, Msp.of_ca("Org2MSP", second.certificate)])
    assert set(msps.mspids) == {"Org1MSP", "Org2MSP"}
    for mspid, own in (("Org1MSP", ca), ("Org2MSP", second)):
        identity = msps.identify(creator(certificate(own, "peer", "sales"), mspid))
        assert (identity.mspid, identity.role) == (mspid, Role.PEER)
        assert identity.units == {"peer", "sales"}
        assert identity.certifiers == own.certificate.fingerprint(hashes.SHA256())


def test_no_organisation_vouches_for_certificates_of_another(ca, msp, second):
    msps = Msps([msp, Msp.of_ca("Org2MSP", second.certificate)])
    with pytest.raises(Denied, match="was not issued by the CA") as caught:
        msps.identify(creator(certificate(ca, "peer"), "Org2MSP"))
    assert caught.value.mspid is None
    for unknown in (creator(certificate(ca, "peer"), "Org3MSP"), b"\xff", b""):
        with pytest.raises(Denied) as caught:
            msps.identify(unknown)
        assert caught.value.mspid is None


def test_an_msp_is_read_back_from_the_channel_configuration(ca, msp):
    read = Msp.of(msp.config().SerializeToString())
    assert read.mspid == "Org1MSP"
    assert read.identify(creator(certificate(ca, "admin"))).role is Role.ADMIN
    broken = msp_config_pb2.FabricMSPConfig(name="X", root_certs=[b"x"])
    for config in (b"", broken.SerializeToString()):
        raw = msp_config_pb2.MSPConfig(config=config).SerializeToString()
        with pytest.raises(InvalidInput, match="MSP of the channel configuration"):
            Msp.of(raw)
