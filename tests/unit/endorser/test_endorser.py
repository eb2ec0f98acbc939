"""ProcessProposal: every check and its text, every shape of response."""

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

from chaindock.endorser.proposals import new_proposal, parse_proposal
from chaindock.errors import (
    ChaincodeError,
    Denied,
    ExecuteTimeout,
    ExitedEarly,
    ProposalInvalid,
    StreamTerminated,
    TransactionExists,
)
from chaindock.identity.ca import CertificateAuthority, certificate_pem, new_key
from chaindock.identity.msp import SigningIdentity

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


async def test_a_success_is_endorsed_over_payload_and_endorser(defined):
    signed = proposal(defined, b"put", b"k", b"v")
    response = await defined.endorser.process_proposal(signed)
    assert response.version == 1
    assert response.response.status == 200
    assert response.endorsement.endorser == defined.org.peer.creator
    peer = defined.org.msp.identify(response.endorsement.endorser)
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
    assert [c.name for c in response.interest.chaincodes] == ["basic"]


async def test_the_hash_leaves_out_the_transient_map(defined):
    signed = proposal(defined, b"get", b"k", transient={"a": b"b"})
    response = await defined.endorser.process_proposal(signed)
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


async def test_400_to_499_give_the_response_alone(defined):
    response = await defined.endorser.process_proposal(
        proposal(defined, b"status", b"404", b"no such asset")
    )
    assert response.response.status == 404
    assert response.response.message == "no such asset"
    assert response.payload == b""
    assert not response.HasField("endorsement")


async def test_500_gives_the_payload_without_endorsement_and_event(defined):
    response = await defined.endorser.process_proposal(
        proposal(defined, b"status", b"500", b"broken")
    )
    assert not response.HasField("endorsement")
    payload = proposal_response_pb2.ProposalResponsePayload.FromString(response.payload)
    action = proposal_pb2.ChaincodeAction.FromString(payload.extension)
    assert action.response.message == "broken"
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
        await defined.endorser.process_proposal(changed(defined, change))
    assert caught.value.message == text
    assert defined.chaincode.seen == []


async def test_garbage_is_refused(defined):
    for data in (b"\xff\xff", b"\x0a\x02\xff\xff"):
        with pytest.raises(ProposalInvalid, match="error unmarshalling"):
            await defined.endorser.process_proposal(
                proposal_pb2.SignedProposal(proposal_bytes=data, signature=b"x")
            )
    with pytest.raises(ProposalInvalid):
        await defined.endorser.process_proposal(proposal_pb2.SignedProposal())


async def test_a_wrong_transaction_id_is_refused(defined):
    signed = changed(defined, lambda channel, **_: setattr(channel, "tx_id", "ab"))
    expected = parse_proposal(signed)
    with pytest.raises(ProposalInvalid) as caught:
        await defined.endorser.process_proposal(signed)
    good = hashlib.sha256(expected.nonce + expected.creator).hexdigest()
    assert caught.value.message == (
        "error validating proposal: incorrectly computed txid 'ab' -- expected "
        f"'{good}'"
    )


async def test_an_empty_signature_is_refused(defined):
    signed = proposal(defined, b"get", b"k")
    signed.signature = b""
    with pytest.raises(ProposalInvalid, match="empty signature bytes"):
        await defined.endorser.process_proposal(signed)


async def test_a_signature_that_does_not_fit_is_denied(defined):
    signed = changed(
        defined, lambda payload, **_: payload.TransientMap.update(a=b"b"), sign=False
    )
    with pytest.raises(Denied) as caught:
        await defined.endorser.process_proposal(signed)
    assert caught.value.message == (
        "error validating proposal: access denied: channel [mychannel] creator org "
        "[Org1MSP]"
    )


async def test_a_high_s_signature_is_denied(defined):
    signed = proposal(defined, b"get", b"k")
    r, s = decode_dss_signature(signed.signature)
    signed.signature = encode_dss_signature(r, P256 - s)
    with pytest.raises(Denied, match="access denied"):
        await defined.endorser.process_proposal(signed)


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
        await defined.endorser.process_proposal(
            proposal(defined, b"get", signer=signer)
        )
    assert caught.value.message == (
        "error validating proposal: access denied: channel [mychannel] creator org "
        "unknown, creator is malformed"
    )


async def test_a_foreign_ca_and_a_missing_role_are_denied(defined):
    foreign = stranger(defined, ca=CertificateAuthority.create("org1.example.com"))
    roleless = stranger(defined, unit="nobody")
    for signer in (foreign, roleless):
        with pytest.raises(Denied, match=r"creator org \[Org1MSP\]"):
            await defined.endorser.process_proposal(
                proposal(defined, b"get", signer=signer)
            )


