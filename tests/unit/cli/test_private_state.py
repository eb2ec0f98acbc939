"""Private data as `state` and `tx show` tell it to the developer of a member."""

import json
from hashlib import sha256

import pytest
from fabric_protos.peer.collection_pb2 import CollectionConfigPackage

from chaindock.lifecycle.definitions import Definition, write_definition


def put(key: str, value: bytes):
    return lambda s: s.put_private("cc", "prices", key, value)


def test_collections_are_listed_beside_the_public_state(run, ledger):
    ledger.simulate(put("P1", b"25"))
    found = json.loads(run("state", "ls", "--json").stdout)
    told = [(one["name"], one["collection"], one["keys"]) for one in found]
    assert ("cc", "prices", 1) in told
    assert "prices" in run("state", "ls").stdout


def test_private_keys_are_shown_with_their_values(run, ledger):
    ledger.simulate(put("P1", b"25"))
    ledger.simulate(put("P2", b"\x1b[2J"))
    listed = run("state", "ls", "cc", "--collection", "prices")
    assert [line.split()[0] for line in listed.stdout.splitlines()[1:]] == ["P1", "P2"]
    assert "\x1b" not in listed.stdout
    one = run("state", "ls", "cc", "--collection", "prices", "--prefix", "P2", "--json")
    assert [row["key"] for row in json.loads(one.stdout)["rows"]] == ["P2"]
    result = run("state", "get", "cc", "P1", "--collection", "prices")
    assert result.stdout == "25"
    assert "2 bytes, written in block 1" in result.stderr
    assert json.loads(run("state", "ls", "cc", "--json").stdout)["rows"] == []


def test_an_absent_private_key_names_its_collection(run, ledger):
    ledger.simulate(put("P1", b"25"))
    result = run("state", "get", "cc", "P9", "--collection", "prices")
    assert result.exit_code == 5
    assert "collection 'prices' of 'cc' has no key 'P9'" in result.stderr
    assert "chaindock state ls cc --collection prices" in result.stderr


@pytest.mark.parametrize(
    "words", [("ls", "cc"), ("get", "cc", "k"), ("put", "cc", "k", "v")]
)
def test_an_unknown_collection_is_an_error_that_lists_those_there_are(
    run, ledger, words
):
    """A typo must not read as an empty collection."""
    config = CollectionConfigPackage()
    config.config.add().static_collection_config.name = "appraisals"
    definition = Definition(name="cc", sequence=1, collections=config)
    ledger.simulate(lambda s: write_definition(s, definition))
    ledger.simulate(put("P1", b"25"))
    result = run("state", *words, "--collection", "price")
    assert result.exit_code == 5
    told = "error: 'cc' has no collection 'price'; it has appraisals, prices\n"
    assert result.stderr.startswith(told)
    assert "chaindock deploy DIR --name cc --collections-config FILE" in result.stderr
    for known in ("appraisals", "_implicit_org_Org1MSP"):
        assert run("state", "ls", "cc", "--collection", known).exit_code == 0


NAMES = ("P1", "P2", "P3", "P4", "P5")


def test_a_transaction_shows_the_hashes_of_what_it_wrote(run, ledger):
    def act(simulator):
        simulator.put_private("cc", "prices", "P1", b"25")
        simulator.put_private("cc", "prices", "P2", b"")
        simulator.purge_private("cc", "prices", "P3")
        simulator.put_metadata("cc", "P4", {"VALIDATION_PARAMETER": b"p"}, "prices")
        simulator.put_metadata("cc", "P5", {}, "prices")

    text = run("tx", "show", ledger.simulate(act).tx_id).stdout
    assert "cc prices: 0 reads, 3 writes\n" in text
    key = {name: sha256(name.encode()).hexdigest() for name in NAMES}
    assert f"key hash {key['P1']}, value hash {sha256(b'25').hexdigest()}\n" in text
    assert f"key hash {key['P2']}, (deleted)\n" in text
    assert f"key hash {key['P3']}, (purged)\n" in text
    assert f"key hash {key['P4']}, metadata VALIDATION_PARAMETER\n" in text
    assert f"key hash {key['P5']}, metadata (removed)\n" in text


def test_a_conflict_on_private_data_names_its_key(run, ledger):
    ledger.simulate(put("P1", b"25"))
    stale = ledger.simulate(
        lambda s: s.get_private_hash("cc", "prices", "P1"), commits=False
    )
    writer = ledger.simulate(put("P1", b"26"))
    assert ledger.commit(stale).codes == bytes([11])
    conflict = json.loads(run("tx", "show", stale.tx_id, "--json").stdout)["conflict"]
    assert (conflict["collection"], conflict["key"]) == ("prices", "P1")
    assert (conflict["read"], conflict["found"]) == ([1, 0], [2, 0])
    assert conflict["writer"] == writer.tx_id
    text = run("tx", "show", stale.tx_id).stdout
    assert "key P1 of cc, collection prices, was read at block 1" in text


def test_a_change_of_metadata_alone_is_a_conflict_too(run, ledger):
    ledger.simulate(lambda s: s.put_state("cc", "k", b"1"))
    stale = ledger.simulate(lambda s: s.get_state("cc", "k"), commits=False)
    writer = ledger.simulate(lambda s: s.put_metadata("cc", "k", {"policy": b"p"}))
    assert ledger.commit(stale).codes == bytes([11])
    conflict = json.loads(run("tx", "show", stale.tx_id, "--json").stdout)["conflict"]
    assert (conflict["key"], conflict["writer"]) == ("k", writer.tx_id)
