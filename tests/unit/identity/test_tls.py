"""Certificates of the chaincode listener, and of each attempt."""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import hashlib
import ipaddress
import ssl
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from chaindock.identity.ca import TlsAuthority, certificate_hash

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def authority() -> TlsAuthority:
    return TlsAuthority()


def read(pem: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem.encode())


def usages(certificate: x509.Certificate) -> set[x509.ObjectIdentifier]:
    found = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    return set(found.value)


def test_a_client_certificate_is_as_fabric_makes_it(authority: TlsAuthority):
    certificate = read(authority.issue_client().cert_pem)
    now = dt.datetime.now(dt.UTC)
    day = dt.timedelta(hours=24)
    minute = dt.timedelta(minutes=1)
    assert abs(certificate.not_valid_before_utc - (now - day)) < minute
    assert abs(certificate.not_valid_after_utc - (now + day)) < minute
    assert [a.oid for a in certificate.subject] == [NameOID.SERIAL_NUMBER]
    assert usages(certificate) == {ExtendedKeyUsageOID.CLIENT_AUTH}
    certificate.verify_directly_issued_by(read(authority.root_pem))
    with pytest.raises(x509.ExtensionNotFound):
        certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)


def test_keys_are_pkcs8_under_the_label_that_every_shim_reads(authority: TlsAuthority):
    pem = authority.issue_client().key_pem
    assert pem.startswith("-----BEGIN PRIVATE KEY-----\n")
    body = "".join(pem.strip().splitlines()[1:-1])
    key = serialization.load_der_private_key(base64.b64decode(body), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.curve.name == "secp256r1"


@pytest.mark.parametrize("host", ["172.18.0.1", "[fe80::1]", "fe80::1%eth0", "box.lan"])
def test_a_server_certificate_holds_for_its_host_and_the_names_of_this_machine(
    authority: TlsAuthority, host: str
):
    certificate = read(authority.issue_server(host).cert_pem)
    names = certificate.extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    ).value
    addresses = set(names.get_values_for_type(x509.IPAddress))
    dns = set(names.get_values_for_type(x509.DNSName))
    assert {ipaddress.ip_address(one) for one in ("127.0.0.1", "::1")} <= addresses
    assert dns >= {"localhost", "host.docker.internal", "host.containers.internal"}
    bare = host.strip("[]").partition("%")[0]
    assert bare in {str(one) for one in addresses} | dns
    assert usages(certificate) == {ExtendedKeyUsageOID.SERVER_AUTH}


def test_no_two_certificates_are_alike(authority: TlsAuthority):
    pairs = [authority.issue_client() for _ in range(20)]
    assert len({certificate_hash(pair.cert_pem) for pair in pairs}) == 20
    assert len({pair.key_pem for pair in pairs}) == 20
    assert len({read(pair.cert_pem).subject for pair in pairs}) == 20


def test_authorities_have_nothing_in_common(authority: TlsAuthority):
    other = TlsAuthority()
    assert other.root_pem != authority.root_pem
    certificate = read(other.issue_client().cert_pem)
    with pytest.raises(ValueError, match="subject"):
        certificate.verify_directly_issued_by(read(authority.root_pem))


def test_the_root_signs_and_no_certificate_of_it_can(authority: TlsAuthority):
    root, leaf = read(authority.root_pem), read(authority.issue_client().cert_pem)
    constraints = x509.BasicConstraints
    assert root.extensions.get_extension_for_class(constraints).value.ca
    assert not leaf.extensions.get_extension_for_class(constraints).value.ca
    assert not leaf.extensions.get_extension_for_class(
        x509.KeyUsage
    ).value.key_cert_sign


def test_the_hash_is_of_the_der(authority: TlsAuthority):
    pem = authority.issue_client().cert_pem
    der = read(pem).public_bytes(serialization.Encoding.DER)
    assert certificate_hash(pem) == hashlib.sha256(der).hexdigest()
    assert certificate_hash(pem.encode()) == certificate_hash(pem)


def test_no_key_is_shown_by_chance(authority: TlsAuthority):
    pair = authority.issue_client()
    body = pair.key_pem.splitlines()[1]
    assert body not in repr(pair)
    assert body not in repr([pair, authority])


def test_openssl_takes_them_strictly(authority: TlsAuthority, tmp_path: Path):
    """As Python 3.13 and later check by themselves."""
    pair = authority.issue_server("127.0.0.1")
    file = tmp_path / "server.pem"
    file.write_text(pair.key_pem + pair.cert_pem)
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(file)
    dialling = ssl.create_default_context(cadata=authority.root_pem)
    dialling.verify_flags |= ssl.VERIFY_X509_STRICT
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = dialling.wrap_bio(back, there, server_hostname="127.0.0.1")
    server = serving.wrap_bio(there, back, server_side=True)
    for end in (client, server, client, server):
        with contextlib.suppress(ssl.SSLWantReadError):
            end.do_handshake()
    assert client.version() == server.version() == "TLSv1.3"
