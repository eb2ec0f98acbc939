"""What chaincode leaves behind goes, whatever it looks like."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from chaindock.processes.folders import remove_tree


def nest(top: Path, levels: int) -> None:
    folder = os.open(top, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d", dir_fd=folder)
        inner = os.open("d", os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = inner
    os.close(folder)


def test_directories_without_end_go_and_take_few_descriptors(tmp_path: Path):
    top = tmp_path / "top"
    top.mkdir()
    nest(top, 3000)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(one.name) for one in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 8, hard))
    try:
        remove_tree(top)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not top.exists()


def test_what_links_lead_to_stays(tmp_path: Path):
    kept, top = tmp_path / "kept", tmp_path / "top"
    kept.mkdir(mode=0o500)
    (top / "in").mkdir(parents=True)
    (top / "in" / "link").symlink_to(kept)
    (top / "link").symlink_to(kept)
    remove_tree(top)
    assert not top.exists()
    assert kept.stat().st_mode & 0o777 == 0o500
    (tmp_path / "link").symlink_to(kept)
    remove_tree(tmp_path / "link")
    assert kept.is_dir()


def test_what_was_made_unusable_goes(tmp_path: Path):
    top = tmp_path / "top"
    (top / "a" / "b" / "c").mkdir(parents=True)
    (top / "a" / "b" / "file").touch()
    for folder in ("a/b/c", "a/b", "a", "."):
        (top / folder).chmod(0)
    remove_tree(top)
    assert not top.exists()


def test_what_is_gone_is_fine(tmp_path: Path):
    remove_tree(tmp_path / "nothing")
