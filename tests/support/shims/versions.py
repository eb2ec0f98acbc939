"""Packages of the Go conformance chaincode that differ in one constant."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from chaindock.packaging.writer import write_package
from chaindock.platforms.registry import recognise
from support.shims.builds import SOURCES

if TYPE_CHECKING:
    from pathlib import Path


def version(folder: Path, mark: str) -> Path:
    """Return a package file in `folder` that no other `mark` gives. Blocking."""
    package = folder / f"version {mark}.tar.gz"
    if not package.exists():
        source = folder / f"source of {mark}"
        shutil.copytree(SOURCES / "go", source)
        (source / "mark.go").write_text(f'package main\n\nconst mark = "{mark}"\n')
        with package.open("wb") as out:
            write_package(recognise(source).select(source), "conformance", out)
    return package
