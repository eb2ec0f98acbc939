"""How options are declared: as fields of frozen dataclasses that document themselves.

A field made by `option` is a setting: it has a key besides its type, bounds (msgspec's
`Meta`) and default, and the text below it is its help.
`chaindock.config` derives the list of settings, their parsing and the reference from it.
Source: docs/adr/0007-typed-options.md
"""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import msgspec
from msgspec import Meta

from chaindock.values import (
    PAIRS,
    PATHS,
    SYNTAXES,
    TEXT,
    WORDS,
    Syntax,
    WrongValueError,
)

T = TypeVar("T")
_OPTIONS = "options"


@dataclass(frozen=True)
class Option:
    """What makes a field a setting.

    Args:
        key: as in core.yaml, with dots between levels.
        syntax: None = that of the field's type.
        variable: an environment variable of Fabric that sets it, besides CORE_*.
        help: one sentence, with the unit if there is one; by default the text below the
            field. Without any, another field with the same key describes the setting,
            and gets the same value.
    """

    key: str
    syntax: Syntax | None = None
    variable: str = ""
    help: str = ""


def option(
    default: T,
    key: str,
    *,
    syntax: Syntax | None = None,
    variable: str = "",
    also: Option | None = None,
) -> T:
    """Return a dataclass field that is a setting; `also` is a second key for it."""
    options = Option(key, syntax, variable), *([also] if also else [])
    return field(default=default, metadata={_OPTIONS: options})


def setting(key: str) -> dict[str, tuple[Option, ...]]:
    """Return the metadata of a setting without a default, for `dataclasses.field`."""
    return {_OPTIONS: (Option(key),)}


@dataclass(frozen=True)
class Declared:
    """A field that is a setting; below a root (config.keys), `path` begins there."""

    path: str
    option: Option
    type: Any

    @property
    def syntax(self) -> Syntax:
        """How its values are written."""
        bare, annotations = _parts(self.type)
        own = [one for one in annotations if isinstance(one, Syntax)]
        if self.option.syntax or own:
            return self.option.syntax or own[-1]
        if get_origin(bare) is tuple:
            return PATHS if get_args(bare)[0] is Path else WORDS
        return PAIRS if self.is_mapping else SYNTAXES.get(bare, TEXT)

    @property
    def is_mapping(self) -> bool:
        """Whether values of several origins are merged."""
        return get_origin(_parts(self.type)[0]) is Mapping

    def read(self, value: Any, base: Path) -> Any:
        """Return `value` as the field has it. Raises: WrongValueError."""
        parsed = self.syntax.parse(value, base)
        try:
            return msgspec.convert(parsed, self.type, strict=False)
        except msgspec.ValidationError as error:
            raise WrongValueError(_expected(self.type, self.syntax)) from error

    def show(self, value: Any) -> str:
        """Return `value` as text."""
        return "" if value is None else self.syntax.show(value)


@functools.cache
def declared_in(model: type) -> tuple[Declared, ...]:
    """Return the settings that an options class declares, in order."""
    options = {
        one.name: one.metadata[_OPTIONS]
        for one in fields(model)
        if _OPTIONS in one.metadata
    }
    hints = get_type_hints(model, include_extras=True) if options else {}
    texts = _texts(model.__module__) if options else {}
    return tuple(
        Declared(
            name,
            replace(one, help=one.help or texts.get((model.__name__, name), "")),
            hints[name],
        )
        for name, several in options.items()
        for one in several
    )


@functools.cache
def _texts(module: str) -> dict[tuple[str, str], str]:
    """Return the texts below the fields of a module's classes, by class and field."""
    found = {}
    for node in ast.parse(inspect.getsource(sys.modules[module])).body:
        if isinstance(node, ast.ClassDef):
            for pair in itertools.pairwise(node.body):
                match pair:
                    case (
                        ast.AnnAssign(target=ast.Name(name)),
                        ast.Expr(ast.Constant(str(text))),
                    ):
                        found[node.name, name] = " ".join(text.split())
    return found


# --- types ---------------------------------------------------------------------------


def _parts(hint: Any) -> tuple[Any, list[Any]]:
    """Return a type without annotations and None; all that annotates it, outermost last."""
    if get_origin(hint) is Annotated:
        bare, inner = _parts(hint.__origin__)
        return bare, [*inner, *hint.__metadata__]
    if get_origin(hint) in {Union, types.UnionType}:
        arms = [_parts(arm) for arm in get_args(hint) if arm is not types.NoneType]
        return arms[0][0], [one for _, annotations in arms for one in annotations]
    return hint, []


_NOUNS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def _expected(hint: Any, syntax: Syntax) -> str:
    """Say what a type takes; its bounds as they are written."""
    bare, annotations = _parts(hint)
    if get_origin(bare) is Literal:
        return "one of " + ", ".join(get_args(bare))
    metas = [one for one in annotations if isinstance(one, Meta)]
    noun = next((one.title for one in metas if one.title), _NOUNS.get(bare, "a list"))
    for meta in reversed(metas):
        most = "" if meta.le is None else f", {syntax.show(meta.le)} at most"
        if meta.gt is not None:
            return f"{noun} above {syntax.show(meta.gt)}{most}"
        if meta.ge is not None:
            return f"{noun}, {syntax.show(meta.ge)} or more{most}"
    return noun
