"""The system chaincode `cscc`: the channels of a peer and their configuration.

Source: docs/fabric/peer.md#cscc
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from typing import Final

from fabric_protos.common import common_pb2
from fabric_protos.common.configtx_pb2 import Config
from fabric_protos.peer.proposal_response_pb2 import Response
from fabric_protos.peer.query_pb2 import ChannelQueryResponse
from google.protobuf.message import DecodeError

from chaindock.aio import off_loop
from chaindock.endorser import acl
from chaindock.endorser.channel import Channel, Joined
from chaindock.endorser.checks import UNREADABLE
from chaindock.endorser.configuration import channel_of, config_block, read_config
from chaindock.endorser.genesis import place_orderer
from chaindock.errors import ChaindockError, Denied, InvalidInput
from chaindock.identity.msp import Identity, require_local
from chaindock.ledger.blocks import header_der
from chaindock.ledger.simulator import Simulator
from chaindock.lifecycle.contract import failed, succeeded

_WITHOUT_ARGUMENT: Final = frozenset({"GetChannels", "JoinBySnapshotStatus"})
_SNAPSHOTS: Final = (
    "snapshots of a Fabric peer are not supported; this node has its channels from the "
    "start"
)


class ConfigurationChaincode:
    """Answers calls of `cscc` for all channels of the node.

    Args:
        orderer: returns the address of the orderer, host:port; "" = nobody listens.
    """

    def __init__(
        self, channels: Mapping[str, Channel], orderer: Callable[[], str]
    ) -> None:
        self._channels, self._orderer = channels, orderer

    async def execute(
        self,
        _simulator: Simulator | None,
        args: Sequence[bytes],
        identity: Identity,
        mspid: str,
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
            raise InvalidInput(_SNAPSHOTS)
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
        """Let a peer join the channel that it has joined already; refuse any other.

        Raises: Denied, InvalidInput, LedgerError.
        """
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
    """Return the channel whose configuration a block holds, and the block's hash.

    Raises: InvalidInput.
    """
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
