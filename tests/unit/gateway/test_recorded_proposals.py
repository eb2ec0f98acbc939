"""What a real peer answered to proposals, and what this node answers to the same bytes."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fabric_protos.common.common_pb2 import TRANSACTIONS_FILTER, Block
from fabric_protos.common.configtx_pb2 import Config
from fabric_protos.peer import proposal_pb2, proposal_response_pb2
from fabric_protos.peer.lifecycle.lifecycle_pb2 import QueryChaincodeDefinitionsResult

from chaindock.endorser.configuration import Configuration
from chaindock.errors import ChaindockError
from chaindock.gateway.statuses import Refusal
from chaindock.identity.msp import Msp
from chaindock.identity.organization import Organization
from support.ledgers.recorded import commit_recorded, decode, ledger_of
from support.peers import DECADES_S, Approved, channel_of, peer_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chaindock.lifecycle.definitions import Approval

_FILE = Path(__file__).parents[2] / "fixtures" / "fabric31" / "proposals.json.xz"
_SYSTEM = 26
_HEIGHT, _LAST = 291, 334
_AT = ", peer time "


class _Installed(Approved):
    """What the recorded peer had installed."""

    def approval(self, name: str, sequence: int) -> Approval | None:
        return None if name == "gvnopkg" else super().approval(name, sequence)


def recordings() -> Iterator[tuple[int, str, bytes, bytes, Any]]:
    """Yield position, name, request, response and gRPC error."""
    for number, (name, request, response, error) in enumerate(
        json.loads(lzma.decompress(_FILE.read_bytes()))
    ):
        yield number, name, decode(request), decode(response or ""), error


def readable(name: str, raw: bytes) -> Any:
    """Take a response apart, without what each peer makes anew or in random order."""
    answer = proposal_response_pb2.ProposalResponse.FromString(raw)
    payload = proposal_response_pb2.ProposalResponsePayload.FromString(answer.payload)
    action = proposal_pb2.ChaincodeAction.FromString(payload.extension)
    response = answer.response
    told = [
        (one.status, one.message, _payload(name, one.payload))
        for one in (response, action.response)
    ]
    return (
        answer.version,
        told,
        payload.proposal_hash,
        action.results,
        str(action.chaincode_id),
        answer.HasField("endorsement"),
        str(answer.interest) if answer.HasField("interest") else None,
    )


def _payload(name: str, payload: bytes) -> Any:
    if name == "cscc_GetChannelConfig":
        return Config.FromString(payload)
    if name == "lifecycle_QueryChaincodeDefinitions_user":
        found = QueryChaincodeDefinitionsResult.FromString(payload)
        return sorted(map(str, found.chaincode_definitions))
    if name in {"qscc_GetBlockByNumber", "qscc_GetBlockByTxID"} and payload:
        block = Block.FromString(payload)
        codes = block.metadata.metadata[TRANSACTIONS_FILTER]
        return block.header, block.data, codes
    return payload


@pytest.mark.statement(33, 36, 37, 80, of="client")
async def test_the_node_answers_proposals_as_the_recorded_peer(tmp_path):
    org = Organization.open(tmp_path / "organizations", "Org1MSP", "org1.example.com")
    channels: dict[str, Any] = {}
    async with ledger_of(tmp_path) as ledger:
        group = Configuration.of(ledger).config.channel_group.groups["Application"]
        msp = Msp.of(group.groups["Org1MSP"].values["MSP"].value)
        peers = {"Org1MSP": org.peer}
        while ledger.height < _HEIGHT:
            await commit_recorded(ledger, ledger.height)
        approvals = _Installed()
        async with channel_of(ledger, peers, channels, approvals=approvals):
            peer = peer_of("Org1MSP", msp, channels, DECADES_S)
            wrong = {}
            for number, name, request, response, error in recordings():
                while number >= _SYSTEM and ledger.height < _LAST:
                    await commit_recorded(ledger, ledger.height)
                wanted = error or readable(name, response)
                found = await _said(peer, name, request)
                if error and _AT in error[1]:
                    found, wanted = (str(one).split(_AT)[0] for one in (found, wanted))
                if found != wanted:
                    wrong[name] = found, wanted
    assert wrong == {}


async def _said(peer: Any, name: str, request: bytes) -> Any:
    try:
        return readable(name, await peer.process_proposal(request))
    except Refusal as refused:
        cause = refused.__cause__  # its text is not cut
        text = cause.message if isinstance(cause, ChaindockError) else refused.text
        return [refused.code.name, text]
