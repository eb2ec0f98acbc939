"""Archives that want something else than being a package."""

import gzip
import hashlib
import io
import os
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chaindock.errors import PackageInvalid
from chaindock.ids import Ccid
from chaindock.packaging.format import read_package
from chaindock.packaging.rules import Limits
from chaindock.packaging.store import PackageStore, StoredPackage, unpack_code
from chaindock.packaging.writer import StoredGzip
from support.archives import (
    METADATA,
    SOURCE,
    Raw,
    code,
    fabric_go_package,
    files,
    package,
    pax,
    raw_tar,
    zipped,
)

SMALL = Limits(
    package_bytes=4 * 1024 * 1024,
    unpacked_bytes=2 * 1024 * 1024,
    files=50,
    ratio=20,
    ratio_from_bytes=256 * 1024,
)
INNER = {
    "traversal": code(Raw(b"src/../../../escaped", b"x")),
    "traversal at the start": code(Raw(b"../escaped", b"x")),
    "traversal by prefix": code(Raw(b"escaped", b"x", prefix=b"../..")),
    "traversal by directory": code(Raw(b"../escaped/", kind=b"5")),
    "absolute": code(Raw(b"/tmp/escaped", b"x")),
    "absolute by pax": code(pax(("path", b"/tmp/escaped")), Raw(b"src/a", b"x")),
    "traversal by pax": code(pax(("path", b"../escaped")), Raw(b"src/a", b"x")),
    "traversal by long name": code(
        Raw(b"././@LongLink", b"../escaped\0", b"L"), Raw(b"src/a", b"x")
    ),
    "global pax path": code(pax(("path", b"src/b"), kind=b"g"), Raw(b"src/a", b"x")),
    "pax of many records": code(
        pax(*((f"k{n}", b"") for n in range(101))), Raw(b"src/a", b"x")
    ),
    "pax size": code(pax(("size", b"1")), Raw(b"src/a", b"xyz")),
    "negative pax size": code(pax(("size", b"-1")), Raw(b"src/a", b"xyz")),
    "pax sparse": code(
        pax(("GNU.sparse.major", b"1"), ("GNU.sparse.realsize", b"99999999999")),
        Raw(b"src/a", b"xyz"),
    ),
    "pax link": code(pax(("linkpath", b"/etc/passwd")), Raw(b"src/a")),
    "pax record of a wrong length": code(
        Raw(b"PaxHeader", b"99 path=src/b\n", b"x"), Raw(b"src/a", b"x")
    ),
    "pax path twice": code(
        pax(("path", b"src/b"), ("path", b"src/c")), Raw(b"src/a", b"x")
    ),
    "pax and long name": code(
        pax(("path", b"src/b")),
        Raw(b"././@LongLink", b"src/c\0", b"L"),
        Raw(b"src/a", b"x"),
    ),
    "pax without an entry": code(pax(("path", b"src/b"))),
    "chain of pax headers": code(*[pax(("mtime", b"1"))] * 20, Raw(b"src/a", b"x")),
    "huge pax header": code(pax(("comment", b"x" * 100_000)), Raw(b"src/a", b"x")),
    "huge long name": code(
        Raw(b"././@LongLink", b"a" * 100_000, b"L"), Raw(b"src/a", b"x")
    ),
    "symbolic link": code(Raw(b"src/a", kind=b"2", link=b"/etc/passwd")),
    "symbolic link, then through it": code(
        Raw(b"src/a", kind=b"2", link=b"/tmp"), Raw(b"src/a/escaped", b"x")
    ),
    "hard link": code(Raw(b"src/a", kind=b"1", link=b"src/index.js")),
    "character device": code(Raw(b"src/a", kind=b"3")),
    "block device": code(Raw(b"src/a", kind=b"4")),
    "fifo": code(Raw(b"src/a", kind=b"6")),
    "socket": code(Raw(b"src/a", kind=b"s")),
    "sparse": code(Raw(b"src/a", b"x", kind=b"S")),
    "multi-volume": code(Raw(b"src/a", b"x", kind=b"M")),
    "duplicate": code(Raw(b"src/index.js", b"x")),
    "duplicate but for case": code(Raw(b"src/INDEX.js", b"x")),
    "duplicate but for the case of a directory": code(Raw(b"SRC/other.js", b"x")),
    "duplicate but for normalisation": code(
        Raw("src/é".encode(), b"x"), Raw("src/e\u0301".encode(), b"x")
    ),
    "duplicate but for ./": code(Raw(b"./src/index.js", b"x")),
    "file as directory": code(Raw(b"src/index.js/a", b"x")),
    "directory as file": code(Raw(b"src", b"x")),
    "directory over a file": code(Raw(b"src/index.js/", kind=b"5")),
    "directory with content": code(Raw(b"src/a/", b"x", kind=b"5")),
    "NUL in a name": code(pax(("path", b"src/a\0.js")), Raw(b"src/a", b"x")),
    "newline in a name": code(Raw(b"src/a\nb", b"x")),
    "escape code in a name": code(Raw(b"src/\x1b[2J", b"x")),
    "backslash in a name": code(Raw(b"src\\..\\..\\escaped", b"x")),
    "drive letter": code(Raw(b"C:/escaped", b"x")),
    "name that is not UTF-8": code(Raw(b"src/\xff\xfe", b"x")),
    "name too long": code(pax(("path", b"src/" + b"a/" * 600)), Raw(b"a", b"x")),
    "path element too long": code(pax(("path", b"src/" + b"a" * 300)), Raw(b"a")),
    "too deep": code(pax(("path", b"a/" * 100 + b"a")), Raw(b"a", b"x")),
    "empty name": code(Raw(b"", b"x")),
    "dot": code(Raw(b".", b"x")),
    "empty path element": code(Raw(b"src//a", b"x")),
    "trailing slash on a file": code(Raw(b"src/a/", b"x")),
    "negative size": code(Raw(b"src/a", b"x", size=b"-0000000001")),
    "binary size": code(Raw(b"src/a", b"x", size=b"\x80" + bytes(10) + b"\x01")),
    "negative binary size": code(Raw(b"src/a", b"x", size=b"\xff" * 12)),
    "size that is no number": code(Raw(b"src/a", b"x", size=b"12z")),
    "size beyond the end": code(Raw(b"src/a", b"x", size=b"00000077777")),
    "wrong checksum": code(Raw(b"src/a", b"x", checksum=b"000001\0 ")),
    "half a header": zipped(raw_tar(*files(), end=b"src/a")),
    "data behind the end mark": zipped(raw_tar(*files()) + b"more"),
    "entry between end blocks": zipped(
        raw_tar(*files(), end=bytes(512)) + Raw(b"src/a", b"x").bytes()
    ),
    "too many entries": code(*[Raw(b"src/%d" % n) for n in range(100)]),
    "too many implied directories": code(
        *[Raw(b"%d/b/c/d/e/f" % n, b"x") for n in range(12)]
    ),
    "too many mentions of one directory": code(*[Raw(b"src/", kind=b"5")] * 100),
    "bomb by size": code(Raw(b"src/a", os.urandom(3 * 1024 * 1024))),
    "bomb by ratio": code(Raw(b"src/a", bytes(1024 * 1024))),
    "bomb by end mark": zipped(raw_tar(*files(), end=bytes(64 * 1024 * 1024))),
    "not gzip": b"PK\x03\x04" + bytes(200),
    "empty": b"",
    "truncated gzip": code()[:-20],
    "truncated trailer": code()[:-1],
    "wrong gzip checksum": code()[:-8] + b"\0\0\0\0" + code()[-4:],
    "garbage behind gzip": code() + b"garbage",
    "second gzip member": code() + code(),
    "gzip of something else": zipped(b"hello " * 500),
    "index that is not JSON": code(
        Raw(b"META-INF/statedb/couchdb/indexes/a.json", b"{")
    ),
    "index without index": code(
        Raw(b"META-INF/statedb/couchdb/indexes/a.json", b'{"name":"a"}')
    ),
    "index of nested arrays": code(
        Raw(b"META-INF/statedb/couchdb/indexes/a.json", b"[" * 100_000)
    ),
    "huge index": code(
        Raw(b"META-INF/statedb/couchdb/indexes/a.json", b" " * (1024 * 1024 + 1))
    ),
    "program in META-INF": code(Raw(b"META-INF/run.sh", b"#!/bin/sh")),
}
OUTER = {
    "not gzip": b"hello",
    "empty": b"",
    "truncated": package()[:-30],
    "garbage behind": package() + b"\0",
    "no code": zipped(raw_tar(Raw(b"metadata.json", METADATA))),
    "no metadata": zipped(raw_tar(Raw(b"code.tar.gz", code()))),
    "nothing": zipped(raw_tar()),
    "named with ./": zipped(
        raw_tar(Raw(b"./metadata.json", METADATA), Raw(b"./code.tar.gz", code()))
    ),
    "metadata twice": package(None, METADATA, Raw(b"metadata.json", METADATA)),
    "code twice": package(None, METADATA, Raw(b"code.tar.gz", code())),
    "metadata in two cases": package(None, METADATA, Raw(b"METADATA.JSON", METADATA)),
    "directory": package(None, METADATA, Raw(b"docs/", kind=b"5")),
    "link": package(None, METADATA, Raw(b"a", kind=b"2", link=b"/etc/passwd")),
    "code is a link": zipped(
        raw_tar(
            Raw(b"metadata.json", METADATA),
            Raw(b"code.tar.gz", kind=b"2", link=b"/etc/passwd"),
        )
    ),
    "global pax header": package(None, METADATA, pax(("comment", b"x"), kind=b"g")),
    "traversal": package(None, METADATA, Raw(b"../escaped", b"x")),
    "unexpected bomb": package(None, METADATA, Raw(b"a", bytes(4 * 1024 * 1024))),
    "metadata is no JSON": package(None, b"label: basic"),
    "metadata is not UTF-8": package(None, b'{"label":"\xff","type":"node"}'),
    "metadata is a list": package(None, b"[]"),
    "metadata is huge": package(None, METADATA[:-1] + b" " * 70_000 + b"}"),
    "metadata is deep": package(None, b'{"a":' + b"[" * 30_000),
    "metadata has a huge number": package(None, b'{"a":' + b"9" * 10_000 + b"}"),
    "label twice": package(None, b'{"label":"a","Label":"b","type":"node"}'),
    "label is a number": package(None, b'{"label":1,"type":"node"}'),
    "no label": package(None, b'{"type":"node"}'),
    "label is a path": package(None, b'{"label":"../../a","type":"node"}'),
    "label has a space": package(None, b'{"label":"a b","type":"node"}'),
    "label ends with a line end": package(None, b'{"label":"a\\n","type":"node"}'),
    "label is not ASCII": package(None, '{"label":"ä","type":"node"}'.encode()),
    "label is too long": package(None, b'{"label":"%s","type":"node"}' % (b"a" * 184)),
    "no type": package(None, b'{"label":"a"}'),
    "type is null": package(None, b'{"label":"a","type":null}'),
}
ALL = {f"code: {name}": package(one) for name, one in INNER.items()} | {
    f"package: {name}": one for name, one in OUTER.items()
}


