"""The engine against pouchdb-find, which somebody else wrote, over generated documents.

Left out is where pouchdb-find differs from CouchDB:
- a condition on a missing field: there `$ne`, `$nin`, `$not`, `$nor` are true for it;
- null: there `$in` and `$nin` are false for a field that is null, and some operators fail;
- `$ne` of an array, which counts there as several values; `$or` of nothing, which is
  false there; `$and` of combinations or of conditions on one field, of which some get lost;
- paths through values that are false in JavaScript; objects whose names are not in order;
  `$all`, `$allMatch` with null or with arrays in arrays; text outside ASCII.
`$keyMapMatch` and `$beginsWith` do not exist there.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from support.mango.documents import Documents
from support.need import need

FIXTURE = Path(__file__).parents[1] / "fixtures" / "pouchdb"
SCALARS = [1, 2, 3, 1.5, -2, 10, 0, "a", "b", "ab", "abc", "c", "", True, False]
COMPARISONS = ["$eq", "$lt", "$lte", "$gt", "$gte"]
pytestmark = [
    pytest.mark.network,
    pytest.mark.nodejs,
    pytest.mark.slow,
    pytest.mark.timeout(300),
]


class Generator:
    """Documents that have all fields, and selectors over them."""

    fields = ("a", "b", "c", "d", "o.x", "o.y", "n")

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)

    def value(self, depth: int = 0) -> Any:
        kind = self.draw.random()
        if depth == 0 and kind < 0.15:
            return self.draw.choices(SCALARS, k=self.draw.randrange(4))
        if depth < 2 and kind < 0.25:
            return {
                name: self.value(depth + 1) for name in self.draw.choices("xyz", k=1)
            }
        return self.draw.choice(SCALARS)

    def document(self, number: int) -> dict[str, Any]:
        document = {name: self.value() for name in "abcd"}
        document["o"] = {"x": self.value(), "y": self.value()}
        return {**document, "n": number + 1, "_id": f"k{number:03d}"}

    def selector(self, depth: int = 0) -> dict[str, Any]:
        kind = self.draw.random()
        if depth < 2 and kind < 0.3:
            operator = self.draw.choice(["$or", "$nor"][: 2 - depth])
            return {operator: [self.selector(depth + 1) for _ in range(2)]}
        if kind < 0.5:
            return {"$and": self.conditions(2)}
        if depth == 0 and kind < 0.6:
            return {"$not": self.conditions(1)[0]}
        return self.conditions(1)[0]

    def conditions(self, count: int) -> list[dict[str, Any]]:
        return [
            {name: self.terminal()} for name in self.draw.sample(self.fields, count)
        ]

    def terminal(self) -> dict[str, Any]:
        some = self.draw.choices(SCALARS, k=self.draw.randrange(1, 4))
        return self.draw.choice(
            [
                {self.draw.choice(COMPARISONS): self.value()},
                {self.draw.choice(COMPARISONS): self.value()},
                {"$ne": self.draw.choice(SCALARS)},
                {"$in": some},
                {"$nin": some},
                {"$all": some},
                {"$exists": True},
                {"$type": self.draw.choice(["boolean", "number", "string", "array", "object"])},
                {"$mod": [self.draw.choice([2, 3, 4]), self.draw.randrange(3)]},
                {"$size": self.draw.randrange(4)},
                {"$regex": self.draw.choice(["^a", "b$", "[bc]", "a.*c", "."])},
                {"$elemMatch": {self.draw.choice(COMPARISONS): self.draw.choice(SCALARS)}},
                {"$allMatch": {self.draw.choice(COMPARISONS): self.draw.choice(SCALARS)}},
            ]
        )  # fmt: skip


@pytest.fixture(scope="module")
def pouchdb(tmp_path_factory):
    need("node", "npm")
    place = tmp_path_factory.mktemp("pouchdb") / "find"
    shutil.copytree(FIXTURE, place)
    subprocess.run(["npm", "ci", "--ignore-scripts"], cwd=place, check=True)

    def find(documents: list[Any], indexes: list[Any], queries: list[Any]) -> list[Any]:
        asked = {"documents": documents, "indexes": indexes, "queries": queries}
        done = subprocess.run(
            ["node", "find.js"],
            cwd=place,
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            check=True,
        )
        return [json.loads(line) for line in done.stdout.splitlines()]

    return find


def ours(documents: list[dict[str, Any]], indexes: list[Any]) -> Documents:
    bodies = {
        each["_id"]: {name: each[name] for name in each if name != "_id"}
        for each in documents
    }
    made = Documents(bodies)
    for fields in indexes:
        made.index(*fields)
    return made


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_same_documents_match(pouchdb, seed):
    make = Generator(seed)
    documents = [make.document(number) for number in range(60)]
    queries = [{"selector": make.selector()} for _ in range(800)]
    answers = pouchdb(documents, [], queries)
    with closing(ours(documents, [])) as made:
        found = [made.keys(query) for query in queries]
    different = [
        each for each in zip(queries, found, answers, strict=True) if each[1] != each[2]
    ]
    assert [json.dumps(q) for q, _, _ in different] == []
    assert sum(map(bool, found)) > 300


def test_the_same_order_by_an_index(pouchdb):
    make = Generator(4)
    documents = [make.document(number) for number in range(60)]
    indexes = [["a"], ["a", "b"], ["o.x", "n"]]
    queries = [
        {
            "selector": {name: {"$gt": None} for name in fields},
            "sort": [{name: way} for name in fields],
            "skip": skip,
        }
        for fields in indexes
        for way in ("asc", "desc")
        for skip in (0, 7)
    ]
    with closing(ours(documents, indexes)) as made:
        assert pouchdb(documents, indexes, queries) == [
            made.keys(query) for query in queries
        ]
