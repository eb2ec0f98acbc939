"""Which files are packaged, and how trees are looked at."""

import os
import socket
from pathlib import Path

import pytest

from chaindock.errors import SourceInvalid
from chaindock.platforms.tree import Tree, collect


def make(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return root


def names_of(root: Path) -> list[str]:
    files = collect(root)
    return [file.name for file in files]


def test_files_are_named_as_in_the_code_archive_and_sorted(tmp_path):
    make(tmp_path, "b.js", "a/z.js", "META-INF/statedb/x.json", ".npmrc", "a.js")
    assert names_of(tmp_path) == [
        "META-INF/statedb/x.json",
        "src/.npmrc",
        "src/a.js",
        "src/a/z.js",
        "src/b.js",
    ]


def test_hidden_files_in_meta_inf_are_left_out(tmp_path):
    make(tmp_path, "a.js", "META-INF/.keep", "lib/META-INF/.keep")
    assert names_of(tmp_path) == ["src/a.js", "src/lib/META-INF/.keep"]


def test_installed_packages_version_control_and_caches_are_left_out(tmp_path):
    make(
        tmp_path,
        "a.js",
        "node_modules/x/index.js",
        "lib/node_modules/y/index.js",
        ".git/config",
        ".venv/bin/python",
        "env/pyvenv.cfg",
        "env/bin/python",
        "lib/__pycache__/a.pyc",
        ".DS_Store",
    )
    (tmp_path / ".#a.js").symlink_to("me@host.1234")  # an editor's lock
    assert names_of(tmp_path) == ["src/a.js"]


def test_a_linked_file_is_packaged_with_its_content(tmp_path):
    make(tmp_path, "lib/a.js")
    (tmp_path / "b.js").symlink_to("lib/a.js")
    files = collect(tmp_path)
    found = {file.name: file.path.read_text() for file in files}
    assert found == {"src/lib/a.js": "lib/a.js", "src/b.js": "lib/a.js"}


def test_a_link_out_of_the_source_is_refused(tmp_path):
    make(tmp_path, "secret", "src/a.js")
    (tmp_path / "src" / "b.js").symlink_to("../secret")
    with pytest.raises(SourceInvalid, match="outside of the source"):
        names_of(tmp_path / "src")


def test_a_link_to_a_link_out_of_the_source_is_refused(tmp_path):
    make(tmp_path, "secret", "src/a.js")
    (tmp_path / "link").symlink_to("secret")
    (tmp_path / "src" / "b.js").symlink_to(tmp_path / "link")
    with pytest.raises(SourceInvalid, match="outside of the source"):
        names_of(tmp_path / "src")


def test_a_linked_directory_is_refused(tmp_path):
    make(tmp_path, "lib/a.js")
    (tmp_path / "other").symlink_to("lib")
    with pytest.raises(SourceInvalid, match="link to a directory"):
        names_of(tmp_path)


def test_linked_node_modules_are_left_out_like_others(tmp_path):
    make(tmp_path, "outside/node_modules/x.js", "src/a.js")
    (tmp_path / "src" / "node_modules").symlink_to("../outside/node_modules")
    assert names_of(tmp_path / "src") == ["src/a.js"]


@pytest.mark.parametrize("target", ["nowhere", "loop"])
def test_a_link_to_nothing_is_refused(tmp_path, target):
    make(tmp_path, "a.js")
    (tmp_path / "loop").symlink_to(target)
    with pytest.raises(SourceInvalid, match="link to nothing"):
        names_of(tmp_path)


def test_fifos_and_sockets_are_refused_without_waiting(tmp_path, monkeypatch):
    make(tmp_path, "a.js")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(SourceInvalid, match="neither a file nor a directory"):
        names_of(tmp_path)
    (tmp_path / "fifo").unlink()
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        with pytest.raises(SourceInvalid, match="neither a file nor a directory"):
            names_of(tmp_path)


def test_nothing_to_package_is_an_error(tmp_path):
    (tmp_path / "node_modules").mkdir()
    with pytest.raises(SourceInvalid, match="no source files found"):
        names_of(tmp_path)


def test_a_name_that_is_not_utf8_is_named(tmp_path):
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.js")).write_text("x")
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    with pytest.raises(SourceInvalid, match="not UTF-8"):
        names_of(tmp_path)


@pytest.mark.parametrize("trusted", [True, False])
def test_a_name_never_leads_out_of_the_tree(tmp_path, trusted):
    make(tmp_path, "secret", "tree/a")
    tree = Tree(tmp_path / "tree", trusted=trusted)
    for name in ("../secret", "a/../../secret", str(tmp_path / "secret"), "a\0b"):
        assert not tree.has_file(name)
        assert tree.find_text(name) is None
    assert tree.has_file("./a")
    assert not tree.has_file("x" * 5000)


def test_an_unpacked_tree_is_read_without_following_links(tmp_path):
    make(tmp_path, "outside/secret", "tree/a")
    (tmp_path / "tree" / "link").symlink_to("../outside/secret")
    (tmp_path / "tree" / "folder").symlink_to("../outside")
    hostile = Tree(tmp_path / "tree")
    for name in ("link", "folder/secret"):
        assert not hostile.has_file(name)
        assert hostile.find_text(name) is None
    assert hostile.names("folder") == []
    assert list(hostile.walk(lambda _: False)) == ["a"]


def test_large_and_binary_files_are_refused_where_text_is_expected(tmp_path):
    (tmp_path / "large").write_bytes(b"x" * (1024 * 1024 + 1))
    (tmp_path / "binary").write_bytes(b"\xff")
    tree = Tree(tmp_path)
    with pytest.raises(SourceInvalid, match="larger"):
        tree.find_text("large")
    with pytest.raises(SourceInvalid, match="UTF-8"):
        tree.find_text("binary")
    assert len(tree.find_head("large", 10)) == 10
    os.mkfifo(tmp_path / "fifo")
    assert tree.find_text("fifo") is None


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, '{"a":' + "9" * 9999 + "}"])
def test_json_that_is_no_object_is_refused(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(SourceInvalid, match="JSON"):
        Tree(tmp_path).find_json("a.json")
