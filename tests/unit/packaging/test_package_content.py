"""What `inspect` shows, and the rules of metadata.json and META-INF."""

import json

import pytest

from chaindock.errors import PackageInvalid
from chaindock.packaging.archive import Entry
from chaindock.packaging.format import (
    check_index,
    encode_metadata,
    is_index_path,
    read_package,
)
from support.archives import METADATA, Raw, code, fabric_go_package, package

INDEX = "META-INF/statedb/couchdb/indexes/a.json"


def test_inspect_shows_files_and_indexes():
    info = read_package(fabric_go_package())
    assert Entry("src/main.go", 29) in info.entries
    assert info.indexes == ("META-INF/statedb/couchdb/indexes/owner.json",)
    assert info.size == len(fabric_go_package())
    assert info.warnings == ()


def test_an_unexpected_file_is_a_warning_as_in_the_peer():
    info = read_package(package(None, METADATA, Raw(b"README.md", b"hello")))
    assert info.warnings == (
        "unexpected file 'README.md' in the top level of the package: it is ignored",
    )


@pytest.mark.parametrize("label", ["a..b", "a__b", "cc-", "cc+", "cc.", "a-_b"])
def test_a_label_that_no_image_can_be_named_after_is_a_warning(label):
    metadata = b'{"label":"%s","type":"node"}' % label.encode()
    (warning,) = read_package(package(None, metadata)).warnings
    assert repr(label) in warning


@pytest.mark.parametrize("label", ["basic_1.0", "a.b-c_d+e", "A", "0"])
def test_usual_labels_give_no_warning(label):
    metadata = b'{"label":"%s","type":"node"}' % label.encode()
    assert not read_package(package(None, metadata)).warnings


def test_order_in_the_package_does_not_matter():
    from support.archives import raw_tar, zipped

    info = read_package(
        zipped(raw_tar(Raw(b"code.tar.gz", code()), Raw(b"metadata.json", METADATA)))
    )
    assert info.label == "basic_1.0"


def test_archives_without_an_end_mark_are_taken():
    from support.archives import files, raw_tar, zipped

    assert read_package(package(zipped(raw_tar(*files(), end=b"")))).entries


def test_metadata_is_written_as_fabric_writes_it():
    raw = encode_metadata("a_1", "golang", "example.org/a&b<c>/é\u2028")
    assert (
        raw
        == (
            '{"path":"example.org/a\\u0026b\\u003cc\\u003e/é\\u2028",'
            '"type":"golang","label":"a_1"}'
        ).encode()
    )
    assert json.loads(raw)["path"] == "example.org/a&b<c>/é\u2028"


GOOD = {
    "names": {"index": {"fields": ["a", "b"]}},
    "orders": {"index": {"fields": [{"a": "asc"}, {"b": "DESC"}]}, "type": "json"},
    "all": {
        "index": {"fields": ["a"], "partial_filter_selector": {"x": 1}},
        "ddoc": "d",
        "name": "n",
        "type": "json",
    },
    "no fields, as Fabric takes it": {"index": {}},
}
BAD = {
    "list": [],
    "no index": {"name": "a"},
    "index is text": {"index": "a"},
    "unknown member": {"index": {"fields": ["a"]}, "extra": 1},
    "unknown member of index": {"index": {"fields": ["a"], "extra": 1}},
    "fields is text": {"index": {"fields": "a"}},
    "field is a number": {"index": {"fields": [1]}},
    "order is unknown": {"index": {"fields": [{"a": "up"}]}},
    "order is a number": {"index": {"fields": [{"a": 1}]}},
    "ddoc is a number": {"index": {}, "ddoc": 1},
    "name is null": {"index": {}, "name": None},
    "type is text": {"index": {}, "type": "text"},
}


@pytest.mark.parametrize("document", GOOD.values(), ids=GOOD.keys())
def test_index_definitions_are_taken(document):
    check_index(INDEX, json.dumps(document).encode())


@pytest.mark.parametrize("document", BAD.values(), ids=BAD.keys())
def test_wrong_index_definitions_are_refused(document):
    with pytest.raises(PackageInvalid) as caught:
        check_index(INDEX, json.dumps(document).encode())
    assert caught.value.entry == INDEX


def test_a_wrong_order_of_an_index_is_named():
    order = b'{"index":{"fields":["a",{"b":"up"}]}}'
    with pytest.raises(PackageInvalid, match=r"'up'.*'asc' or 'desc'") as caught:
        check_index(INDEX, order)
    assert "regex" not in caught.value.message


@pytest.mark.parametrize(
    "name",
    [
        "META-INF/a.json",
        "META-INF/statedb/couchdb/indexes/a.txt",
        "META-INF/statedb/couchdb/collections/a b/indexes/a.json",
        "META-INF/statedb/couchdb/collections/indexes/a.json",
        "META-INF/statedb/leveldb/indexes/a.json",
    ],
)
def test_index_definitions_in_the_wrong_place_are_refused(name):
    with pytest.raises(PackageInvalid, match="META-INF holds"):
        check_index(name, b'{"index":{}}')


def test_index_definitions_of_collections_are_taken():
    name = "META-INF/statedb/couchdb/collections/private_Details-1/indexes/a.json"
    check_index(name, b'{"index":{"fields":["a"]}}')


def test_hidden_files_and_the_source_are_no_indexes():
    assert is_index_path(INDEX)
    assert not is_index_path("META-INF/.DS_Store")
    assert not is_index_path("src/META-INF/x")
