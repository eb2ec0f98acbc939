"""Edited planners are told from those they were."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chaindock.platforms.base import modules_hash, planner_fingerprint
from chaindock.platforms.golang import Golang
from chaindock.platforms.python import Python

if TYPE_CHECKING:
    from pathlib import Path


def test_planners_are_told_apart_and_known_again():
    assert planner_fingerprint(Python) != planner_fingerprint(Golang)
    assert planner_fingerprint(Python) == planner_fingerprint(Python)


def test_modules_are_known_by_their_text(tmp_path: Path):
    for name, text in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "planner.py").write_text(text)
    one, same, other = (modules_hash(tmp_path / name) for name in "abc")
    assert one == same != other
