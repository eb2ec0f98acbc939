"""Signed proposals as a client makes them (docs/fabric/ledger.md#proposal)."""

from __future__ import annotations

import hashlib
import os
import time
from typing import TYPE_CHECKING, Any

from fabric_protos.common import common_pb2
from fabric_protos.peer import chaincode_pb2, proposal_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from chaindock.endorser.caller import draw
from chaindock.ids import TxId

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from chaindock.identity.msp import SigningIdentity


def propose(
    client: SigningIdentity,
    channel: str,
    chaincode: str,
    args: Sequence[bytes],
    transient: Mapping[str, bytes] | None = None,
) -> tuple[TxId, proposal_pb2.SignedProposal]:
    """Return the transaction id and the signed proposal of one call."""
    nonce = os.urandom(24)
    tx_id = TxId(hashlib.sha256(nonce + client.creator).hexdigest())
    name = chaincode_pb2.ChaincodeID(name=chaincode)
    nanos = time.time_ns()
    header = common_pb2.Header(
        channel_header=common_pb2.ChannelHeader(
            type=common_pb2.ENDORSER_TRANSACTION,
            timestamp=Timestamp(seconds=nanos // 10**9, nanos=nanos % 10**9),
            channel_id=channel,
            tx_id=tx_id,
            extension=proposal_pb2.ChaincodeHeaderExtension(
                chaincode_id=name
            ).SerializeToString(),
        ).SerializeToString(),
        signature_header=common_pb2.SignatureHeader(
            creator=client.creator, nonce=nonce
        ).SerializeToString(),
    )
    spec = chaincode_pb2.ChaincodeInvocationSpec(
        chaincode_spec=chaincode_pb2.ChaincodeSpec(
            chaincode_id=name, input=chaincode_pb2.ChaincodeInput(args=list(args))
        )
    )
    payload = proposal_pb2.ChaincodeProposalPayload(
        input=spec.SerializeToString(), TransientMap=dict(transient or {})
    )
    proposal = proposal_pb2.Proposal(
        header=header.SerializeToString(), payload=payload.SerializeToString()
    ).SerializeToString()
    return tx_id, proposal_pb2.SignedProposal(
        proposal_bytes=proposal, signature=client.sign(proposal)
    )


def new_proposal(*parts: Any, **facts: Any) -> proposal_pb2.SignedProposal:
    """Return a proposal that a node has drawn; as `caller.draw`."""
    return draw(*parts, **facts).signed
