from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaindock.container.contracts import NodeLabels
from chaindock.controllers.docker import names
from chaindock.ids import Ccid

HASH = "0123456789abcdef" * 4
NODE = NodeLabels("n", "peer0.org1.example.com", "dev")


def test_names_are_those_of_a_fabric_peer():
    ccid = Ccid(f"basic_1.0:{HASH}")
    container = f"dev-peer0.org1.example.com-basic_1.0-{HASH}"
    assert names.container_name(NODE, ccid) == container
    assert names.image_name(NODE, ccid) == (
        f"{container}-fdcd5e4499a096cb20d321e68717fb4a96145e9f7e15732a029775296a595c72"
    )


def test_odd_characters_become_dashes_and_images_are_lower_case():
    node = NodeLabels("n", "Peer*0", "Dev$dev")
    digest = hashlib.sha256(b"Dev$dev-Peer*0-myCC-1.0").hexdigest()
    assert names.image_name(node, Ccid("myCC:1.0")) == (
        f"dev-dev-peer-0-mycc-1.0-{digest}"
    )


def test_case_stays_in_container_names():
    node = NodeLabels("n", "Peer0", "Dev")
    assert names.container_name(node, Ccid("myCC:1.0")) == "Dev-Peer0-myCC-1.0"


@pytest.mark.parametrize(
    ("network", "peer", "expected"),
    [("", "p", "p-cc-1"), ("n", "", "n-cc-1"), ("", "", "cc-1")],
)
def test_empty_parts_are_left_out(network: str, peer: str, expected: str):
    assert (
        names.container_name(NodeLabels("n", peer, network), Ccid("cc:1")) == expected
    )


@pytest.mark.parametrize("label", ["a..b", "a__b", "cc-", "cc+", "cc."])
def test_labels_that_break_the_engines_rule_are_usable_all_the_same(label: str):
    assert names.image_name(NODE, Ccid(f"{label}:{HASH}")).startswith("chaindock-")


@given(st.text("aZ09_.+-", max_size=300))
def test_every_label_gets_a_name_that_engines_take(rest: str):
    name = names.image_name(NODE, Ccid(f"x{rest}:{HASH}"))
    assert names._IMAGE.fullmatch(name)
    assert len(name) <= names.MAX_IMAGE_NAME


def test_a_build_key_depends_on_every_input_and_on_nothing_else():
    key = names.build_key({"code": "1", "builder": "2"})
    assert key == names.build_key({"builder": "2", "code": "1"})
    assert key != names.build_key({"code": "12", "builder": ""})
    assert key != names.build_key({"code": "1", "builder": "3"})


def test_placeholders_of_image_names_are_filled():
    text = "$(DOCKER_NS)/fabric-ccenv:$(TWO_DIGIT_VERSION)-$(ARCH)"
    found = names.expand_image(text, "arm64")
    assert found == "hyperledger/fabric-ccenv:latest-arm64"


@pytest.mark.parametrize(
    ("image", "full"),
    [
        ("golang:1.24", "docker.io/library/golang:1.24"),
        ("docker.io/golang", "docker.io/library/golang"),
        ("team/cc@sha256:0", "docker.io/team/cc@sha256:0"),
        ("reg.example/a/b:1", "reg.example/a/b:1"),
        ("localhost/a", "localhost/a"),
        ("localhost:5000/a:1", "localhost:5000/a:1"),
    ],
)
def test_full_names_of_images_have_their_registry(image: str, full: str):
    assert names.full_image(image) == full
