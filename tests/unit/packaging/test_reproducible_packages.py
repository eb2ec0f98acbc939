"""The same source gives the same package, whatever else differs."""

import gzip
import hashlib
import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from chaindock.errors import InvalidInput, PackageInvalid, SourceInvalid
from chaindock.packaging.format import read_package
from chaindock.packaging.rules import Limits
from chaindock.packaging.writer import default_label, package_directory, write_package
from chaindock.platforms.base import Selection
from chaindock.platforms.tree import SourceFile

CONTENT = {
    "index.js": "exports.contracts = [];\n",
    "lib/deep/er/contract.js": "module.exports = class {};\n",
    "lib/Übung.js": "// a name beyond ASCII\n",
    "lib/" + "n" * 120 + ".js": "// a name that ustar splits\n",
    "lib/" + "n" * 60 + "/" + "m" * 60 + ".js": "// a name with a prefix\n",
    "big.txt": "0123456789abcdef" * 10_000,
    "empty.txt": "",
    "package.json": (
        '{"name":"golden","main":"index.js",'
        '"scripts":{"start":"fabric-chaincode-node start"}}\n'
    ),
    "META-INF/statedb/couchdb/indexes/owner.json": (
        '{"index":{"fields":["owner"]},"ddoc":"d","name":"owner","type":"json"}\n'
    ),
}
GOLDEN = "golden_1.0:4d9e47fd2f93b12c3d24e158949b7b135008156d5bd8a038c42ddf6fdaedac0e"
"""Changes only with a decision that all ids change (docs/adr/0002-stored-gzip.md)."""


def make_tree(
    root: Path, *, order: int = 1, mode: int = 0o644, mtime: int | None = None
) -> Path:
    for name in list(CONTENT)[::order]:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(CONTENT[name], encoding="utf-8")
        path.chmod(mode)
        if mtime is not None:
            os.utime(path, (mtime, mtime))
    return root


def packaged(root: Path, label: str = "golden_1.0") -> str:
    out = io.BytesIO()
    info = package_directory(root, out, label)
    assert info.id == f"{label}:{hashlib.sha256(out.getvalue()).hexdigest()}"
    return info.id


def test_the_id_is_the_one_of_every_other_machine(tmp_path):
    assert packaged(make_tree(tmp_path)) == GOLDEN


def test_order_modes_and_times_of_files_do_not_count(tmp_path):
    one = make_tree(tmp_path / "one", mtime=1_000_000_000)
    two = make_tree(tmp_path / "two", order=-1, mode=0o700, mtime=1_900_000_000)
    assert packaged(one) == packaged(two) == GOLDEN


def test_a_byte_or_the_label_counts(tmp_path):
    tree = make_tree(tmp_path)
    assert packaged(tree, "golden_1.1").partition(":")[2] not in GOLDEN
    (tree / "empty.txt").write_text("x")
    assert packaged(tree) != GOLDEN


def test_what_was_installed_or_cached_beside_the_source_does_not_count(tmp_path):
    tree = make_tree(tmp_path)
    for folder in (
        "node_modules/fabric-shim",
        ".git/objects",
        "lib/node_modules/x",
        "lib/__pycache__",
        ".venv/lib",
    ):
        (tree / folder).mkdir(parents=True)
        (tree / folder / "file.js").write_text("x")
    environment = tree / "tools"
    environment.mkdir()
    (environment / "pyvenv.cfg").write_text("home = /usr/bin\n")
    (tree / ".DS_Store").write_bytes(b"\0")
    assert packaged(tree) == GOLDEN


PROGRAM = """
import io, os, sys, time
from pathlib import Path
from chaindock.packaging.writer import package_directory
os.umask(int(sys.argv[2], 8))
time.time = lambda: 2_000_000_000.0
if sys.argv[3] != "me":  # the imports are done: they may not be readable for others
    os.setgroups([])
    os.setgid(int(sys.argv[3]))
    os.setuid(int(sys.argv[3]))
print(package_directory(Path(sys.argv[1]), io.BytesIO(), "golden_1.0").id)
"""


@pytest.mark.parametrize(
    ("user", "umask", "locale"),
    [
        ("me", "000", "C.UTF-8"),
        ("me", "077", "C"),
        ("65534", "077", "C.UTF-8"),
        ("65534", "000", "C"),
    ],
    ids=["me", "me, ASCII", "nobody", "nobody, ASCII"],
)
def test_user_umask_clock_locale_and_zone_do_not_count(tmp_path, user, umask, locale):
    if user != "me" and os.geteuid() != 0:
        pytest.skip("only root can be somebody else")
    tree = make_tree(tmp_path / "tree")
    for folder in (tree, *tree.parents):
        if user != "me" and folder.stat().st_uid == 0 and len(folder.parts) > 2:
            folder.chmod(folder.stat().st_mode | 0o055)
    search = ":".join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tree), umask, user],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env={
            "LC_ALL": locale,
            "TZ": "Pacific/Kiritimati",
            "PYTHONHASHSEED": "7",
            "PYTHONCOERCECLOCALE": "0",
            "PYTHONUTF8": "0",
            "PYTHONPATH": search,
        },
    )
    assert done.stdout.strip() == GOLDEN, done.stderr


