"""Proposals: every check and its text, and what is endorsed."""

import datetime as dt
import hashlib
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from fabric_protos.common import common_pb2
from fabric_protos.ledger.rwset import rwset_pb2
from fabric_protos.peer import chaincode_pb2, proposal_pb2, proposal_response_pb2

from chaindock.endorser.caller import assemble
from chaindock.endorser.checks import parse_proposal
from chaindock.errors import Denied, NotFound, ProposalInvalid, TransactionExists
from chaindock.identity.ca import CertificateAuthority, certificate_pem, new_key
from chaindock.identity.msp import SigningIdentity
from support.ledgers.proposals import new_proposal

P256 = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def proposal(
    node: Any,
    *args: Any,
    name: Any = "basic",
    channel: Any = "mychannel",
    signer: Any = None,
    **more: Any,
) -> Any:
    return new_proposal(channel, name, args, signer or node.user, **more)


def changed(node: Any, change: Any, *args: Any, sign: Any = True) -> Any:
    """A proposal whose parsed parts `change` may edit before it is signed."""
    signed = proposal(node, *(args or (b"get", b"k")))
    outer = proposal_pb2.Proposal.FromString(signed.proposal_bytes)
    header = common_pb2.Header.FromString(outer.header)
    parts = {
        "channel": common_pb2.ChannelHeader.FromString(header.channel_header),
        "signature": common_pb2.SignatureHeader.FromString(header.signature_header),
        "payload": proposal_pb2.ChaincodeProposalPayload.FromString(outer.payload),
    }
    change(**parts)
    data = proposal_pb2.Proposal(
        header=common_pb2.Header(
            channel_header=parts["channel"].SerializeToString(),
            signature_header=parts["signature"].SerializeToString(),
        ).SerializeToString(),
        payload=parts["payload"].SerializeToString(),
    ).SerializeToString()
    signature = node.user.sign(data) if sign else signed.signature
    return proposal_pb2.SignedProposal(proposal_bytes=data, signature=signature)


async def endorsed(node: Any, signed: Any) -> Any:
    """The endorsements of a proposal, by default one."""
    proposal = parse_proposal(signed)
    return (await node.endorser.process(proposal, endorse=True))[1]


@pytest.mark.statement(34, of="client")
async def test_a_success_is_endorsed_over_payload_and_endorser(defined):
    signed = proposal(defined, b"put", b"k", b"v")
    (response,) = await endorsed(defined, signed)
    assert response.version == 1
    assert response.response.status == 200
    assert response.endorsement.endorser == defined.org.peer.creator
    peer = defined.endorser.configuration.msps.identify(response.endorsement.endorser)
    peer.verify(
        response.payload + response.endorsement.endorser, response.endorsement.signature
    )
    payload = proposal_response_pb2.ProposalResponsePayload.FromString(response.payload)
    outer = proposal_pb2.Proposal.FromString(signed.proposal_bytes)
    header = common_pb2.Header.FromString(outer.header)
    assert (
        payload.proposal_hash
        == hashlib.sha256(
            header.channel_header + header.signature_header + outer.payload
        ).digest()
    )
    action = proposal_pb2.ChaincodeAction.FromString(payload.extension)
    assert (action.chaincode_id.name, action.chaincode_id.version) == ("basic", "1.0")
    assert action.response == response.response
    rwset = rwset_pb2.TxReadWriteSet.FromString(action.results)
    assert [ns.namespace for ns in rwset.ns_rwset] == ["_lifecycle", "basic"]


@pytest.mark.statement(35, of="client")
async def test_the_hash_leaves_out_the_transient_map(defined):
    signed = proposal(defined, b"get", b"k", transient={"a": b"b"})
    (response,) = await endorsed(defined, signed)
    payload = proposal_response_pb2.ProposalResponsePayload.FromString(response.payload)
    outer = proposal_pb2.Proposal.FromString(signed.proposal_bytes)
    header = common_pb2.Header.FromString(outer.header)
    full = proposal_pb2.ChaincodeProposalPayload.FromString(outer.payload)
    bare = proposal_pb2.ChaincodeProposalPayload(input=full.input).SerializeToString()
    assert (
        payload.proposal_hash
        == hashlib.sha256(
            header.channel_header + header.signature_header + bare
        ).digest()
    )