def everything_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("data", ALL.values(), ids=ALL.keys())
def test_store_refuses_it_and_keeps_nothing(tmp_path, data):
    root = tmp_path / "a" / "store"
    with pytest.raises(PackageInvalid) as caught:
        PackageStore(root, SMALL).add(data)
    assert caught.value.entry
    assert caught.value.rule
    assert caught.value.rule in caught.value.message
    assert everything_below(tmp_path) == ["a", "a/store"]


# What an index or metadata.json says was checked when the package came in; its hash is
# checked again when it is unpacked.
ABOUT_CONTENT = ("index", "program", "label", "type", "metadata is", "metadata has")
ABOUT_FORM = {
    name: one
    for name, one in ALL.items()
    if not name.partition(": ")[2].startswith(ABOUT_CONTENT)
    and not name.endswith(("no label", "no type"))
}


@pytest.mark.parametrize("data", ABOUT_FORM.values(), ids=ABOUT_FORM.keys())
async def test_unpacking_refuses_it_and_leaves_nothing(tmp_path, data):
    file = tmp_path / "package"
    file.write_bytes(data)
    ccid = Ccid("a:" + hashlib.sha256(data).hexdigest())
    hostile = StoredPackage(ccid, "a", "node", "", "", file, SMALL)
    into = tmp_path / "a" / "b"
    into.parent.mkdir()
    with pytest.raises(PackageInvalid, match="is refused: "):
        await hostile.unpack(into)
    assert everything_below(tmp_path) == ["a", "package"]


