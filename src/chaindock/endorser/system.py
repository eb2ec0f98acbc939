"""The system chaincodes `cscc` (channels and configurations) and `qscc` (blocks).

Blocks are read off the event loop, each call from one state of the ledger.
Source: docs/fabric/peer.md#cscc, docs/fabric/peer.md#qscc
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from typing import Final

from fabric_protos.common import common_pb2
from fabric_protos.common.common_pb2 import Block, Envelope
from fabric_protos.common.configtx_pb2 import Config
from fabric_protos.common.ledger_pb2 import BlockchainInfo
from fabric_protos.peer.proposal_response_pb2 import Response
from fabric_protos.peer.query_pb2 import ChannelQueryResponse
from fabric_protos.peer.transaction_pb2 import ProcessedTransaction
from google.protobuf.message import DecodeError

from chaindock.aio import off_loop
from chaindock.endorser import acl
from chaindock.endorser.channel import Channel, Joined
from chaindock.endorser.checks import UNREADABLE
from chaindock.endorser.configuration import channel_of, config_block, read_config
from chaindock.endorser.genesis import place_orderer
from chaindock.errors import ChaindockError, Denied, InvalidInput, NotFound
from chaindock.identity.msp import Identity, require_local
from chaindock.ids import TxId
from chaindock.ledger.blocks import header_der
from chaindock.ledger.ledger import TxLocation
from chaindock.ledger.reader import View
from chaindock.lifecycle.contract import failed, succeeded

_WITHOUT_ARGUMENT: Final = frozenset({"GetChannels", "JoinBySnapshotStatus"})
_INFO: Final = "GetChainInfo"
_LAST: Final = (1 << 64) - 1
"""The number that stands for the newest block."""


class ConfigurationChaincode:
    """Answers calls of `cscc` for all channels of the node.

    `orderer` returns the address of the orderer, host:port; "" = nobody listens.
    """

    def __init__(
        self, channels: Mapping[str, Channel], orderer: Callable[[], str]
    ) -> None:
        self._channels, self._orderer = channels, orderer

    async def execute(
        self, _simulator: object, args: Sequence[bytes], identity: Identity, mspid: str
    ) -> Response:
        """Return the answer to a call; as `SystemChaincode.execute`."""
        function = args[0].decode(errors="replace") if args else ""
        if len(args) < (1 if function in _WITHOUT_ARGUMENT else 2):
            return failed(f"Incorrect number of arguments, {len(args)}")
        try:
            if function in {"GetConfigBlock", "GetChannelConfig"}:
                return await self._configuration(function, args[1], identity, mspid)
            if function == "JoinChain":
                return await self._join(args[1], identity, mspid)
            return self._local(function, identity, mspid)
        except ChaindockError as error:
            return failed(error.message)

    def _local(self, function: str, identity: Identity, mspid: str) -> Response:
        """Answer what belongs to no channel. Raises: Denied, InvalidInput."""
        if function not in _WITHOUT_ARGUMENT | {"JoinChainBySnapshot"}:
            raise InvalidInput(f"Requested function {function} not found.")
        policy = "Members" if function == "GetChannels" else "Admins"
        with _worded(f"access denied for [{function}]: "):
            require_local(policy, identity, mspid)
        if function != "GetChannels":
            raise InvalidInput(
                "snapshots of a Fabric peer are not supported; this node has its channels "
                "from the start"
            )
        answer = ChannelQueryResponse()
        for name in Joined(self._channels, mspid):
            answer.channels.add(channel_id=name)
        return succeeded(answer.SerializeToString())

    async def _configuration(
        self, function: str, raw: bytes, identity: Identity, mspid: str
    ) -> Response:
        """Return a configuration. Raises: Denied, InvalidInput, LedgerError."""
        name = raw.decode(errors="replace")
        if not name and function == "GetChannelConfig":
            raise InvalidInput("empty channel name provided")
        channel = Joined(self._channels, mspid).get(name)
        with _worded(f"access denied for [{function}][{name}]: "):
            if channel is None:
                raise Denied(f"Failed to get policy manager for channel [{name}]")
            configuration = channel.members.configuration
            acl.require(configuration, f"cscc/{function}", identity)
        if function == "GetConfigBlock":
            found = channel.reader.run(
                lambda view: config_block(view.height(), lambda n: view.block(n)[1])
            )
            return succeeded(await found)
        config = Config()
        config.CopyFrom(configuration.config)
        if address := self._orderer():
            # The port may be another one than when the channel was made.
            place_orderer(config.channel_group, address)
        return succeeded(config.SerializeToString())

    async def _join(self, raw: bytes, identity: Identity, mspid: str) -> Response:
        """Let a peer join its channel again. Raises: Denied, InvalidInput, LedgerError."""
        name, found = await off_loop(len(raw), partial(_read_genesis, raw))
        with _worded(f"access denied for [JoinChain][{name}]: [", "]"):
            require_local("Admins", identity, mspid)
        channel = Joined(self._channels, mspid).get(name)
        if channel is None:
            raise InvalidInput(
                f"channel {name!r} is not one of this node for {mspid}: a node has its "
                "own orderer, and joins no channel of another one"
            )
        if found != (await channel.reader.run(lambda view: view.block(0)))[0]:
            raise InvalidInput(
                "cannot create ledger from genesis block: ledger "
                f"[{name}] already exists with state [ACTIVE]"
            )
        return succeeded()


@contextmanager
def _worded(before: str, after: str = "") -> Iterator[None]:
    """Put Fabric's words around the text of an error. Raises: InvalidInput."""
    try:
        yield
    except ChaindockError as error:
        raise InvalidInput(f"{before}{error}{after}") from error


def _read_genesis(raw: bytes) -> tuple[str, bytes]:
    """Return channel and hash of a block with a configuration. Raises: InvalidInput."""
    try:
        block = common_pb2.Block.FromString(raw)
    except DecodeError as error:
        said = f"Failed to reconstruct the genesis block, {UNREADABLE}"
        raise InvalidInput(said) from error
    header, data = block.header, block.data.data
    said = '"JoinChain" request failed to extract channel id from the block due to ['
    with _worded(said, "]"):
        _require(data, "failed to retrieve channel id - block is empty")
        name = channel_of(data[0])
    said = (
        f'"JoinChain" for channelID = {name} failed because of validation of '
        "configuration block, because of "
    )
    with _worded(said):
        _require(
            "Application" in read_config(data[0]).channel_group.groups,
            "Invalid configuration block, missing Application configuration group",
        )
    data_hash = sha256(b"".join(data)).digest()
    der = header_der(header.number, header.previous_hash, data_hash)
    return name, sha256(der).digest()


def _require(holds: object, text: str) -> None:
    if not holds:
        raise InvalidInput(text)


class QueryChaincode:
    """Answers calls of `qscc` for all channels of the node."""

    def __init__(self, channels: Mapping[str, Channel]) -> None:
        self._channels = channels

    async def execute(
        self, _simulator: object, args: Sequence[bytes], identity: Identity, mspid: str
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
            return succeeded(await _answer(channel, function, *args[2:3]))
        except ChaindockError as error:
            return failed(error.message)


async def _answer(channel: Channel, function: str, wanted: bytes = b"") -> bytes:
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
    if text.isdigit():
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