def test_gzip_holds_stored_blocks_only_so_no_compressor_decides(tmp_path):
    out = io.BytesIO()
    package_directory(make_tree(tmp_path), out, "golden_1.0")
    data = out.getvalue()
    assert data[:10] == b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
    place, last = 10, 0
    while not last:
        last = data[place]
        assert last in {0, 1}, "a block that is not stored"
        size = int.from_bytes(data[place + 1 : place + 3], "little")
        assert last or size == 0xFFFF
        place += 5 + size
    assert place + 8 == len(data)


def test_other_readers_find_owners_modes_and_names(tmp_path):
    out = io.BytesIO()
    package_directory(make_tree(tmp_path), out, "golden_1.0")
    top = unpacked(out.getvalue())
    assert list(top) == ["metadata.json", "code.tar.gz"]
    assert {header(member) for member, _ in top.values()} == {(0o644, 0, 0, 0, "")}
    raw = b'{"path":"","type":"node","label":"golden_1.0"}'
    assert top["metadata.json"][1] == raw
    code = unpacked(top["code.tar.gz"][1])
    assert list(code) == sorted(code)
    assert {header(member) for member, _ in code.values()} == {(0o644, 500, 500, 0, "")}
    found = {
        name.removeprefix("src/"): data.decode() for name, (_, data) in code.items()
    }
    assert found == CONTENT


def unpacked(data: bytes) -> dict[str, tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(data))) as tar:
        found = {}
        for member in tar:
            content = tar.extractfile(member)
            assert content is not None
            found[member.name] = (member, content.read())
        return found


def header(member: tarfile.TarInfo) -> tuple[object, ...]:
    return member.mode, member.uid, member.gid, member.mtime, member.uname


def selection(folder: Path, files: dict[str, bytes]) -> Selection:
    chosen = []
    for number, (name, data) in enumerate(files.items()):
        path = folder / str(number)
        path.write_bytes(data)
        chosen.append(SourceFile(name, path))
    return Selection(tuple(chosen), "", "node")


@pytest.mark.parametrize(
    "files",
    [
        {"src/a.js": b"", "src/A.js": b""},
        {"src/a": b"", "src/a/b": b""},
        {"src/a\\b": b""},
        {"src/a\n": b""},
        {"META-INF/readme.txt": b""},
        {"META-INF/statedb/couchdb/indexes/a.json": b"{}"},
    ],
    ids=["case", "file and directory", "backslash", "line end", "META-INF", "index"],
)
def test_what_an_install_would_refuse_is_refused_when_it_is_packaged(tmp_path, files):
    with pytest.raises(PackageInvalid):
        write_package(selection(tmp_path, files), "a_1", io.BytesIO())


def test_a_source_beyond_the_limit_names_its_largest_files(tmp_path):
    files = {"src/small": b"x", "src/huge.bin": bytes(3000), "src/big.bin": bytes(2000)}
    with pytest.raises(PackageInvalid, match=r"are src/huge\.bin .* src/big\.bin"):
        write_package(
            selection(tmp_path, files), "a_1", io.BytesIO(), Limits(package_bytes=4000)
        )


@pytest.mark.parametrize("label", ["", "-a", "a b", "a/b", "a:b", "ä", "a\n"])
def test_a_label_that_fabric_refuses_is_refused(tmp_path, label):
    with pytest.raises(InvalidInput):
        write_package(selection(tmp_path, {"src/a": b""}), label, io.BytesIO())


def test_nothing_is_written_when_packaging_stops(tmp_path):
    tree = make_tree(tmp_path)
    (tree / "META-INF" / "notes.txt").write_text("x")
    out = io.BytesIO()
    with pytest.raises(PackageInvalid):
        package_directory(tree, out)
    assert out.getvalue() == b""


def test_a_file_that_vanishes_meanwhile_is_named(tmp_path):
    chosen = selection(tmp_path, {"src/a": b"x"})
    (tmp_path / "0").unlink()
    with pytest.raises(SourceInvalid, match="No such file"):
        write_package(chosen, "a_1", io.BytesIO())


@pytest.mark.parametrize(
    ("folder", "label"),
    [
        ("basic", "basic_1.0"),
        ("asset_transfer", "asset_transfer_1.0"),
        ("My Chain code (2)", "My-Chain-code-2_1.0"),
        ("..hidden..", "hidden_1.0"),
        ("a__b--c+-d", "a_b-c+d_1.0"),
        ("プロ", "chaincode_1.0"),
        ("x" * 200, "x" * 100 + "_1.0"),
    ],
)
def test_the_default_label_comes_from_the_directory(tmp_path, folder, label):
    path = tmp_path / folder
    path.mkdir()
    assert default_label(path) == label


def test_the_default_label_of_the_current_directory_has_its_name(tmp_path, monkeypatch):
    (tmp_path / "basic").mkdir()
    monkeypatch.chdir(tmp_path / "basic")
    assert default_label(Path()) == "basic_1.0"


def test_a_name_of_any_length_and_script_survives(tmp_path):
    names = [f"src/{'d' * n}/é{'f' * n}" for n in (1, 50, 90, 120)]
    names += [f"src/{'d' * n}/{'f' * n}" for n in (47, 48, 49, 95, 96, 97, 150, 200)]
    out = io.BytesIO()
    write_package(selection(tmp_path, dict.fromkeys(names, b"x")), "a_1", out)
    found = read_package(out.getvalue())
    assert sorted(entry.name for entry in found.entries) == sorted(names)