def test_bombs_are_refused_with_the_default_limits(tmp_path):
    zeros = bytes(16 * 1024 * 1024)
    squeeze = zlib.compressobj(9, wbits=31)
    archive = squeeze.compress(Raw(b"src/a", size=b"77777777777").bytes())
    archive += b"".join(squeeze.compress(zeros) for _ in range(8)) + squeeze.flush()
    assert len(archive) < 200_000
    with pytest.raises(PackageInvalid, match="at most 200 times"):
        read_package(package(archive))


def test_a_bomb_in_the_outer_archive_is_refused():
    nested = zipped(raw_tar(Raw(b"src/a", bytes(32 * 1024 * 1024))), 9)
    with pytest.raises(PackageInvalid) as caught:
        read_package(package(nested))
    assert caught.value.entry == "code.tar.gz"
    with pytest.raises(PackageInvalid) as caught:
        read_package(package(None, METADATA, Raw(b"x", bytes(32 * 1024 * 1024))))
    assert caught.value.entry == "package"


def test_a_package_above_the_limit_is_refused_before_it_is_read_whole(tmp_path):
    file = tmp_path / "huge"
    with file.open("wb") as sparse:
        sparse.truncate(10 * 1024**3)
    store = PackageStore(tmp_path / "store", SMALL)
    with pytest.raises(PackageInvalid, match="at most 4194304 bytes"):
        store.add(file)
    assert everything_below(tmp_path / "store") == []


