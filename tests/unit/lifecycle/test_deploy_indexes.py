"""Deploy makes the indexes that a package brings."""

import json
from typing import Any

from chaindock.errors import LedgerError
from chaindock.lifecycle.terms import Terms, parse_collections
from support.doubles.deployments import package


def collections(name: str) -> Any:
    config = {"name": name, "policy": "OR('Org1MSP.member')"}
    return parse_collections(json.dumps([config]))


INDEXES = {
    "META-INF/statedb/couchdb/indexes/a.json": b'{"index":{"fields":["a"]}}',
    "META-INF/statedb/couchdb/collections/c/indexes/b.json": b'{"index":{"fields":["b"]}}',
}


async def test_indexes_of_a_package_are_made_with_its_definition(node):
    terms = Terms(collections=collections("c"))
    await node.deployer.deploy(package("one", more=INDEXES), "basic", terms)
    assert node.committer.indexes == [("basic", INDEXES)]
    await node.deployer.deploy(package("two"), "basic")
    assert len(node.committer.indexes) == 1


async def test_an_index_of_a_collection_that_is_not_defined_is_left_out(node):
    terms = Terms(collections=collections("other"))
    await node.deployer.deploy(package("one", more=INDEXES), "basic", terms)
    ((name, files),) = node.committer.indexes
    assert (name, list(files)) == ("basic", list(INDEXES)[:1])


async def test_a_fault_of_the_indexes_stops_no_deploy(node):
    node.committer.fail_indexes = LedgerError("the disk is full")
    done = await node.deployer.deploy(package("one", more=INDEXES), "basic")
    assert done.changed
    assert node.runtime.running == {done.ccid}