@pytest.mark.parametrize("status", [400, 499, 500, 599])
@pytest.mark.statement(34)
async def test_a_response_of_400_and_more_is_not_endorsed(defined, status):
    signed = proposal(defined, b"status", str(status).encode(), b"no such asset")
    outcome, responses = await defined.endorser.process(
        parse_proposal(signed), endorse=True
    )
    assert (outcome.response.status, outcome.response.message) == (
        status,
        "no such asset",
    )
    assert outcome.event is None
    if status < 500:
        assert responses == ()
        return
    # What was read and written is told, and nobody signs it.
    (response,) = responses
    assert not response.HasField("endorsement")
    payload = proposal_response_pb2.ProposalResponsePayload.FromString(response.payload)
    action = proposal_pb2.ChaincodeAction.FromString(payload.extension)
    assert b"never" in action.results
    assert action.events == b""


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda channel, **_: channel.ClearField("extension"),
            "ChaincodeHeaderExtension.ChaincodeId is nil",
        ),
        (
            lambda channel, **_: setattr(
                channel,
                "extension",
                proposal_pb2.ChaincodeHeaderExtension(
                    chaincode_id=chaincode_pb2.ChaincodeID()
                ).SerializeToString(),
            ),
            "ChaincodeHeaderExtension.ChaincodeId.Name is empty",
        ),
        (
            lambda payload, **_: payload.ClearField("input"),
            "chaincode invocation spec did not contain chaincode spec",
        ),
        (
            lambda payload, **_: setattr(
                payload,
                "input",
                chaincode_pb2.ChaincodeInvocationSpec(
                    chaincode_spec=chaincode_pb2.ChaincodeSpec()
                ).SerializeToString(),
            ),
            "chaincode input did not contain any input",
        ),
        (
            lambda channel, **_: setattr(channel, "type", 5),
            "error validating proposal: invalid header type DELIVER_SEEK_INFO",
        ),
        (
            lambda channel, **_: setattr(channel, "type", 77),
            "error validating proposal: invalid header type 77",
        ),
        (
            lambda channel, **_: setattr(channel, "epoch", 1),
            "error validating proposal: epoch is non-zero",
        ),
        (
            lambda signature, **_: signature.ClearField("nonce"),
            "error validating proposal: nonce is empty",
        ),
        (
            lambda signature, **_: signature.ClearField("creator"),
            "error validating proposal: creator is empty",
        ),
    ],
)
async def test_a_malformed_proposal_is_named(defined, change, text):
    with pytest.raises(ProposalInvalid) as caught:
        await endorsed(defined, changed(defined, change))
    assert caught.value.message == text
    assert defined.chaincode.seen == []


async def test_garbage_is_refused(defined):
    for data in (b"\xff\xff", b"\x0a\x02\xff\xff"):
        with pytest.raises(ProposalInvalid, match="error unmarshalling"):
            await endorsed(
                defined,
                proposal_pb2.SignedProposal(proposal_bytes=data, signature=b"x"),
            )
    with pytest.raises(ProposalInvalid):
        await endorsed(defined, proposal_pb2.SignedProposal())


@pytest.mark.statement(33, of="client")
async def test_a_wrong_transaction_id_is_refused(defined):
    signed = changed(defined, lambda channel, **_: setattr(channel, "tx_id", "ab"))
    expected = parse_proposal(signed)
    with pytest.raises(ProposalInvalid) as caught:
        await endorsed(defined, signed)
    good = hashlib.sha256(expected.nonce + expected.creator).hexdigest()
    assert caught.value.message == (
        "error validating proposal: incorrectly computed txid 'ab' -- expected "
        f"'{good}'"
    )


async def test_an_empty_signature_is_refused(defined):
    signed = proposal(defined, b"get", b"k")
    signed.signature = b""
    with pytest.raises(ProposalInvalid, match="empty signature bytes"):
        await endorsed(defined, signed)


async def test_a_signature_that_does_not_fit_is_denied(defined):
    signed = changed(
        defined, lambda payload, **_: payload.TransientMap.update(a=b"b"), sign=False
    )
    with pytest.raises(Denied) as caught:
        await endorsed(defined, signed)
    assert caught.value.message == (
        "error validating proposal: access denied: channel [mychannel] creator org "
        "[Org1MSP]"
    )


@pytest.mark.statement(36, of="client")
async def test_a_high_s_signature_is_denied(defined):
    signed = proposal(defined, b"get", b"k")
    r, s = decode_dss_signature(signed.signature)
    signed.signature = encode_dss_signature(r, P256 - s)
    with pytest.raises(Denied, match="access denied"):
        await endorsed(defined, signed)


