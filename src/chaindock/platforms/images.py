"""The images of a language, which each language declares with its settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Pull = Literal["missing", "never", "always"]
LanguagePull = Pull | Literal["default"]


@dataclass(frozen=True)
class LanguageImages:
    """The images that chaincode of a language is built and runs in.

    Args:
        builder: the build runs in it.
        runtime: the chaincode's own image is made from it; "" = the same.
        pull: when they are fetched; `default` = as `chaindock.docker.pull` says.
    """

    builder: str
    runtime: str = ""
    pull: LanguagePull = "default"
