"""What a selector means, written down directly: the model that the engine is tested with.

It knows nothing of trees, sort keys, indexes or SQL. Strings are compared by pyuca's own
keys.
"""

from __future__ import annotations

import re
from functools import cmp_to_key
from typing import TYPE_CHECKING, Any

from pyuca.collator import Collator_10_0_0

if TYPE_CHECKING:
    from collections.abc import Callable

COLLATOR = Collator_10_0_0()
MISSING = object()
NO_PATH = object()
RANKS = (type(None), bool, int, str, list, dict)


class Refused(Exception):
    """CouchDB has no meaning for this below an element."""


def rank(value: Any) -> int:
    kind = int if type(value) is float else type(value)
    return RANKS.index(kind)


def sign(left: Any, right: Any) -> int:
    return int(left > right) - int(left < right)


def compare(left: Any, right: Any) -> int:
    """Return -1, 0 or 1, as CouchDB orders all JSON values."""
    if rank(left) != rank(right):
        return sign(rank(left), rank(right))
    if left is None:
        return 0
    if isinstance(left, str):
        return sign(COLLATOR.sort_key(left), COLLATOR.sort_key(right))
    if isinstance(left, dict):
        left = [part for pair in sorted(left.items()) for part in pair]
        right = [part for pair in sorted(right.items()) for part in pair]
    if isinstance(left, list):
        for one, other in zip(left, right, strict=False):
            if order := compare(one, other):
                return order
        return sign(len(left), len(right))
    return sign(left, right)


KEY = cmp_to_key(compare)


def look_up(value: Any, name: str) -> Any:
    for step in (
        part.replace("\\", "") for part in re.split(r"(?<!\\)\.", name) if name
    ):
        if isinstance(value, dict):
            if step not in value:
                return MISSING
            value = value[step]
        elif isinstance(value, list) and step.isdigit() and int(step) < len(value):
            value = value[int(step)]
        else:
            return NO_PATH
    return value


def is_there(value: Any, name: str) -> bool:
    return look_up(value, name) not in (MISSING, NO_PATH)


def holds(selector: Any, value: Any, name: str = "", *, negated: bool = False) -> bool:
    """Return whether a condition on the field `name` of a document holds."""
    if not isinstance(selector, dict) or not selector:
        selector = {"$eq": selector}
    if len(selector) > 1:
        selector = {"$and": [{key: selector[key]} for key in selector]}
    [(key, argument)] = selector.items()
    if key == "$not":
        return holds(argument, value, name, negated=not negated)
    if key in {"$and", "$or", "$nor"}:
        every = (key == "$and") != negated if key != "$nor" else not negated
        negated = negated != (key == "$nor")
        found = [holds(each, value, name, negated=negated) for each in argument]
        return all(found) if every else not found or any(found)
    if not key.startswith("$"):
        return holds(argument, value, f"{name}.{key}" if name else key, negated=negated)
    found = look_up(value, name)
    if found is MISSING:
        return key == "$exists" and bool(argument) == negated
    return found is not NO_PATH and test(key, argument, found) != negated


def element_holds(selector: Any, value: Any, name: str = "") -> bool:
    """Return the same below `$elemMatch`, where CouchDB moves no negation down."""
    if not isinstance(selector, dict) or not selector:
        selector = {"$eq": selector}
    if len(selector) > 1:
        return all(element_holds({key: selector[key]}, value, name) for key in selector)
    [(key, argument)] = selector.items()
    if key == "$nor":
        raise Refused
    if key == "$not":
        return not element_holds(argument, value, name)
    if key in {"$and", "$or"}:
        join = all if key == "$and" or not argument else any
        return bool(join(element_holds(each, value, name) for each in argument))
    if not key.startswith("$"):
        return element_holds(argument, value, f"{name}.{key}" if name else key)
    found = look_up(value, name)
    if found is MISSING:
        return key == "$exists" and argument is False
    return found is not NO_PATH and test(key, argument, found)


def test(operator: str, argument: Any, found: Any) -> bool:
    """Return whether an operator holds for a value that is there."""
    return bool(TESTS[operator](found, argument))


def elements(found: Any, argument: Any, kind: type[Any], join: Any) -> bool:
    if not isinstance(found, kind):
        return False
    try:
        return bool(join(element_holds(argument, each) for each in found))
    except Refused:
        return False


def is_in(found: Any, arguments: list[Any]) -> bool:
    values = found if isinstance(found, list) else [found]
    return any(compare(value, each) == 0 for value in values for each in arguments)


def exactly(left: Any, right: Any) -> bool:
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(exactly, left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(
            exactly(left[name], right[name]) for name in left
        )
    return type(left) is type(right) and left == right


def has_all(found: Any, arguments: list[Any]) -> bool:
    if not isinstance(found, list) or not arguments:
        return False
    if all(any(exactly(each, one) for one in found) for each in arguments):
        return True
    return len(arguments) == 1 and compare(arguments[0], found) == 0


def modulo(found: Any, argument: list[int]) -> bool:
    if type(found) is not int:
        return False
    divisor, wanted = argument
    return found - divisor * int(found / divisor) == wanted


NAMES = ("null", "boolean", "number", "string", "array", "object")
TESTS: dict[str, Callable[[Any, Any], Any]] = {
    "$eq": lambda found, argument: compare(found, argument) == 0,
    "$ne": lambda found, argument: compare(found, argument) != 0,
    "$lt": lambda found, argument: compare(found, argument) < 0,
    "$lte": lambda found, argument: compare(found, argument) <= 0,
    "$gt": lambda found, argument: compare(found, argument) > 0,
    "$gte": lambda found, argument: compare(found, argument) >= 0,
    "$in": is_in,
    "$nin": lambda found, arguments: not is_in(found, arguments),
    "$exists": lambda found, argument: argument,  # noqa: ARG005
    "$type": lambda found, argument: NAMES[rank(found)] == argument,
    "$mod": modulo,
    "$regex": lambda found, argument: (
        isinstance(found, str) and re.search(argument, found) is not None
    ),
    "$beginsWith": lambda found, argument: (
        isinstance(found, str) and found.startswith(argument)
    ),
    "$all": has_all,
    "$size": lambda found, argument: isinstance(found, list) and len(found) == argument,
    "$elemMatch": lambda found, argument: elements(found, argument, list, any),
    "$allMatch": lambda found, argument: (
        found != [] and elements(found, argument, list, all)
    ),
    "$keyMapMatch": lambda found, argument: elements(found, argument, dict, any),
}