@pytest.mark.parametrize("kind", ["directory", "fifo"])
def test_what_is_no_file_is_refused_without_waiting(tmp_path, kind):
    path = tmp_path / "package"
    path.mkdir() if kind == "directory" else os.mkfifo(path)
    with pytest.raises(PackageInvalid):
        PackageStore(tmp_path / "store").add(path)


def stored(data: bytes) -> bytes:
    out = io.BytesIO()
    stream = StoredGzip(out)
    stream.write(data)
    stream.close()
    return out.getvalue()


GOOD = fabric_go_package()
GOOD_CODE = raw_tar(
    pax(("path", b"src/longer.js")), Raw(b"src/l", b"abc"), *files(SOURCE)
)


@st.composite
def mutations(draw: st.DrawFn, original: bytes) -> bytes:
    data = bytearray(original)
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, len(data)))
        how = draw(st.sampled_from(["set", "cut", "insert", "copy", "drop"]))
        if how == "set":
            data[place : place + 1] = draw(st.binary(min_size=1, max_size=1))
        elif how == "cut":
            del data[place:]
        elif how == "insert":
            data[place:place] = draw(st.binary(max_size=12))
        elif how == "copy":
            data[place:place] = data[place : place + 512]
        else:
            del data[place : place + draw(st.integers(1, 600))]
    return bytes(data)


FUZZ = settings(
    max_examples=150, deadline=None, suppress_health_check=list(HealthCheck)
)


def must_be_refused_or_read(data: bytes) -> None:
    try:
        info = read_package(data, SMALL)
    except PackageInvalid:
        return
    assert info.label


@FUZZ
@given(mutations(GOOD))
def test_damaged_package_files_are_refused(data):
    must_be_refused_or_read(data)


@FUZZ
@given(mutations(gzip.decompress(GOOD)))
def test_damaged_outer_archives_are_refused_or_read(data):
    must_be_refused_or_read(stored(data))


@FUZZ
@given(mutations(GOOD_CODE))
def test_damaged_code_archives_are_refused_or_read(data):
    must_be_refused_or_read(package(stored(data)))


@FUZZ
@given(st.binary(max_size=300))
def test_any_metadata_is_refused_or_read(data):
    must_be_refused_or_read(package(None, data))


@FUZZ
@given(mutations(GOOD_CODE))
def test_damaged_code_never_leaves_the_target(tmp_path_factory, data):
    base = tmp_path_factory.mktemp("fuzz")
    file = base / "package"
    file.write_bytes(package(stored(data)))
    ccid = Ccid("basic_1.0:" + hashlib.sha256(file.read_bytes()).hexdigest())
    into = base / "into"
    try:
        unpack_code(file, ccid, into, SMALL)
    except PackageInvalid:
        assert not into.exists()
    assert {path.name for path in base.iterdir()} <= {"package", "into"}
