"""A channel whose blocks are delivered, requests for them, and a stream without a network."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from fabric_protos.common import common_pb2
from fabric_protos.orderer import ab_pb2
from fabric_protos.peer import events_pb2

from chaindock.endorser.channel import Channel, Members
from chaindock.endorser.configuration import Configuration
from chaindock.endorser.cutting import OrdererOptions
from chaindock.endorser.genesis import genesis_envelope
from chaindock.endorser.orderer import Orderer
from chaindock.gateway import broadcast, deliver
from chaindock.gateway.blocks import Feeds
from chaindock.gateway.options import GatewayOptions
from chaindock.gateway.seat import Seat
from chaindock.identity.organization import Organization, Organizations
from chaindock.ids import ChannelId
from chaindock.ledger.ledger import Ledger
from chaindock.ledger.reader import LedgerReader
from chaindock.ledger.transaction import parse_transaction
from chaindock.rpc.frames import PREFIX, Bundle
from support.ledgers.envelopes import rwset, transaction
from support.ledgers.ledger import NOT_VALIDATED, VALID

if TYPE_CHECKING:
    from contextlib import AsyncExitStack
    from pathlib import Path

    from chaindock.gateway.calls import Service
    from chaindock.identity.msp import SigningIdentity

CHANNEL = ChannelId("mychannel")
_WRITE = rwset(writes={"k": b"v"})
FOREVER = 2**64 - 1


class Stream:
    """What a handler sees of a call; the client's side has `send`, `end` and `next`.

    Args:
        room: responses that wait until the client takes them; further ones are held up.
    """

    def __init__(self, room: int = 0, certificate: bytes = b"") -> None:
        self._requests: asyncio.Queue[Any] = asyncio.Queue()
        self._responses: asyncio.Queue[bytes] = asyncio.Queue(room)
        self.certificate = certificate or None
        self._task: asyncio.Task[None] | None = None

    def start(self, service: Service, method: str) -> Stream:
        self._task = asyncio.ensure_future(service.streams[method](self))  # type: ignore[arg-type]
        return self

    # --- the handler's side

    async def read(self) -> Any:
        return await self._requests.get()

    async def write(self, message: bytes | Bundle) -> None:
        if not isinstance(message, Bundle):
            await self._responses.put(message)
            return
        rest = message.content
        while rest:
            end = PREFIX.size + PREFIX.unpack_from(rest)[1]
            await self._responses.put(rest[PREFIX.size : end])
            rest = rest[end:]

    # --- the client's side

    def send(self, request: Any) -> Stream:
        self._requests.put_nowait(request)
        return self

    def end(self) -> Stream:
        return self.send(None)

    async def raw(self) -> bytes:
        async with asyncio.timeout(5):
            return await self._responses.get()

    async def next(self) -> Any:
        """Return the next `DeliverResponse`."""
        return events_pb2.DeliverResponse.FromString(await self.raw())

    async def numbers(self) -> list[int | str]:
        """Return numbers of blocks up to a status, and its name."""
        found: list[int | str] = []
        while not found or isinstance(found[-1], int):
            found.append(told(await self.next()))
        return found

    async def ended(self) -> None:
        """Wait until the handler has ended; raise what it raised."""
        assert self._task is not None
        async with asyncio.timeout(5):
            await self._task

    def leave(self) -> None:
        """Vanish, as when a connection breaks."""
        assert self._task is not None
        self._task.cancel()

    @property
    def waiting(self) -> int:
        """Responses that the client has not taken."""
        return self._responses.qsize()


def told(response: Any) -> int | str:
    """Return the number of the block in a `DeliverResponse`, or the name of its status."""
    kind = response.WhichOneof("Type")
    if kind == "status":
        return str(common_pb2.Status.Name(response.status))
    if kind == "filtered_block":
        return int(response.filtered_block.number)
    block = response.block if kind == "block" else response.block_and_private_data.block
    return int(block.header.number)


def at(position: int | str | None) -> ab_pb2.SeekPosition | None:
    """Return a position: a number, or `oldest`, `newest`, `next_commit`; None = none."""
    if position is None:
        return None
    if isinstance(position, int):
        return ab_pb2.SeekPosition(specified=ab_pb2.SeekSpecified(number=position))
    found = ab_pb2.SeekPosition()
    if position:
        getattr(found, position).SetInParent()
    return found


def seek(
    signer: SigningIdentity,
    start: int | str | None,
    stop: int | str | None = FOREVER,
    *,
    key: SigningIdentity | None = None,
    late_s: float = 0.0,
    data: bytes | None = None,
    header: dict[str, Any] | None = None,
    **fields: Any,
) -> bytes:
    """Return a request for blocks, signed with `key`, that of the signer unless given."""
    channel_header = common_pb2.ChannelHeader(
        **{
            "type": common_pb2.DELIVER_SEEK_INFO,
            "channel_id": CHANNEL,
            **(header or {}),
        }
    )
    channel_header.timestamp.FromNanoseconds(int((time.time() - late_s) * 1e9))
    wanted = ab_pb2.SeekInfo(start=at(start), stop=at(stop), **fields)
    payload = common_pb2.Payload(
        header=common_pb2.Header(
            channel_header=channel_header.SerializeToString(),
            signature_header=common_pb2.SignatureHeader(
                creator=signer.creator
            ).SerializeToString(),
        ),
        data=wanted.SerializeToString() if data is None else data,
    ).SerializeToString()
    envelope = common_pb2.Envelope(
        payload=payload, signature=(key or signer).sign(payload)
    )
    return bytes(envelope.SerializeToString())


class Place:
    """A channel of one organisation, and the services that deliver its blocks."""

    def __init__(self, org: Organization, channel: Channel, **options: Any) -> None:
        self.org, self.channel, self.ledger = org, channel, channel.ledger
        self.channels = {str(channel.id): channel}
        self.feeds = Feeds()
        self.options = GatewayOptions(**options)
        self.user = org.user("User1")

    def peer(self, mspid: str = "") -> Service:
        seat = Seat(mspid or self.org.mspid, "")
        return deliver.service(self.channels, self.feeds, self.options, seat)

    def orderer(self) -> Service:
        seat = Seat(self.org.mspid, "")
        return broadcast.service(self.channels, self.feeds, self.options, seat)

    async def commit(self, *, code: int = VALID, **how: Any) -> int:
        """Commit a block with a transaction; return its number."""
        one = transaction(_WRITE, channel=CHANNEL, **how)
        return await self.commit_envelope(one.envelope, code)

    async def commit_envelope(self, envelope: bytes, code: int) -> int:
        tx = parse_transaction(envelope, CHANNEL)
        tx.code = NOT_VALIDATED if code == VALID else code
        return (await self.ledger.commit([tx])).number

    def call(self, method: str = "Deliver", **how: Any) -> Stream:
        return Stream(**how).start(self.peer(), method)


async def open_place(stack: AsyncExitStack, folder: Path, org: Organization) -> Place:
    options = OrdererOptions()
    opened = Ledger(
        folder / "ledger.db",
        CHANNEL,
        org.orderer,
        lambda: genesis_envelope(CHANNEL, org.msp, options),
    )
    ledger = await stack.enter_async_context(opened)
    configuration = Configuration.of(ledger)
    orderer = await stack.enter_async_context(Orderer(ledger, configuration, options))
    unused: Any = None
    channel = Channel(
        id=CHANNEL,
        ledger=ledger,
        reader=await stack.enter_async_context(LedgerReader(folder / "ledger.db")),
        members=Members(CHANNEL, Organizations(folder, org), configuration),
        endorser=unused,
        orderer=orderer,
        caller=unused,
    )
    return Place(org, channel)
