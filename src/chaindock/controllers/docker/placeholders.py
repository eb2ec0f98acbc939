"""Where the placeholders of a plan lie in a container.

Owns:    the paths inside our containers, filling placeholders with them.
Not:     what a plan contains (platforms).
Entry:   Places
Holds:   a placeholder without a value in this place is an error, never left as it is.
Source:  platforms/base.py; launch.md §3.2
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chaindock.errors import SourceInvalid

if TYPE_CHECKING:
    from collections.abc import Mapping

INPUT, OUTPUT = "/chaincode/input", "/chaincode/output"
CACHE, HOME = "/chaincode/cache", "/chaincode/home"
CA_BUNDLE = "/chaincode/ca.pem"
_PLACEHOLDER = re.compile(
    r"\{(?:(input|output|peer|listen|ccid)|(tool|cache):([\w.+-]+))\}"
)


@dataclass(frozen=True)
class Places:
    """Values for the placeholders.

    Args:
        values: of input, output, peer, listen, ccid, as far as there are any.
        builds: caches may be used.
    """

    values: Mapping[str, str]
    builds: bool = False

    def fill(self, text: str) -> str:
        """Return `text` with its placeholders filled.

        Raises: SourceInvalid when one has no value here.
        """
        return _PLACEHOLDER.sub(self._value, text)

    def fill_env(self, env: Mapping[str, str]) -> list[str]:
        """Return NAME=VALUE lines with the values filled."""
        return [f"{name}={self.fill(value)}" for name, value in env.items()]

    def _value(self, match: re.Match[str]) -> str:
        plain, kind, what = match.groups()
        if kind == "tool":
            return str(what)  # the image has it on its PATH
        if kind == "cache" and self.builds:
            return f"{CACHE}/{what}"
        if plain in self.values:
            return self.values[plain]
        raise SourceInvalid(f"{match[0]} has no value here, in {match.string!r}")


def build_places() -> Places:
    """Return the places of a build container."""
    return Places({"input": INPUT, "output": OUTPUT}, builds=True)
