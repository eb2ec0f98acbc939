"""Documents and selectors that meet often: few names, few values."""

from __future__ import annotations

import string

from hypothesis import strategies as st

NAMES = ("a", "b", "c", "a.b", "b.c", "a.0", "c.1.a", "d\\.e")
TEXTS = st.text("abABzé<\u0301 1", max_size=4)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([0.5, -1.5, 2**53, 1e30]),
    TEXTS,
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "b", "c", "B"]), inner, max_size=3)
    ),
    max_leaves=5,
)
DOCUMENTS = st.dictionaries(st.sampled_from(["a", "b", "c", "d.e"]), VALUES, max_size=4)
ARGUMENTS = st.one_of(SCALARS, VALUES)
LISTS = st.lists(ARGUMENTS, max_size=3)
TERMINALS = st.one_of(
    *(
        st.fixed_dictionaries({operator: ARGUMENTS})
        for operator in ("$eq", "$ne", "$lt", "$lte", "$gt", "$gte")
    ),
    st.fixed_dictionaries({"$in": LISTS}),
    st.fixed_dictionaries({"$nin": LISTS}),
    st.fixed_dictionaries({"$all": LISTS}),
    st.fixed_dictionaries({"$exists": st.booleans()}),
    st.fixed_dictionaries({"$size": st.integers(0, 3)}),
    st.fixed_dictionaries({"$beginsWith": TEXTS}),
    st.fixed_dictionaries({"$regex": st.sampled_from(["^a", "[ab]+z?", "A.*B", "z"])}),
    st.fixed_dictionaries(
        {
            "$mod": st.tuples(st.sampled_from([-2, 1, 2, 3]), st.integers(-1, 2)).map(
                list
            )
        }
    ),
    st.fixed_dictionaries(
        {
            "$type": st.sampled_from(
                ["null", "boolean", "number", "string", "array", "object", "other"]
            )
        }
    ),
)


def _merged(parts: list[dict[str, object]]) -> dict[str, object]:
    return {name: value for part in parts for name, value in part.items()}


def _around(inner: st.SearchStrategy) -> st.SearchStrategy:
    """Conditions that contain conditions."""
    some = st.lists(inner, max_size=3)
    names = st.sampled_from(NAMES)
    return st.one_of(
        *(st.fixed_dictionaries({name: some}) for name in ("$and", "$or", "$nor")),
        st.fixed_dictionaries({"$not": inner}),
        *(
            st.fixed_dictionaries({name: inner})
            for name in ("$elemMatch", "$allMatch", "$keyMapMatch")
        ),
        st.dictionaries(names, inner, min_size=1, max_size=2),
        st.lists(inner, min_size=1, max_size=2).map(_merged),
    )


CONDITIONS = st.recursive(TERMINALS, _around, max_leaves=6)
SELECTORS = st.dictionaries(st.sampled_from(NAMES), CONDITIONS, min_size=1, max_size=3)
KEYS = st.text(string.ascii_letters + "é_", min_size=1, max_size=3)
