"""Types of options, and how people write their values: durations, sizes, lists, paths.

A value that a type does not take is refused with what was expected; nothing is guessed.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from chaindock.errors import ChaindockError

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


class WrongValueError(ValueError):
    """A value is not what its setting takes. The text says what was expected."""


@dataclass(frozen=True)
class Syntax:
    """How people write values of a type.

    Args:
        parse: takes a value as YAML gives it, or text, and the directory that relative
            paths start at; the result is checked against the type and bounds of the
            field. Raises WrongValueError.
        show: returns text that `parse` reads back.
    """

    parse: Callable[[Any, Path], Any]
    show: Callable[[Any], str] = str


_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1, "m": 60}
_UNITS_S |= {"h": 3600, "d": 86_400}
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h|d)")
_SIZE = re.compile(r"(\d{1,18})\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)
_SIZES = {"": 1, "k": KIB, "m": MIB, "g": GIB, "t": 1 << 40}
_TRUE = frozenset({"true", "t", "1", "yes", "on"})
_FALSE = frozenset({"false", "f", "0", "no", "off"})


def read_duration(value: Any, _base: Path | None = None) -> float:
    """Return the seconds of a Go duration such as 30s, 1m30s, 250ms, or with days.

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
    found = sum(float(number) * _UNITS_S[unit] for number, unit in parts)
    if found > 2**63 / 1e9:  # nanoseconds, of which Go's durations hold no more
        raise WrongValueError("a duration of at most 106751d")
    return found


def show_duration(value: float) -> str:
    """Return seconds as a Go duration."""
    if 0 < value < 1:
        return f"{value * 1000:g}ms"
    minutes, seconds = divmod(value, 60)
    hours, minutes = divmod(int(minutes), 60)
    parts = [f"{hours}h" if hours else "", f"{minutes}m" if minutes else ""]
    return "".join(parts) + (f"{seconds:g}s" if seconds or not any(parts) else "")


def floored(least_s: float, instead_s: float | None = None) -> Syntax:
    """Return the syntax of a duration that is never below `least_s`.

    As Fabric does, smaller values silently become `instead_s`, by default `least_s`.
    """

    def parse(value: Any, base: Path) -> float:
        found = read_duration(value, base)
        if found >= least_s:
            return found
        return least_s if instead_s is None else instead_s

    return Syntax(parse, show_duration)


def read_size(value: Any, _base: Path) -> int:
    """Return the bytes of a size such as 64k, 100m or 2g."""
    found = _SIZE.fullmatch(str(value).strip())
    size = int(found[1]) * _SIZES[found[2].lower()] if found else 1 << 63
    if size >= 1 << 63:
        raise WrongValueError("a size in bytes, or such as 64k, 100m or 2g")
    return size


def show_size(value: int) -> str:
    """Return bytes as a size."""
    for unit in ("t", "g", "m", "k"):
        if value and value % _SIZES[unit] == 0:
            return f"{value // _SIZES[unit]}{unit}"
    return str(value)


def read_words(value: Any, _base: Path) -> tuple[str, ...]:
    """Return the words of a list, or of text with commas."""
    if isinstance(value, dict):
        raise WrongValueError("a list")
    words = value if isinstance(value, list) else str(value).split(",")
    return tuple(text for word in words if (text := str(word).strip()))


def checked(check: Callable[[str], object], expected: str = "") -> Syntax:
    """Return the syntax of text for which `check` raises no ChaindockError.

    `expected` is by default what the hint of that error says.
    """

    def parse(value: Any, base: Path) -> str:
        text = _read_word(value, base)
        try:
            check(text)
        except ChaindockError as error:
            said = (error.hint or "").removeprefix("expected ")
            raise WrongValueError(expected or said) from error
        return text

    return Syntax(parse)


def all_of(check: Callable[[str], bool], expected: str) -> Syntax:
    """Return the syntax of a list whose words all pass `check`."""

    def parse(value: Any, base: Path) -> tuple[str, ...]:
        words = read_words(value, base)
        if not all(check(word) for word in words):
            raise WrongValueError(expected)
        return words

    return Syntax(parse, ",".join)


def _read_text(value: Any, _base: Path) -> str:
    if isinstance(value, (dict, list)):
        raise WrongValueError("text")
    return str(value)


def _read_word(value: Any, base: Path) -> str:
    return _read_text(value, base).strip()


def _read_address(value: Any, base: Path) -> tuple[str, int] | None:
    text = _read_word(value, base)
    if not text:
        return None
    host, colon, port = text.rpartition(":")
    inner = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    is_port = port.isascii() and port.isdigit() and len(port) < 6 and int(port) < 65_536
    is_host = not set(inner) & set("[]/ ") and (":" not in inner or inner != host)
    if not (colon and is_host and is_port):
        raise WrongValueError("host:port, or nothing; port 0 = a free one")
    return inner, int(port)


