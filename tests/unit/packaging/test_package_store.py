"""Installed packages: kept whole, checked each time, removed for good."""

import asyncio
import hashlib
import os
import stat
from pathlib import Path

import pytest

from chaindock.errors import (
    AlreadyExists,
    InvalidInput,
    NotFound,
    PackageInvalid,
    StorageError,
)
from chaindock.packaging.rules import Limits
from chaindock.packaging.store import PackageStore
from support.archives import (
    METADATA,
    Raw,
    code,
    fabric_go_package,
    files,
    package,
    raw_tar,
    zipped,
)


@pytest.fixture
def store(tmp_path):
    return PackageStore(tmp_path / "store")


def content_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_package_of_the_real_command_is_kept_under_its_id(store, tmp_path):
    data = fabric_go_package()
    kept = store.add(data)
    digest = hashlib.sha256(data).hexdigest()
    assert kept.ccid == f"basic_1.0:{digest}"
    assert (kept.label, kept.package_type) == ("basic_1.0", "golang")
    assert kept.import_path == "example.org/basic"
    assert kept.path == tmp_path / "store" / f"basic_1.0.{digest}.tar.gz"
    assert kept.path.read_bytes() == data
    assert stat.S_IMODE(kept.path.stat().st_mode) == 0o600
    assert store.get(kept.ccid) == kept


def test_metadata_is_read_whatever_the_case_of_its_keys(store):
    raw = b'{ "Label":"a_1" ,"TYPE":"NODE", "extra":{"path":1} }\n'
    kept = store.add(package(None, raw))
    assert (kept.label, kept.package_type, kept.import_path) == ("a_1", "node", "")


def test_the_code_digest_is_the_hash_of_the_code_archive(store):
    assert store.add(package()).code_digest == hashlib.sha256(code()).hexdigest()


def test_the_same_package_again_changes_nothing(store):
    first = store.add(package())
    assert store.add(package()) == first
    assert store.list() == [first.ccid]


def test_a_package_file_is_copied_in(store, tmp_path):
    file = tmp_path / "mine.tgz"
    file.write_bytes(package())
    kept = store.add(file)
    file.unlink()
    assert store.get(kept.ccid).path.exists()


def test_a_file_that_is_not_there_is_named(store, tmp_path):
    with pytest.raises(NotFound, match="nowhere"):
        store.add(tmp_path / "nowhere")


def test_list_goes_by_file_names_and_opens_nothing(store):
    kept = store.add(package())
    root = kept.path.parent
    other = "b_1." + "0" * 64 + ".tar.gz"
    (root / other).write_bytes(b"not a package")
    (root / ".incoming-x").write_bytes(b"")
    (root / "notes.txt").write_bytes(b"")
    (root / ("a." + "0" * 63 + ".tar.gz")).write_bytes(b"")
    assert store.list() == ["b_1:" + "0" * 64, kept.ccid]


def test_an_empty_store_has_no_packages(store):
    assert store.list() == []


@pytest.mark.parametrize(
    "change",
    [lambda d: d[:-1], lambda d: d + b"x", lambda _: package(files_code())],
    ids=["cut", "longer", "another"],
)
def test_a_file_that_changed_on_disk_is_refused(store, change):
    kept = store.add(package())
    kept.path.write_bytes(change(kept.path.read_bytes()))
    with pytest.raises(PackageInvalid, match="changed since it was installed"):
        store.get(kept.ccid)


def files_code() -> bytes:
    return zipped(raw_tar(*files(), Raw(b"src/evil.js", b"x")))


async def test_a_file_that_changes_after_get_is_not_unpacked(store, tmp_path):
    kept = store.add(package())
    kept.path.write_bytes(package(files_code()))
    with pytest.raises(PackageInvalid, match="changed since it was installed"):
        await kept.unpack(tmp_path / "into")
    assert not (tmp_path / "into").exists()


def test_a_link_in_place_of_a_package_is_not_followed(store, tmp_path):
    kept = store.add(package())
    kept.path.rename(tmp_path / "elsewhere")
    kept.path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NotFound):
        store.get(kept.ccid)


def test_adding_a_package_again_repairs_its_file(store):
    kept = store.add(package())
    kept.path.write_bytes(b"broken")
    store.add(package())
    assert store.get(kept.ccid) == kept


def test_a_refused_package_leaves_the_installed_ones(store):
    kept = store.add(package())
    with pytest.raises(PackageInvalid):
        store.add(b"not a package")
    assert store.list() == [kept.ccid]


def test_removed_is_gone(store):
    kept = store.add(package())
    store.remove(kept.ccid)
    assert store.list() == []
    with pytest.raises(NotFound):
        store.get(kept.ccid)
    with pytest.raises(NotFound):
        store.remove(kept.ccid)


