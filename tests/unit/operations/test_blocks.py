"""What the API says about a block."""

import base64

from fabric_protos.common import common_pb2
from fabric_protos.ledger.rwset import rwset_pb2
from fabric_protos.ledger.rwset.kvrwset import kv_rwset_pb2
from fabric_protos.msp import identities_pb2
from fabric_protos.peer import proposal_pb2, proposal_response_pb2, transaction_pb2

from chaindock.identity.ca import CertificateAuthority, certificate_pem
from chaindock.node import described
from chaindock.node.described import describe_block


def envelope() -> bytes:
    sets = kv_rwset_pb2.KVRWSet()
    sets.reads.add(key="seen").version.block_num = 3
    sets.reads.add(key="missing")
    sets.writes.add(key="k", value=b"v")
    sets.writes.add(key="gone", is_delete=True)
    results = rwset_pb2.TxReadWriteSet()
    results.ns_rwset.add(namespace="basic", rwset=sets.SerializeToString())
    action = proposal_pb2.ChaincodeAction(results=results.SerializeToString())
    action.chaincode_id.name = "basic"
    response = proposal_response_pb2.ProposalResponsePayload(
        extension=action.SerializeToString()
    )
    payload = transaction_pb2.ChaincodeActionPayload()
    payload.action.proposal_response_payload = response.SerializeToString()
    transaction = transaction_pb2.Transaction()
    transaction.actions.add(payload=payload.SerializeToString())
    header = common_pb2.ChannelHeader(
        type=common_pb2.HeaderType.ENDORSER_TRANSACTION,
        tx_id="f" * 64,
        channel_id="channel",
    )
    whole = common_pb2.Payload(data=transaction.SerializeToString())
    whole.header.channel_header = header.SerializeToString()
    whole = common_pb2.Envelope(payload=whole.SerializeToString())
    return bytes(whole.SerializeToString())


def test_summary_has_transactions_with_reads_and_writes():
    block = common_pb2.Block()
    block.header.number = 7
    block.header.previous_hash = b"\x01\x02"
    block.data.data.append(envelope())
    block.metadata.metadata.extend([b"", b"", bytes([11]), b"", b""])

    found = describe_block(block.SerializeToString())

    assert (found["number"], found["previous_hash"]) == (7, "0102")
    (one,) = found["transactions"]
    assert one["tx_id"] == "f" * 64
    assert one["type"] == "ENDORSER_TRANSACTION"
    assert (one["code"], one["code_name"]) == (11, "MVCC_READ_CONFLICT")
    assert one["chaincode"] == "basic"
    assert [(r["key"], r["version"]) for r in one["reads"]] == [
        ("seen", [3, 0]),
        ("missing", None),
    ]
    assert [(w["key"], w["is_delete"]) for w in one["writes"]] == [
        ("k", False),
        ("gone", True),
    ]
    assert base64.b64decode(one["writes"][0]["value"]) == b"v"


def test_transaction_that_cannot_be_read_is_told_all_the_same():
    block = common_pb2.Block()
    block.data.data.append(b"\xff\xff")
    (one,) = describe_block(block.SerializeToString())["transactions"]
    assert one["type"] == "unknown"
    assert one["code"] is None
    assert "unreadable" in one


def test_a_creator_that_is_padded_is_unreadable_and_not_kept():
    pem = certificate_pem(CertificateAuthority.create("org1.example.com").certificate)
    kind = identities_pb2.SerializedIdentity
    small = kind(mspid="Org1MSP", id_bytes=pem).SerializeToString()
    assert (described.identity(small) or {})["mspid"] == "Org1MSP"
    kept = described._identity.cache_info().currsize
    large = kind(mspid="Org1MSP", id_bytes=pem + b"\n" * 70_000).SerializeToString()
    assert described.identity(large) is None
    assert described._identity.cache_info().currsize == kept