def show_address(value: tuple[str, int]) -> str:
    """Return host:port."""
    host, port = value
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _read_boolean(value: Any, _base: Path) -> bool:
    text = str(value).strip().lower()
    if text not in _TRUE | _FALSE:
        raise WrongValueError("true or false")
    return text in _TRUE


def _read_path(value: Any, base: Path) -> Path:
    if isinstance(value, (dict, list)) or not str(value):
        raise WrongValueError("a path")
    try:
        return base / Path(str(value)).expanduser()
    except RuntimeError:
        raise WrongValueError("a path without ~") from None


def _read_pairs(value: Any, base: Path) -> dict[str, str]:
    if isinstance(value, dict):
        return {str(key): str(one) for key, one in value.items()}
    pairs = {}
    for word in read_words(value, base):
        key, equals, rest = word.partition("=")
        if not key or not equals:
            raise WrongValueError("KEY=VALUE, more of them after commas")
        pairs[key] = rest
    return pairs


def _show_all(value: Iterable[object]) -> str:
    return ",".join(map(str, value))


TEXT = Syntax(_read_text)
BOOLEAN = Syntax(_read_boolean, lambda value: "true" if value else "false")
DURATION = Syntax(read_duration, show_duration)
SIZE = Syntax(read_size, show_size)
INTEGER = Syntax(_read_word)
NUMBER = Syntax(_read_word, lambda value: f"{value:g}")
PATH = Syntax(_read_path)
WORDS = Syntax(read_words, _show_all)
PATHS = Syntax(
    lambda value, base: tuple(_read_path(one, base) for one in read_words(value, base)),
    _show_all,
)
PAIRS = Syntax(_read_pairs, lambda v: _show_all(f"{k}={one}" for k, one in v.items()))
SYNTAXES = {bool: BOOLEAN, Path: PATH, int: INTEGER, float: NUMBER}

# --- types of options ----------------------------------------------------------------

Seconds = Annotated[float, Meta(gt=0, title="a duration"), DURATION]
SecondsOrNone = Annotated[float, Meta(ge=0, title="a duration"), DURATION]
"""0 has a meaning of its own."""
Count = Annotated[int, Meta(gt=0, le=2**31 - 1)]
Whole = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Number = Annotated[float, Meta(ge=0, le=1e9)]
Bytes = Annotated[int, Meta(gt=0, title="a size"), SIZE]
BytesOrNone = Annotated[int, Meta(ge=0, title="a size"), SIZE]
"""0 has a meaning of its own."""

Address = Annotated[tuple[str, int] | None, Syntax(_read_address, show_address)]
"""None = nowhere."""


def matching(pattern: str, expected: str) -> Meta:
    """Return the bound of text that is empty or matches a pattern as a whole."""
    return Meta(pattern=rf"\A(?:{pattern})?\Z", title=expected)


# --- types of options that end up in a container or process ---------------------------
# Nothing that would weaken the isolation is accepted; variables of Fabric and Chaindock
# cannot be replaced.

LEAST_MEMORY = 6 * MIB
"""Engines refuse less."""
_NETWORK = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
_OWN_NETWORKS = {"host", "none", "default"}
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RESERVED = ("CORE_", "CHAINCODE_", "CHAINDOCK_")
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?")


def _read_memory(value: Any, base: Path) -> int:
    found = read_size(value, base)
    if 0 < found < LEAST_MEMORY:
        raise WrongValueError("a size of 6m or more, or 0 for no limit")
    return found


def _read_network(value: Any, base: Path) -> str:
    name = str(TEXT.parse(value, base)).strip()
    if name in _OWN_NETWORKS or not _NETWORK.fullmatch(name):
        raise WrongValueError("the name of a network of the engine, not host or none")
    return name


def _read_variables(value: Any, base: Path) -> dict[str, str]:
    found: dict[str, str] = PAIRS.parse(value, base)
    for name, one in found.items():
        if not _VARIABLE.fullmatch(name):
            raise WrongValueError(f"{name!r} to be of letters, digits and _")
        if name.startswith(_RESERVED):
            starts = ", ".join(f"{one}*" for one in _RESERVED)
            raise WrongValueError(
                f"a name other than {name!r}: {starts} belong to Fabric and Chaindock"
            )
        if "\0" in one:
            raise WrongValueError(f"the value of {name!r} to be without NUL")
    return found


def is_address(text: str) -> bool:
    """Whether `text` is an IP address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_host_line(text: str) -> bool:
    host, _, address = text.partition(":")
    known = address == "host-gateway" or is_address(address.strip("[]"))
    return known and bool(_HOST.fullmatch(host))


Network = Annotated[str, Syntax(_read_network)]
Variables = Annotated[Mapping[str, str], Syntax(_read_variables, ", ".join)]
"""Shown by their names: the values may be secrets."""
User = Annotated[str, matching(r"\d{1,10}(:\d{1,10})?", "numbers as uid or uid:gid")]
Memory = Annotated[BytesOrNone, Syntax(_read_memory, show_size)]
Hosts = Annotated[
    tuple[str, ...],
    all_of(_is_host_line, "host:IP, more of them after commas or as a list"),
]
