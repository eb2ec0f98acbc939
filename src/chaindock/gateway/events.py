"""gateway.Gateway.ChaincodeEvents: the events of a chaincode, as blocks are committed.

A client that reads slowly holds the messages of one write and its position.
Source: docs/fabric/gateway.md#events
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from chaindock.aio import off_loop
from chaindock.endorser.channel import Channel
from chaindock.errors import ChaindockError
from chaindock.gateway import requests
from chaindock.gateway.blocks import Feeds
from chaindock.gateway.calls import Call as Context
from chaindock.gateway.forms import FeedBlock, events_response
from chaindock.gateway.statuses import Refusal
from chaindock.ids import TxId
from chaindock.rpc.frames import Bundle
from chaindock.rpc.status import Status


async def chaincode_events(
    channels: Mapping[str, Channel], feeds: Feeds, raw: bytes, context: Context
) -> None:
    """Send the events that a client asks for until it leaves."""
    request, signed = await off_loop(len(raw), partial(requests.events, raw))
    resource = "gateway/ChaincodeEvents"
    channel = await requests.opened(channels, resource, request, signed)
    del raw, signed
    chaincode, passed = request.chaincode_id, request.after_transaction_id
    follower = feeds.of(channel).follow(_start(channel, request), 1 if passed else None)
    make = partial(FeedBlock.events_of, chaincode=chaincode)
    try:
        async for batch in follower:
            message: bytes | Bundle | None
            if passed:
                message, passed = _after(batch.blocks[0], chaincode, passed)
                follower.most = 1 if passed else None
            else:
                message = await batch.message(chaincode, make)
            if message is not None:
                await context.write(message)
    except ChaindockError as error:
        raise Refusal(Status.ABORTED, error.message) from error


def _start(channel: Channel, request: Any) -> int:
    """Return the number of the first block. Raises: Refusal."""
    if request.after_transaction_id:
        found = channel.ledger.find_transaction(TxId(request.after_transaction_id))
        if found is not None:
            return found.block
    kind = request.start_position.WhichOneof("Type")
    if kind == "specified":
        return int(request.start_position.specified.number)
    if kind in {None, "next_commit"}:
        return channel.ledger.height
    name = f"*orderer.SeekPosition_{kind.title()}"
    raise requests.invalid(f"invalid start position type: {name}")


def _after(block: FeedBlock, chaincode: str, tx_id: str) -> tuple[bytes | None, str]:
    """Return the answer for what follows a transaction in a block, and what is still due.

    The event of that transaction, of any chaincode, is the last one that is left out. If it
    raised none, everything is.
    """
    events = iter(block.contents.events)
    if all(event.tx_id != tx_id for event in events):
        return None, tx_id
    return events_response(block.number, chaincode, events), ""
