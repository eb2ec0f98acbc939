"""The kinds of values a setting can have.

Owns:    reading them from YAML or text, and showing them again.
Not:     which setting has which kind (table.py).
Entry:   Kind and the kinds below it
Holds:   a value of the wrong kind is refused with what was expected; nothing is guessed.
Source:  launch.md §7
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class WrongValueError(ValueError):
    """Says what was expected; the caller adds key, value and origin."""


@dataclass(frozen=True)
class Kind:
    """How one sort of value is read and shown.

    Args:
        read: takes a YAML value, or text from a variable or flag, and the directory
            that relative paths start at. Raises WrongValueError.
        show: text for people.
    """

    read: Callable[[Any, Path], Any]
    show: Callable[[Any], str]


_UNITS_S = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
}
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_SIZE = re.compile(r"(\d+)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)
_SIZES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def read_duration(value: Any) -> float:
    """Return seconds of a Go duration such as 30s, 1m30s, 250ms.

    A bare number is refused: Fabric reads it as nanoseconds, people mean seconds.
    """
    text = str(value).strip()
    if text == "0":
        return 0.0
    if text.startswith("-"):
        raise WrongValueError("a duration of 0 or more, such as 30s, 1m30s or 250ms")
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise WrongValueError("a duration with its unit, such as 30s, 1m30s or 250ms")
    return sum(float(number) * _UNITS_S[unit] for number, unit in parts)


def show_duration(value: float) -> str:
    """Return seconds as a Go duration."""
    if value == 0:
        return "0s"
    if value < 1:
        return f"{value * 1000:g}ms"
    minutes, seconds = divmod(value, 60)
    hours, minutes = divmod(int(minutes), 60)
    parts = [f"{hours}h" if hours else "", f"{minutes}m" if minutes else ""]
    return "".join(parts) + (f"{seconds:g}s" if seconds or not any(parts) else "")


def _read_text(value: Any, _base: Path) -> str:
    if isinstance(value, (dict, list)):
        raise WrongValueError("text")
    return str(value)


def _read_boolean(value: Any, _base: Path) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text in {"true", "t", "1", "yes", "on"}:
        return True
    if text in {"false", "f", "0", "no", "off"}:
        return False
    raise WrongValueError("true or false")


def _read_integer(value: Any, _base: Path) -> int:
    text = str(value).strip()
    if isinstance(value, bool) or not text.isascii() or not text.isdigit():
        raise WrongValueError("a whole number, 0 or more")
    return int(text)


def _read_number(value: Any, _base: Path) -> float:
    try:
        number = float(str(value))
    except ValueError:
        raise WrongValueError("a number, 0 or more") from None
    if isinstance(value, bool) or not 0 <= number < float("inf"):
        raise WrongValueError("a number, 0 or more")
    return number


def _read_size(value: Any, _base: Path) -> int:
    found = _SIZE.fullmatch(str(value).strip())
    if found is None or isinstance(value, bool):
        raise WrongValueError("a size in bytes, or such as 64k, 100m or 2g")
    return int(found[1]) * _SIZES[found[2].lower()]


def _show_size(value: int) -> str:
    for unit in ("t", "g", "m", "k"):
        if value and value % _SIZES[unit] == 0:
            return f"{value // _SIZES[unit]}{unit}"
    return str(value)


def _read_words(value: Any, _base: Path) -> tuple[str, ...]:
    if isinstance(value, dict):
        raise WrongValueError("a list")
    words = value if isinstance(value, list) else str(value).split(",")
    return tuple(text for word in words if (text := str(word).strip()))


def _read_path(value: Any, base: Path) -> Path:
    if isinstance(value, (dict, list)) or not str(value):
        raise WrongValueError("a path")
    try:
        return base / Path(str(value)).expanduser()
    except RuntimeError:
        raise WrongValueError("a path without ~") from None


def _read_pairs(value: Any, _base: Path) -> dict[str, str]:
    if isinstance(value, dict):
        return {str(key): str(one) for key, one in value.items()}
    pairs = {}
    for word in _read_words(value, _base):
        key, equals, rest = word.partition("=")
        if not key or not equals:
            raise WrongValueError("KEY=VALUE, more of them after commas")
        pairs[key] = rest
    return pairs


def _show_pairs(value: Mapping[str, str]) -> str:
    return ",".join(f"{key}={one}" for key, one in value.items())


def _read_port(value: Any, _base: Path) -> int:
    text = str(value).rpartition(":")[2]
    if not text.isascii() or not text.isdigit() or int(text) > 65_535:
        raise WrongValueError("host:port or a port; 0 = a free one")
    return int(text)


def _read_address(value: Any, _base: Path) -> tuple[str, int] | None:
    text = _read_text(value, _base).strip()
    if not text:
        return None
    host, colon, _ = text.rpartition(":")
    inner = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or set(inner) & set("[]/ ") or (":" in inner and inner == host):
        raise WrongValueError("host:port, or nothing; port 0 = a free one")
    return inner, _read_port(text, _base)


def _show_address(value: tuple[str, int] | None) -> str:
    if value is None:
        return ""
    host, port = value
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _read_log_spec(value: Any, base: Path) -> str:
    from chaindock.errors import InvalidInput  # noqa: PLC0415  # beside its only use
    from chaindock.telemetry import spec  # noqa: PLC0415

    text = _read_text(value, base).strip()
    try:
        spec.LogSpec.parse(text)
    except InvalidInput as error:
        raise WrongValueError((error.hint or "").removeprefix("expected ")) from error
    return text


def _read_paths(value: Any, base: Path) -> tuple[Path, ...]:
    return tuple(_read_path(word, base) for word in _read_words(value, base))


def _show(value: Any) -> str:
    return "" if value is None else str(value)


def duration(
    *, least_s: float = 0.0, instead_s: float | None = None, above_zero: bool = True
) -> Kind:
    """Return the kind for durations.

    Args:
        least_s: what is below becomes `instead_s`, as Fabric does it.
        instead_s: default: `least_s`.
        above_zero: refuse 0.
    """

    def read(value: Any, _base: Path) -> float:
        found = read_duration(value)
        if found < least_s:
            return least_s if instead_s is None else instead_s
        if above_zero and found == 0:
            raise WrongValueError("a duration above 0")
        return found

    return Kind(read, show_duration)


def choice(*words: str) -> Kind:
    """Return the kind for one of some words."""

    def read(value: Any, _base: Path) -> str:
        if str(value) not in words:
            raise WrongValueError("one of " + ", ".join(words))
        return str(value)

    return Kind(read, str)


def checked(check: Callable[[str], str], expected: str) -> Kind:
    """Return the kind for text that `check` accepts (it raises InvalidInput)."""
    from chaindock.errors import InvalidInput  # noqa: PLC0415  # beside its only use

    def read(value: Any, base: Path) -> str:
        try:
            return check(_read_text(value, base))
        except InvalidInput as error:
            raise WrongValueError(expected) from error

    return Kind(read, str)


def switched(on: str, off: str, truth: Kind) -> Kind:
    """Return the kind for a boolean that means one of two words."""
    return Kind(
        lambda value, base: on if truth.read(value, base) else off,
        lambda value: truth.show(value == on),
    )


def positive(kind: Kind, expected: str) -> Kind:
    """Return `kind` without 0."""

    def read(value: Any, base: Path) -> Any:
        found = kind.read(value, base)
        if not found:
            raise WrongValueError(expected)
        return found

    return Kind(read, kind.show)


TEXT = Kind(_read_text, _show)
BOOLEAN = Kind(_read_boolean, lambda value: "true" if value else "false")
INTEGER = Kind(_read_integer, _show)
NUMBER = Kind(_read_number, lambda value: f"{value:g}")
SIZE = Kind(_read_size, _show_size)
WORDS = Kind(_read_words, ",".join)
PATH = Kind(_read_path, _show)
PAIRS = Kind(_read_pairs, _show_pairs)
PORT = Kind(_read_port, _show)
ADDRESS = Kind(_read_address, _show_address)
PATHS = Kind(_read_paths, lambda value: ",".join(map(str, value)))
LOG_SPEC = Kind(_read_log_spec, str)
COUNT = positive(INTEGER, "a whole number above 0")
BYTES = positive(SIZE, "a size above 0, such as 64k, 100m or 2g")