async def test_an_expired_client_is_refused_before_anything_else(defined, monkeypatch):
    signer = stranger(defined)
    identity = defined.org.msp.identify(signer.creator)
    object.__setattr__(identity, "expires", dt.datetime.now(dt.UTC))
    with pytest.raises(Denied) as caught:
        await defined.endorser.process_proposal(
            proposal(defined, b"get", channel="nowhere", signer=signer)
        )
    assert caught.value.message == "proposal client identity expired"


async def test_a_peer_may_not_propose(defined):
    for signer in (defined.org.peer, defined.org.orderer):
        with pytest.raises(Denied) as caught:
            await defined.endorser.process_proposal(
                proposal(defined, b"get", b"k", signer=signer)
            )
        assert caught.value.message.startswith(
            "failed evaluating policy on signed data during check policy "
            "[/Channel/Application/Writers]: ["
        )
    assert defined.chaincode.seen == []


async def test_a_committed_proposal_cannot_be_sent_again(defined):
    from chaindock.endorser.transactions import prepare_payload, sign_payload

    signed = proposal(defined, b"put", b"k", b"v")
    response = await defined.endorser.process_proposal(signed)
    parsed = parse_proposal(signed)
    payload = prepare_payload(parsed, [response])
    await defined.orderer.submit(sign_payload(parsed, payload, defined.user))
    with pytest.raises(TransactionExists) as caught:
        await defined.endorser.process_proposal(signed)
    assert caught.value.message == (
        f"duplicate transaction found [{parsed.tx_id}]. Creator "
        f"[{defined.user.creator.hex()}]"
    )


async def test_an_unknown_channel_is_a_response(defined):
    response = await defined.endorser.process_proposal(
        proposal(defined, b"get", channel="elsewhere")
    )
    assert response.response.status == 500
    assert response.response.message == "channel 'elsewhere' not found"
    assert response.payload == b""


async def test_a_call_without_channel_is_answered_and_never_endorsed(defined):
    from fabric_protos.peer.lifecycle import lifecycle_pb2

    args = lifecycle_pb2.QueryChaincodeDefinitionArgs(name="basic").SerializeToString()
    response = await defined.endorser.process_proposal(
        proposal(
            defined, b"QueryChaincodeDefinition", args, name="_lifecycle", channel=""
        )
    )
    assert response.response.status == 200
    assert response.payload == b""
    assert not response.HasField("endorsement")
    response = await defined.endorser.process_proposal(
        proposal(defined, b"get", b"k", channel="")
    )
    assert response.response.status == 500
    assert defined.chaincode.seen == []


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            ExecuteTimeout("failed to execute transaction T: error sending: timeout"),
            "error in simulation: failed to execute transaction T: error sending: timeout",
        ),
        (
            StreamTerminated("… chaincode stream terminated"),
            "error in simulation: … chaincode stream terminated",
        ),
        (
            ChaincodeError("transaction returned with failure: boom"),
            "error in simulation: transaction returned with failure: boom",
        ),
        (
            ExitedEarly("could not launch chaincode c: exited"),
            (
                "error in simulation: failed to execute transaction {tx}: could not "
                "launch chaincode c: exited"
            ),
        ),
    ],
)
async def test_failures_of_the_node_are_responses_without_payload(defined, error, text):
    defined.chaincode.raises = error
    signed = proposal(defined, b"get", b"k")
    response = await defined.endorser.process_proposal(signed)
    assert response.response.status == 500
    assert response.response.message == text.format(tx=parse_proposal(signed).tx_id)
    assert response.payload == b""


async def test_no_snapshot_is_left_open(defined):
    for error in (None, ChaincodeError("x")):
        defined.chaincode.raises = error
        await defined.endorser.process_proposal(proposal(defined, b"get", b"k"))
    await defined.endorser.process_proposal(proposal(defined, b"get", name="none"))
    assert defined.ledger._snapshots._held == set()


async def test_the_client_cannot_set_decorations(defined):
    def decorate(payload: Any, **_: Any) -> Any:
        call = chaincode_pb2.ChaincodeInvocationSpec.FromString(payload.input)
        call.chaincode_spec.input.decorations["x"] = b"y"
        payload.input = call.SerializeToString()

    await defined.endorser.process_proposal(changed(defined, decorate))
    assert dict(defined.chaincode.seen[-1][1].input.decorations) == {}


async def test_chaincode_gets_the_signed_bytes_of_the_client(defined):
    signed = proposal(defined, b"get", b"k")
    await defined.endorser.process_proposal(signed)
    ccid, invocation = defined.chaincode.seen[-1]
    assert ccid.startswith("basic_1.0:")
    assert invocation.signed_proposal == signed
    assert (invocation.channel_id, invocation.namespace) == ("mychannel", "basic")
