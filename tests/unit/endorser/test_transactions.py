"""Assembling transactions, and what is found wrong with forged ones."""

import dataclasses
from typing import Any

import pytest
from fabric_protos.common import common_pb2
from fabric_protos.ledger.rwset import rwset_pb2
from fabric_protos.ledger.rwset.kvrwset import kv_rwset_pb2
from fabric_protos.peer import (
    chaincode_event_pb2,
    chaincode_pb2,
    proposal_pb2,
    proposal_response_pb2,
    transaction_pb2,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chaindock.endorser.caller import assemble, draw
from chaindock.endorser.checks import Proposal, parse_proposal
from chaindock.endorser.configuration import Configuration
from chaindock.endorser.cutting import OrdererOptions
from chaindock.endorser.genesis import genesis_envelope
from chaindock.endorser.validator import Validator, parse_and_check
from chaindock.ids import ChannelId
from support.ledgers.held import HeldState
from support.ledgers.proposals import new_proposal

Code = transaction_pb2


@pytest.fixture(scope="module")
def user(org: Any) -> Any:
    return org.user("User1")


@pytest.fixture(scope="module")
def check(org: Any) -> Any:
    """Both halves of validation, with `basic` and `other` defined."""
    channel = ChannelId("mychannel")
    configuration = Configuration(genesis_envelope(channel, org.msp, OrdererOptions()))
    state: Any = HeldState()
    state.define("basic")
    state.define("other")

    def both(envelope: Any) -> Any:
        tx, creator = parse_and_check(envelope, channel, configuration.msps)
        if tx.code == Code.NOT_VALIDATED:
            tx.code = Validator(configuration).check(tx, state)
        return tx, creator

    return both


@pytest.fixture(scope="module")
def proposal(user: Any) -> Any:
    return parse_proposal(new_proposal("mychannel", "basic", [b"put"], user))


@pytest.mark.parametrize("name", ["basic", "é" * 100])
@pytest.mark.parametrize("args", [[], [b""], [b"put", b"", b"v" * 20_000]])
@pytest.mark.parametrize("transient", [None, {"key": b"", "other": b"v" * 300}])
@pytest.mark.parametrize("is_init", [False, True])
def test_a_drawn_proposal_is_what_a_peer_reads(user, name, args, transient, is_init):
    now_ns = 1_700_000_000_000_000_001
    facts = {"transient": transient, "is_init": is_init, "now_ns": now_ns}
    drawn = draw("mychannel", name, args, user, **facts)
    read = parse_proposal(drawn.signed, drawn=True)
    parts = [one.name for one in dataclasses.fields(Proposal)]
    assert [getattr(drawn, one) for one in parts] == [
        getattr(read, one) for one in parts
    ]
    known = proposal_pb2.Proposal.FromString(drawn.signed.proposal_bytes)
    payload = proposal_pb2.ChaincodeProposalPayload.FromString(known.payload)
    assert payload.TransientMap == (transient or {})


def endorsed(
    org: Any,
    proposal: Any,
    *,
    name: Any = "basic",
    version: Any = "1.0",
    events: Any = b"",
    writes: Any = "basic",
    results: Any = None,
    peer: Any = None,
    hash_: Any = None,
) -> Any:
    kv = kv_rwset_pb2.KVRWSet(writes=[kv_rwset_pb2.KVWrite(key="k", value=b"v")])
    rwset = rwset_pb2.TxReadWriteSet(
        ns_rwset=[
            rwset_pb2.NsReadWriteSet(namespace=writes, rwset=kv.SerializeToString())
        ]
    )
    action = proposal_pb2.ChaincodeAction(
        results=rwset.SerializeToString() if results is None else results,
        events=events,
        response=proposal_response_pb2.Response(status=200),
        chaincode_id=chaincode_pb2.ChaincodeID(name=name, version=version),
    )
    payload = proposal_response_pb2.ProposalResponsePayload(
        proposal_hash=hash_ or proposal.hash, extension=action.SerializeToString()
    ).SerializeToString()
    peer = peer or org.peer
    return proposal_response_pb2.ProposalResponse(
        version=1,
        response=proposal_response_pb2.Response(status=200, message="m"),
        payload=payload,
        endorsement=proposal_response_pb2.Endorsement(
            endorser=peer.creator, signature=peer.sign(payload + peer.creator)
        ),
    )


def envelope(proposal: Any, user: Any, response: Any) -> Any:
    return assemble(proposal, [response], user)


def edited(data: Any, user: Any, edit: Any, *, sign: Any = True) -> Any:
    """The envelope after `edit` changed its parsed parts, signed again."""
    outer = common_pb2.Envelope.FromString(data)
    payload = common_pb2.Payload.FromString(outer.payload)
    transaction = transaction_pb2.Transaction.FromString(payload.data)
    action = transaction_pb2.ChaincodeActionPayload.FromString(
        transaction.actions[0].payload
    )
    channel = common_pb2.ChannelHeader.FromString(payload.header.channel_header)
    edit(payload=payload, transaction=transaction, action=action, channel=channel)
    if transaction.actions:
        transaction.actions[0].payload = action.SerializeToString()
    if payload.HasField("header") and payload.header.channel_header:
        payload.header.channel_header = channel.SerializeToString()
    if payload.data != b"\xff":
        payload.data = transaction.SerializeToString()
    outer.payload = payload.SerializeToString()
    if sign:
        outer.signature = user.sign(outer.payload)
    return outer.SerializeToString()


def test_a_proper_transaction_passes(org, check, proposal, user):
    found, creator = check(envelope(proposal, user, endorsed(org, proposal)))
    assert found.code == Code.NOT_VALIDATED
    assert found.tx_id == proposal.tx_id
    assert str(creator.role) == "client"


def test_the_headers_of_the_proposal_travel_unchanged(org, proposal, user):
    outer = common_pb2.Envelope.FromString(
        envelope(proposal, user, endorsed(org, proposal))
    )
    payload = common_pb2.Payload.FromString(outer.payload)
    assert payload.header.channel_header == proposal.channel_header_bytes
    assert payload.header.signature_header == proposal.signature_header_bytes
    org.msp.identify(user.creator).verify(outer.payload, outer.signature)


def flip(data: Any, at: Any = -1) -> Any:
    return data[:at] + bytes([data[at] ^ 1]) + (data[at + 1 :] if at != -1 else b"")


EDITS = {
    "no header": (lambda payload, **_: payload.ClearField("header"), Code.BAD_PAYLOAD),
    "no channel header": (
        lambda payload, **_: payload.header.ClearField("channel_header"),
        Code.BAD_COMMON_HEADER,
    ),
    "config": (
        lambda channel, **_: setattr(channel, "type", 1),
        Code.UNSUPPORTED_TX_PAYLOAD,
    ),
    "odd type": (
        lambda channel, **_: setattr(channel, "type", 0),
        Code.BAD_COMMON_HEADER,
    ),
    "epoch": (
        lambda channel, **_: setattr(channel, "epoch", 3),
        Code.BAD_COMMON_HEADER,
    ),
    "channel": (
        lambda channel, **_: setattr(channel, "channel_id", "other"),
        Code.TARGET_CHAIN_NOT_FOUND,
    ),
    "nonce": (
        lambda payload, **_: setattr(
            payload.header,
            "signature_header",
            common_pb2.SignatureHeader(creator=b"x").SerializeToString(),
        ),
        Code.BAD_COMMON_HEADER,
    ),
    "creator": (
        lambda payload, **_: setattr(
            payload.header,
            "signature_header",
            common_pb2.SignatureHeader(creator=b"x", nonce=b"n").SerializeToString(),
        ),
        Code.BAD_CREATOR_SIGNATURE,
    ),
    "transaction id": (
        lambda channel, **_: setattr(channel, "tx_id", "00"),
        Code.BAD_PROPOSAL_TXID,
    ),
    "no data": (
        lambda payload, **_: setattr(payload, "data", b"\xff"),
        Code.INVALID_ENDORSER_TRANSACTION,
    ),
    "no action": (
        lambda transaction, **_: transaction.ClearField("actions"),
        Code.INVALID_ENDORSER_TRANSACTION,
    ),
    "two actions": (
        lambda transaction, **_: transaction.actions.add(),
        Code.INVALID_ENDORSER_TRANSACTION,
    ),
    "action header": (
        lambda transaction, **_: setattr(
            transaction.actions[0],
            "header",
            common_pb2.SignatureHeader(creator=b"x", nonce=b"n").SerializeToString(),
        ),
        Code.INVALID_ENDORSER_TRANSACTION,
    ),
    "empty action": (
        lambda action, **_: action.ClearField("action"),
        Code.NIL_TXACTION,
    ),
    "other proposal": (
        lambda action, **_: setattr(action, "chaincode_proposal_payload", b"\x0a\x01x"),
        Code.INVALID_ENDORSER_TRANSACTION,
    ),
    "no response": (
        lambda action, **_: setattr(
            action.action, "proposal_response_payload", b"\xff"
        ),
        Code.BAD_RESPONSE_PAYLOAD,
    ),
    "no endorsement": (
        lambda action, **_: action.action.ClearField("endorsements"),
        Code.ENDORSEMENT_POLICY_FAILURE,
    ),
    "endorsement signature": (
        lambda action, **_: setattr(
            action.action.endorsements[0],
            "signature",
            flip(action.action.endorsements[0].signature),
        ),
        Code.ENDORSEMENT_POLICY_FAILURE,
    ),
}


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.statement(43, of="client")
def test_a_forged_part_gets_its_code(org, check, proposal, user, name):
    edit, code = EDITS[name]
    good = envelope(proposal, user, endorsed(org, proposal))
    found, _ = check(edited(good, user, edit))
    assert Code.TxValidationCode.Name(found.code) == Code.TxValidationCode.Name(code)


@pytest.mark.statement(43, of="client")
def test_a_changed_envelope_signature_is_code_4(org, check, proposal, user):
    good = common_pb2.Envelope.FromString(
        envelope(proposal, user, endorsed(org, proposal))
    )
    good.signature = flip(good.signature)
    assert check(good.SerializeToString())[0].code == Code.BAD_CREATOR_SIGNATURE


@pytest.mark.statement(70, of="client")
def test_an_endorsement_of_somebody_who_is_no_peer_does_not_count(
    org, check, proposal, user
):
    for signer in (org.admin, user, org.orderer):
        found, _ = check(envelope(proposal, user, endorsed(org, proposal, peer=signer)))
        assert found.code == Code.ENDORSEMENT_POLICY_FAILURE


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"name": "other"}, Code.INVALID_CHAINCODE),
        ({"version": ""}, Code.INVALID_CHAINCODE),
        ({"results": b"\xff"}, Code.BAD_RWSET),
        ({"hash_": b"h"}, Code.INVALID_ENDORSER_TRANSACTION),
        ({"events": b"\xff"}, Code.INVALID_OTHER_REASON),
        (
            {
                "events": chaincode_event_pb2.ChaincodeEvent(
                    chaincode_id="x"
                ).SerializeToString()
            },
            Code.INVALID_OTHER_REASON,
        ),
    ],
)
def test_what_was_endorsed_must_speak_of_this_proposal(
    org, check, proposal, user, more, code
):
    found, _ = check(envelope(proposal, user, endorsed(org, proposal, **more)))
    assert Code.TxValidationCode.Name(found.code) == Code.TxValidationCode.Name(code)


def test_nothing_and_garbage_get_codes(check):
    assert check(b"")[0].code == Code.NIL_ENVELOPE
    assert check(b"\xff")[0].code == Code.INVALID_OTHER_REASON
    bad = common_pb2.Envelope(payload=b"\xff").SerializeToString()
    assert check(bad)[0].code == Code.BAD_PAYLOAD


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(at=st.integers(0, 4000), bit=st.integers(0, 7))
def test_no_flipped_bit_goes_unnoticed(org, check, proposal, user, at, bit):
    good = envelope(proposal, user, endorsed(org, proposal))
    at %= len(good)
    bad = good[:at] + bytes([good[at] ^ (1 << bit)]) + good[at + 1 :]
    assert check(bad)[0].code != Code.NOT_VALIDATED