def stranger(
    node: Any,
    *,
    mspid: Any = "Org1MSP",
    ca: Any = None,
    unit: Any = "client",
    days: Any = 10,
) -> Any:
    ca = ca or node.org._ca
    key = new_key()
    certificate = ca.issue(key.public_key(), "x@y", unit)
    return SigningIdentity(mspid, certificate_pem(certificate), key)


async def test_an_unknown_organisation_is_denied(defined):
    signer = stranger(defined, mspid="Org9MSP")
    with pytest.raises(Denied) as caught:
        await endorsed(defined, proposal(defined, b"get", signer=signer))
    assert caught.value.message == (
        "error validating proposal: access denied: channel [mychannel] creator org "
        "unknown, creator is malformed"
    )


async def test_a_foreign_ca_and_a_missing_role_are_denied(defined):
    foreign = stranger(defined, ca=CertificateAuthority.create("org1.example.com"))
    roleless = stranger(defined, unit="nobody")
    for signer, text in (
        (foreign, "unknown, creator is malformed"),
        (roleless, "[Org1MSP]"),
    ):
        with pytest.raises(Denied) as caught:
            await endorsed(defined, proposal(defined, b"get", signer=signer))
        assert caught.value.message == (
            f"error validating proposal: access denied: channel [mychannel] creator org {text}"
        )


@pytest.mark.statement(83, of="client")
async def test_an_expired_client_is_refused_before_anything_else(defined, monkeypatch):
    signer = stranger(defined)
    identity = defined.endorser.configuration.msps.identify(signer.creator)
    object.__setattr__(identity, "expires", dt.datetime.now(dt.UTC))
    with pytest.raises(Denied) as caught:
        await endorsed(
            defined, proposal(defined, b"get", channel="nowhere", signer=signer)
        )
    assert caught.value.message == "proposal client identity expired"


async def test_a_peer_may_not_propose(defined):
    for signer in (defined.org.peer, defined.org.orderer):
        with pytest.raises(Denied) as caught:
            await endorsed(defined, proposal(defined, b"get", b"k", signer=signer))
        assert caught.value.message.startswith(
            "Failed evaluating policy on signed data during check policy on channel "
            "[mychannel] with policy [/Channel/Application/Writers]: ["
        )
    assert defined.chaincode.seen == []


@pytest.mark.statement(37, of="client")
async def test_a_committed_proposal_cannot_be_sent_again(defined):
    signed = proposal(defined, b"put", b"k", b"v")
    parsed = parse_proposal(signed)
    envelope = assemble(parsed, await endorsed(defined, signed), defined.user)
    await defined.orderer.submit(envelope)
    with pytest.raises(TransactionExists) as caught:
        await endorsed(defined, signed)
    assert caught.value.message == (
        f"duplicate transaction found [{parsed.tx_id}]. Creator "
        f"[{defined.user.creator.hex()}]"
    )


async def test_an_unknown_channel_is_named(defined):
    with pytest.raises(NotFound, match="channel 'elsewhere' not found"):
        await endorsed(defined, proposal(defined, b"get", channel="elsewhere"))


async def test_a_call_without_channel_is_answered_and_never_endorsed(defined):
    from fabric_protos.peer.lifecycle import lifecycle_pb2

    args = lifecycle_pb2.QueryChaincodeDefinitionArgs(name="basic").SerializeToString()
    signed = proposal(
        defined, b"QueryChaincodeDefinition", args, name="_lifecycle", channel=""
    )
    outcome, responses = await defined.endorser.process(
        parse_proposal(signed), endorse=True
    )
    assert outcome.response.status == 200
    assert responses == ()
    with pytest.raises(NotFound):
        await endorsed(defined, proposal(defined, b"get", b"k", channel=""))
    assert defined.chaincode.seen == []


async def test_the_client_cannot_set_decorations(defined):
    def decorate(payload: Any, **_: Any) -> Any:
        call = chaincode_pb2.ChaincodeInvocationSpec.FromString(payload.input)
        call.chaincode_spec.input.decorations["x"] = b"y"
        payload.input = call.SerializeToString()

    await endorsed(defined, changed(defined, decorate))
    assert dict(defined.chaincode.seen[-1][1].input.decorations) == {}


async def test_chaincode_gets_the_signed_bytes_of_the_client(defined):
    signed = proposal(defined, b"get", b"k")
    await endorsed(defined, signed)
    ccid, invocation = defined.chaincode.seen[-1]
    assert ccid.startswith("basic_1.0:")
    assert invocation.signed_proposal == signed
    assert (invocation.channel_id, invocation.namespace) == ("mychannel", "basic")