@pytest.mark.parametrize("ccid", ["../../etc/passwd", "a", "a:b", "../a:" + "0" * 64])
def test_an_id_that_is_none_never_becomes_a_path(store, ccid):
    for act in (store.get, store.remove):
        with pytest.raises(InvalidInput):
            act(ccid)


def test_a_store_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "store").write_text("a file")
    with pytest.raises(StorageError, match="store"):
        PackageStore(tmp_path / "store").add(package())


def test_a_start_tells_which_packages_are_unused_and_removes_half_written_ones(store):
    wanted, spare = store.add(package()), store.add(fabric_go_package())
    left = wanted.path.parent / ".incoming-fresh"
    left.write_bytes(b"x")
    assert store.sweep({wanted.ccid}) == [spare.ccid]
    assert not left.exists()
    assert store.sweep({wanted.ccid, spare.ccid}) == []
    assert len(store.list()) == 2


def test_a_store_without_packages_has_nothing_to_sweep(store):
    assert store.sweep(set()) == []


async def test_unpacking_gives_the_files(store, tmp_path):
    kept = store.add(fabric_go_package())
    into = tmp_path / "into"
    old = os.umask(0o077)
    try:
        await kept.unpack(into)
    finally:
        os.umask(old)
    found = content_of(into)
    assert sorted(found) == [
        "META-INF/statedb/couchdb/indexes/owner.json",
        "src/chaincode/contract.go",
        "src/go.mod",
        "src/main.go",
    ]
    assert found["src/go.mod"] == b"module example.org/basic\n\ngo 1.22\n"
    assert stat.S_IMODE((into / "src").stat().st_mode) == 0o755
    assert stat.S_IMODE((into / "src/main.go").stat().st_mode) == 0o644


async def test_a_script_stays_executable_and_nothing_more(store, tmp_path):
    archive = code(
        Raw(b"src/build.sh", b"#!/bin/sh\n", mode=b"0104777"),
        Raw(b"src/plain", b"", mode=b"0100666"),
    )
    await store.add(package(archive)).unpack(tmp_path / "into")
    modes = [
        stat.S_IMODE((tmp_path / "into/src" / name).stat().st_mode)
        for name in ("build.sh", "plain")
    ]
    assert modes == [0o755, 0o644]


async def test_archives_of_other_tools_are_taken(store, tmp_path):
    import io
    import tarfile

    for number, form in enumerate((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)):
        out = io.BytesIO()
        long = "src/" + "d" * 120 + "/é.js"
        with tarfile.open(fileobj=out, mode="w:gz", format=form) as tar:
            folder = tarfile.TarInfo("./")
            folder.type, folder.mtime = tarfile.DIRTYPE, 1700000000.5
            tar.addfile(folder)
            for name in ("./connection.json", long):
                info = tarfile.TarInfo(name)
                info.size, info.uname, info.uid = 2, "somebody", 3_000_000
                info.mtime = 1700000000.5 if form == tarfile.PAX_FORMAT else 1700000000
                tar.addfile(info, io.BytesIO(b"{}"))
        into = tmp_path / str(number)
        await store.add(package(out.getvalue())).unpack(into)
        assert sorted(content_of(into)) == ["connection.json", long]


async def test_an_empty_directory_is_filled_and_a_full_one_is_not(store, tmp_path):
    kept = store.add(package())
    (tmp_path / "into").mkdir()
    await kept.unpack(tmp_path / "into")
    before = content_of(tmp_path / "into")
    with pytest.raises(AlreadyExists):
        await kept.unpack(tmp_path / "into")
    assert content_of(tmp_path / "into") == before


async def test_unpacking_where_nothing_can_be_written_says_so(store, tmp_path):
    kept = store.add(package())
    with pytest.raises(StorageError):
        await kept.unpack(tmp_path / "missing" / "into")
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError):
        await kept.unpack(tmp_path / "file")


async def test_a_cancelled_unpacking_leaves_nothing(tmp_path):
    big = zipped(raw_tar(Raw(b"src/big", os.urandom(64 * 1024) * 600)), 0)
    store = PackageStore(tmp_path / "store", Limits(package_bytes=200 * 1024 * 1024))
    kept = await asyncio.to_thread(store.add, package(big, METADATA))
    into = tmp_path / "into"
    work = asyncio.ensure_future(kept.unpack(into))
    async with asyncio.timeout(20):
        while not (into / "src" / "big").exists():  # noqa: ASYNC110  # a thread makes it
            await asyncio.sleep(0.001)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert not into.exists()


def test_memory_stays_small_whatever_the_package_unpacks_to(tmp_path):
    import tracemalloc

    big = zipped(raw_tar(Raw(b"src/big", os.urandom(1024) * 60_000)), 1)
    file = tmp_path / "package"
    file.write_bytes(package(big))
    store = PackageStore(tmp_path / "store")
    tracemalloc.start()
    store.add(file)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * 1024 * 1024
