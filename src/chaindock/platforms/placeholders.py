"""Fill the placeholders of a plan (base.py lists them).

A placeholder without a value is an error, never left as it is. What was filled in is not
looked at again.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from chaindock.errors import SourceInvalid

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_PLACEHOLDER = re.compile(
    r"\{(?:(input|output|peer|listen|ccid)|(tool|cache):(\w[\w.+-]*))\}"
)


class Places:
    """Values of the placeholders in one place: a build, or a run.

    Args:
        known: input, output, peer, listen, ccid, as far as they have a value here.
        tool: gives what a program is called by. cache: gives a directory; None at run
            time.
    """

    def __init__(
        self,
        known: Mapping[str, str],
        *,
        tool: Callable[[str], str],
        cache: Callable[[str], str] | None = None,
    ) -> None:
        self._known, self._tool, self._cache = known, tool, cache

    def fill(self, text: str) -> str:
        """Return `text` with every placeholder replaced.

        Raises: SourceInvalid when one has no value here; what `tool` raises.
        """
        return _PLACEHOLDER.sub(self._value, text)

    def fill_all(self, texts: Sequence[str]) -> list[str]:
        """Fill each."""
        return [self.fill(text) for text in texts]

    def fill_values(self, env: Mapping[str, str]) -> dict[str, str]:
        """Fill the values of an environment."""
        return {name: self.fill(value) for name, value in env.items()}

    def _value(self, match: re.Match[str]) -> str:
        plain, kind, what = match.groups()
        if kind == "tool":
            return self._tool(what)
        if kind == "cache" and self._cache is not None:
            return self._cache(what)
        if plain in self._known:
            return self._known[plain]
        raise SourceInvalid(f"{match[0]!r} has no value here, in {match.string!r}")
