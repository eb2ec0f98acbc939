"""Envelopes that clients send to the orderer, each answered before the next one is read.

An answer other than SUCCESS ends the stream.
Source: docs/fabric/deliver.md#broadcast
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from fabric_protos.common import common_pb2
from fabric_protos.orderer import ab_pb2

from chaindock.aio import off_loop
from chaindock.endorser.channel import Channel
from chaindock.endorser.orderer import FRAME_BYTES
from chaindock.errors import ChaindockError, InvalidInput, Unsupported
from chaindock.gateway.blocks import Feeds
from chaindock.gateway.calls import Call as Context
from chaindock.gateway.calls import Service, Stream
from chaindock.gateway.deliver import ORDERED, Deliver
from chaindock.gateway.options import GatewayOptions
from chaindock.gateway.seat import Seat
from chaindock.gateway.statuses import broadcast_status
from chaindock.ledger.simulator import require_size
from chaindock.ledger.transaction import (
    Broken,
    ParsedTransaction,
    code_name,
    read_headers,
)
from chaindock.values import MIB

_SUCCESS: Final = common_pb2.SUCCESS
_HELD_BYTES: Final = 64 * MIB
"""Of envelopes that wait for an answer; a further one is refused."""
_FULL: Final = "too many envelopes wait for a place in the queue of the orderer"


class Broadcast:
    """Takes envelopes for the channels of the node."""

    def __init__(self, channels: Mapping[str, Channel]) -> None:
        self._channels = channels
        self._held_bytes = 0
        """Envelopes that are not answered yet: the queue of the orderer may be full."""

    async def stream(self, context: Context) -> None:
        """Answer the envelopes of a stream in their order."""
        status = _SUCCESS
        while status == _SUCCESS:
            envelope = await context.read()
            if envelope is None:
                return
            status, info = await self.answer(envelope)
            del envelope  # a stream that waits holds none
            response = ab_pb2.BroadcastResponse(status=status, info=info)
            await context.write(response.SerializeToString())

    async def answer(self, envelope: bytes) -> tuple[int, str]:
        """Order an envelope; return status and text."""
        size = len(envelope)
        if self._held_bytes and self._held_bytes + size > _HELD_BYTES:
            return common_pb2.SERVICE_UNAVAILABLE, _FULL
        self._held_bytes += size
        try:
            channel = await self._channel_of(envelope)
            _ = await channel.orderer.order(envelope)
        except ChaindockError as error:
            return broadcast_status(error)
        finally:
            self._held_bytes -= size
        return _SUCCESS, ""

    async def _channel_of(self, envelope: bytes) -> Channel:
        """Return the channel of an envelope. Raises: InvalidInput, Unsupported."""
        limits = [one.orderer.max_bytes for one in self._channels.values()]
        require_size(len(envelope) - FRAME_BYTES, max(limits, default=0))
        header = await off_loop(len(envelope), partial(_header, envelope))
        channel = self._channels.get(header.channel_id)
        if channel is None and header.type == common_pb2.CONFIG_UPDATE:
            raise Unsupported("a channel is made by `chaindock channel create NAME`")
        if channel is None:
            raise InvalidInput("channel does not exist")
        return channel


def _header(envelope: bytes) -> Any:
    """Return the channel header of an envelope. Raises: InvalidInput."""
    if not envelope:
        raise InvalidInput("Message was empty")
    try:
        return read_headers(ParsedTransaction(envelope))[2]
    except Broken as broken:
        fault = code_name(broken.code)
        raise InvalidInput(f"could not determine channel ID: {fault}") from None


def service(
    channels: Mapping[str, Channel], feeds: Feeds, options: GatewayOptions, seat: Seat
) -> Service:
    """Return the service of the orderer, at the server of a peer."""
    streams: dict[str, Stream] = {
        "Broadcast": Broadcast(channels).stream,
        "Deliver": partial(Deliver(channels, feeds, options, seat).serve, ORDERED),
    }
    limit = options.deliver_calls
    return Service("orderer.AtomicBroadcast", streams=streams, limit=limit)
