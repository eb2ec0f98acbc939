"""What a chaincode played by a test does to call another one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fabric_protos.ledger.rwset import rwset_pb2
from fabric_protos.ledger.rwset.kvrwset import kv_rwset_pb2
from fabric_protos.peer import chaincode_pb2, proposal_pb2, proposal_response_pb2
from fabric_protos.peer import chaincode_shim_pb2 as shim

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from support.shims.peer import ShimPeer

Kind = shim.ChaincodeMessage


def spec(name: str, *args: bytes, **given: Any) -> bytes:
    """Return the payload of INVOKE_CHAINCODE."""
    wanted = chaincode_pb2.ChaincodeSpec(
        chaincode_id=chaincode_pb2.ChaincodeID(name=name),
        input=chaincode_pb2.ChaincodeInput(args=args, **given),
    )
    data: bytes = wanted.SerializeToString()
    return data


async def send(peer: ShimPeer, to: Any, name: str, *args: bytes, **given: Any) -> None:
    await peer.send(
        Kind.INVOKE_CHAINCODE,
        spec(name, *args, **given),
        txid=to.txid,
        channel=to.channel_id,
    )


async def cause(
    peer: ShimPeer, to: Any, payload: bytes | Message, kind: Any = Kind.INVOKE_CHAINCODE
) -> str:
    """Return the CAUSE of the ERROR that answers a request."""
    reply = await peer.ask(to, kind, payload)
    assert reply.type == Kind.ERROR, reply
    text: str = reply.payload.decode()
    prefix = f"{Kind.Type.Name(kind)} failed: transaction ID: {to.txid}: "
    assert text.startswith(prefix)
    return text.removeprefix(prefix)


def nested(reply: Any) -> Any:
    """Return the message in the answer of a call."""
    assert reply.type == Kind.RESPONSE, reply
    return Kind.FromString(reply.payload)


def spaces(endorsement: Any) -> dict[str, Any]:
    """Return the read-write sets by namespace."""
    payload = proposal_response_pb2.ProposalResponsePayload.FromString(
        endorsement.payload
    )
    action = proposal_pb2.ChaincodeAction.FromString(payload.extension)
    found = rwset_pb2.TxReadWriteSet.FromString(action.results)
    return {
        one.namespace: kv_rwset_pb2.KVRWSet.FromString(one.rwset)
        for one in found.ns_rwset
    }
