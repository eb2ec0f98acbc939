"""The system chaincode `qscc`: blocks and transactions of a channel.

Blocks are read off the event loop, each call from one state of the ledger.
Source: docs/fabric/peer.md#qscc
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final

from fabric_protos.common.common_pb2 import Block, Envelope
from fabric_protos.common.ledger_pb2 import BlockchainInfo
from fabric_protos.peer.proposal_response_pb2 import Response
from fabric_protos.peer.transaction_pb2 import ProcessedTransaction

from chaindock.endorser import acl
from chaindock.endorser.channel import Channel, Joined
from chaindock.errors import ChaindockError, Denied, NotFound
from chaindock.identity.msp import Identity
from chaindock.ids import TxId
from chaindock.ledger.ledger import TxLocation
from chaindock.ledger.reader import View
from chaindock.ledger.simulator import Simulator
from chaindock.lifecycle.contract import failed, succeeded

_INFO: Final = "GetChainInfo"
_NUMBER: Final = re.compile(rb"[0-9]+")
_LAST: Final = (1 << 64) - 1
"""The number that stands for the newest block."""


class QueryChaincode:
    """Answers calls of `qscc` for all channels of the node."""

    def __init__(self, channels: Mapping[str, Channel]) -> None:
        self._channels = channels

    async def execute(
        self,
        _simulator: Simulator | None,
        args: Sequence[bytes],
        identity: Identity,
        mspid: str,
    ) -> Response:
        """Return the answer to a call; as `SystemChaincode.execute`."""
        if len(args) < 2:
            return failed(f"Incorrect number of arguments, {len(args)}")
        function, name = (arg.decode(errors="replace") for arg in args[:2])
        if function != _INFO and len(args) < 3:
            return failed(f"missing 3rd argument for {function}")
        channel = Joined(self._channels, mspid).get(name)
        if channel is None:
            return failed(f"Invalid chain ID, {name}")
        try:
            acl.require(channel.members.configuration, f"qscc/{function}", identity)
        except Denied as error:
            return failed(f"access denied for [{function}][{name}]: [{error.message}]")
        try:
            return succeeded(await _answer(channel, function, args[-1]))
        except ChaindockError as error:
            return failed(error.message)


async def _answer(channel: Channel, function: str, wanted: bytes) -> bytes:
    """Return the payload. Raises: NotFound with Fabric's text, LedgerError."""
    read = channel.reader.run
    if function == _INFO:
        return await read(_info)
    if function == "GetBlockByNumber":
        return await read(partial(_by_number, number=_parse(wanted)))
    if function == "GetBlockByHash":
        return await read(partial(_by_hash, wanted=wanted))
    tx_id = TxId(wanted.decode(errors="replace"))
    place = channel.ledger.find_transaction(tx_id)
    if place is None:
        failure = f"error no such transaction ID [{tx_id}] in index"
        if function == "GetBlockByTxID":
            raise NotFound(f"Failed to get block for txID {tx_id}, {failure}")
        raise NotFound(f"Failed to get transaction with id {tx_id}, {failure}")
    if function == "GetBlockByTxID":
        return await read(partial(_by_number, number=place.block))
    return await read(partial(_transaction, place=place))


def _parse(text: bytes) -> int:
    cause, digits = "invalid syntax", text.lstrip(b"0") or b"0"
    if _NUMBER.fullmatch(text):
        cause = "value out of range"
        if len(digits) <= len(str(_LAST)) and (number := int(digits)) <= _LAST:
            return number
    quoted = json.dumps(text.decode(errors="replace"), ensure_ascii=False)
    raise NotFound(
        "Failed to parse block number with error strconv.ParseUint: parsing "
        f"{quoted}: {cause}"
    )


def _info(view: View) -> bytes:
    height, newest, previous = view.chain()
    info = BlockchainInfo(
        height=height, currentBlockHash=newest, previousBlockHash=previous
    )
    return bytes(info.SerializeToString())


def _by_number(view: View, number: int) -> bytes:
    height = view.height()
    wanted = height - 1 if number == _LAST else number
    if wanted >= height:
        raise NotFound(
            f"Failed to get block number {number}, error no such block number "
            f"[{number}] in index"
        )
    return view.block(wanted)[1]


def _by_hash(view: View, wanted: bytes) -> bytes:
    found = view.block_of(wanted)
    if found is None:
        raise NotFound(
            f"Failed to get block hash {wanted.decode(errors='replace')}, error no such "
            f"block hash [{wanted.hex()}] in index"
        )
    return found


def _transaction(view: View, place: TxLocation) -> bytes:
    envelope = Block.FromString(view.block(place.block)[1]).data.data[place.index]
    found = ProcessedTransaction(
        transactionEnvelope=Envelope.FromString(envelope), validationCode=place.code
    )
    return bytes(found.SerializeToString())
