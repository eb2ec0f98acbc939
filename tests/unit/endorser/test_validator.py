"""Which policy decides over a transaction; the codes that a real peer gave."""

from typing import Any

import pytest
from fabric_protos.common import common_pb2
from fabric_protos.peer import collection_pb2, policy_pb2
from fabric_protos.peer import transaction_pb2 as codes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chaindock.endorser import key_policies
from chaindock.endorser.configuration import Configuration
from chaindock.endorser.cutting import OrdererOptions
from chaindock.endorser.genesis import genesis_envelope
from chaindock.endorser.orderer import Orderer
from chaindock.endorser.validator import Validator, parse_and_check
from chaindock.errors import ChaindockError
from chaindock.identity.msp import Identity, Role
from chaindock.identity.policies import evaluator, parse_policy
from chaindock.ids import ChannelId
from chaindock.ledger.transaction import ParsedTransaction, Space
from support.ledgers import recorded
from support.ledgers.held import HeldState

name = codes.TxValidationCode.Name


async def test_every_recorded_transaction_gets_the_code_of_the_peer(tmp_path):
    """All blocks of a real channel: tampered, duplicate, conflicting, key policies."""
    different = []
    async with recorded.ledger_of(tmp_path) as ledger:
        configuration = Configuration.of(ledger)
        Orderer(ledger, configuration)
        for number, data in enumerate(recorded.blocks()[1:], 1):
            block = common_pb2.Block.FromString(data)
            txs = [
                parse_and_check(envelope, recorded.CHANNEL, configuration.msps)[0]
                for envelope in block.data.data
            ]
            found = await ledger.commit(txs)
            wanted = block.metadata.metadata[2]
            different += [
                (number, index, name(ours), name(theirs))
                for index, (ours, theirs) in enumerate(
                    zip(found.codes, wanted, strict=True)
                )
                if ours != theirs
            ]
    assert different == []


async def test_what_an_orderer_refused_is_refused_with_its_text(tmp_path):
    async with recorded.ledger_of(tmp_path) as ledger:
        async with Orderer(ledger, Configuration.of(ledger)) as orderer:
            for one in recorded.refused():
                with pytest.raises(ChaindockError) as caught:
                    await orderer.submit(recorded.decode(one["envelope"]))
                assert caught.value.message.startswith(one["broadcast"]["info"])
        assert ledger.height == 1


# --- rules, one by one --------------------------------------------------------------

CHANNEL = ChannelId("mychannel")
ORG1, ORG2 = "OR('Org1MSP.peer')", "OR('Org2MSP.peer')"


def policy(text: Any) -> Any:
    return policy_pb2.ApplicationPolicy(signature_policy=parse_policy(text))


def key_policy(text: Any) -> Any:
    return parse_policy(text).SerializeToString()


def collection(title: Any, text: Any = None) -> Any:
    static = collection_pb2.StaticCollectionConfig(
        name=title, endorsement_policy=policy(text) if text else None
    )
    return collection_pb2.CollectionConfig(static_collection_config=static)


@pytest.fixture
def configuration(org: Any) -> Any:
    return Configuration(genesis_envelope(CHANNEL, org.msp, OrdererOptions()))


@pytest.fixture
def state() -> Any:
    """`cc` by Org1, `strict` by Org2, with collections of both."""
    held = HeldState()
    package = collection_pb2.CollectionConfigPackage(
        config=[collection("plain"), collection("own", ORG2)]
    )
    for cc, text in (("cc", ORG1), ("strict", ORG2)):
        held.define(
            cc,
            validation_parameter=policy(text).SerializeToString(),
            collections=package,
        )
    return held


@pytest.fixture
def validator(configuration: Any) -> Any:
    return Validator(configuration)


def endorsed(*spaces: Any, by: Any = ("Org1MSP",), called: Any = "cc") -> Any:
    facts: Any = (None, None, None)
    tx = ParsedTransaction(b"", name=called, version="1", spaces=list(spaces))
    tx.endorsers = [Identity(mspid, Role.PEER, *facts) for mspid in by]
    return tx


def space(
    ns: Any = "cc",
    coll: Any = "",
    *,
    puts: Any = (),
    labels: Any = (),
    deletes: Any = (),
) -> Any:
    return Space(
        ns,
        coll,
        reads=[(b"r", None)],
        ranges=[],
        writes=[*((key, b"v") for key in puts), *((key, None) for key in deletes)],
        metadata=[(key, None) for key in labels],
    )


GOOD, FAILED = codes.NOT_VALIDATED, codes.ENDORSEMENT_POLICY_FAILURE


@pytest.mark.parametrize(
    ("tx", "code"),
    [
        (endorsed(space(puts=[b"k"])), GOOD),
        (endorsed(space(puts=[b"k"]), by=()), FAILED),
        # Read only: the called chaincode counts, one that it called does not.
        (endorsed(space()), GOOD),
        (endorsed(space("strict"), called="strict"), FAILED),
        (endorsed(space("strict")), GOOD),
        (endorsed(space("strict", "plain")), GOOD),
        (endorsed(space("strict", puts=[b"k"])), FAILED),
        (endorsed(space("strict", labels=[b"k"])), FAILED),
        (endorsed(space("strict", deletes=[b"k"])), FAILED),
        (endorsed(space("strict", puts=[b"k"]), by=("Org1MSP", "Org2MSP")), GOOD),
        (endorsed(space("ghost", puts=[b"k"])), codes.INVALID_CHAINCODE),
        (endorsed(called="ghost"), codes.INVALID_CHAINCODE),
        # The key's own policy stands in place of the chaincode's.
        (endorsed(space(puts=[b"two"])), FAILED),
        (endorsed(space(puts=[b"two"]), by=("Org2MSP",)), GOOD),
        (endorsed(space(deletes=[b"two"])), FAILED),
        (endorsed(space(deletes=[b"two"]), by=("Org2MSP",)), GOOD),
        (endorsed(space(puts=[b"k", b"two"]), by=("Org2MSP",)), FAILED),
        (endorsed(space(labels=[b"two"])), FAILED),
        (endorsed(space(labels=[b"two"]), by=("Org2MSP",)), GOOD),
        (endorsed(space(puts=[b"garbage"])), FAILED),
        (endorsed(space(puts=[b"cleared"])), GOOD),
        # Collections: their own policy, else the chaincode's.
        (endorsed(space(coll="plain", puts=[b"h"])), GOOD),
        (endorsed(space(coll="own", puts=[b"h"])), FAILED),
        (endorsed(space(coll="own", puts=[b"h"]), by=("Org2MSP",)), GOOD),
        (endorsed(space(coll="own", labels=[b"h"])), FAILED),
        (endorsed(space(coll="none", puts=[b"h"])), FAILED),
        (endorsed(space(coll="plain", puts=[b"two"])), FAILED),
        (endorsed(space(coll="_implicit_org_Org1MSP", puts=[b"h"])), GOOD),
        (endorsed(space(coll="_implicit_org_Org9MSP", puts=[b"h"])), FAILED),
        (
            endorsed(space(puts=[b"k"]), space(coll="own", puts=[b"h"]), by=("Org2MSP",)),
            FAILED,
        ),
        # `_lifecycle` has a policy without being defined.
        (endorsed(space("_lifecycle", puts=[b"k"]), called="_lifecycle"), GOOD),
        (endorsed(space("_lifecycle", puts=[b"k"]), called="_lifecycle", by=()), FAILED),
    ],
)  # fmt: skip
@pytest.mark.statement(66, 67, 69, of="client")
def test_which_policy_decides(validator, state, tx, code):
    state.label("cc", b"two", key_policy(ORG2))
    state.label("cc", b"two", key_policy(ORG2), "plain")
    state.label("cc", b"garbage", b"garbage")
    state.label("cc", b"cleared", b"")
    validator.begin(7)
    assert name(validator.check(tx, state)) == name(code)


@pytest.mark.statement(68, of="client")
def test_a_key_whose_policy_changed_in_the_block_is_written_no_more(validator, state):
    validator.begin(7)
    first = endorsed(space(labels=[b"k"]))
    assert validator.check(first, state) == GOOD
    for later in (
        space(puts=[b"k"]),
        space(labels=[b"k"]),
        space(puts=[b"a", b"k", b"z"]),
    ):
        assert validator.check(endorsed(later), state) == FAILED
    for other in (space(puts=[b"a"]), space(coll="plain", puts=[b"k"]), space()):
        assert validator.check(endorsed(other), state) == GOOD
    validator.begin(8)
    assert validator.check(endorsed(space(puts=[b"k"])), state) == GOOD


def test_a_policy_with_an_unexpected_error_fails_its_transaction_only(
    validator, state, monkeypatch
):
    """Contracts write policies of keys; an error there must not stop a block."""

    def deep(_: Any) -> Any:
        raise RecursionError

    state.label("cc", b"deep", b"policy")
    validator.begin(7)
    # What the chaincode's own policy is made of is kept: it is not read anew.
    assert validator.check(endorsed(space(puts=[b"k"])), state) == GOOD
    monkeypatch.setattr(key_policies, "evaluator", deep)
    assert (
        validator.check(endorsed(space(puts=[b"deep"])), state)
        == codes.INVALID_OTHER_REASON
    )
    assert validator.check(endorsed(space(puts=[b"k"])), state) == GOOD


def test_the_policies_of_keys_are_compiled_once_and_bounded_for_a_transaction(
    validator, state, monkeypatch
):
    """To compile 256 KiB takes 0.35 s of the writer."""
    compiled: list[bytes] = []

    def noted(raw: bytes) -> Any:
        compiled.append(raw)
        return evaluator(raw)

    monkeypatch.setattr(key_policies, "evaluator", noted)
    for number in range(6):
        own = key_policy(f"OR('Org1MSP.peer', 'Org{number}0MSP.peer')")
        state.label("cc", b"own%d" % number, own)
        state.label("cc", b"same%d" % number, key_policy(ORG1))
        monkeypatch.setattr(key_policies, "_MOST", 4 * len(own))
    validator.begin(7)
    same = space(puts=[b"same%d" % number for number in range(6)])
    assert validator.check(endorsed(same), state) == GOOD
    assert compiled == [key_policy(ORG1)]
    some = space(puts=[b"own%d" % number for number in range(4)])
    assert validator.check(endorsed(some), state) == GOOD
    assert len(compiled) == 5
    more = space(puts=[b"own%d" % number for number in range(6)])
    assert validator.check(endorsed(more), state) == FAILED
    assert validator.check(endorsed(some), state) == GOOD


def test_what_failed_its_policy_changes_nothing_for_later_ones(validator, state):
    validator.begin(7)
    assert validator.check(endorsed(space(labels=[b"k"]), by=()), state) == FAILED
    assert validator.check(endorsed(space(puts=[b"k"])), state) == GOOD


def test_a_definition_counts_from_the_block_after(validator, state):
    write = endorsed(space(puts=[b"k"]))
    validator.begin(7)
    assert validator.check(write, state) == GOOD
    update = endorsed(space("_lifecycle", puts=[b"x"]), called="_lifecycle")
    assert validator.check(update, state) == GOOD
    assert validator.check(write, state) == GOOD
    state.define("cc", validation_parameter=policy(ORG2).SerializeToString())
    validator.begin(8)
    assert validator.check(write, state) == FAILED


@pytest.mark.parametrize("number", [7, 3])
def test_a_block_that_does_not_follow_knows_nothing_of_the_one_before(
    validator, state, number
):
    """It failed to be written, or the ledger was taken back."""
    write = endorsed(space(puts=[b"k"], labels=[b"l"]))
    validator.begin(7)
    assert validator.check(write, state) == GOOD
    state.define("cc", validation_parameter=policy(ORG2).SerializeToString())
    validator.begin(number)
    assert validator.check(write, state) == FAILED
    assert validator.check(endorsed(space(puts=[b"l"]), by=["Org2MSP"]), state) == GOOD


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["cc", "strict"]),
            st.sampled_from(["", "plain", "own"]),
            st.sets(st.sampled_from([b"k", b"one", b"two"])),
            st.sets(st.sampled_from([b"k", b"one", b"two"])),
        ),
        max_size=4,
        unique_by=lambda made: made[:2],
    ),
    st.sets(st.sampled_from(["Org1MSP", "Org2MSP"])),
    st.sampled_from(["cc", "strict"]),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_each_written_key_has_one_policy(configuration, state, made, by, called):
    """The rule of the page, over every key by itself."""
    for ns in ("cc", "strict"):
        for coll in ("", "plain", "own"):
            state.label(ns, b"one", key_policy(ORG1), coll)
            state.label(ns, b"two", key_policy(ORG2), coll)
    own = {b"one": "Org1MSP", b"two": "Org2MSP"}
    chaincode = {"cc": "Org1MSP", "strict": "Org2MSP"}
    needed, reached = set(), set()
    for ns, coll, puts, labels in made:
        for key in puts | labels:
            general = "Org2MSP" if coll == "own" else chaincode[ns]
            needed.add(own.get(key, general))
            reached.add(ns)
    if called not in reached:
        needed.add(chaincode[called])
    spaces = [
        space(ns, coll, puts=puts, labels=labels) for ns, coll, puts, labels in made
    ]
    validator = Validator(configuration)
    validator.begin(1)
    found = validator.check(endorsed(*spaces, by=sorted(by), called=called), state)
    assert found == (GOOD if needed <= by else FAILED)
