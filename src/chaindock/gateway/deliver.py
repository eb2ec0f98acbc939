"""Streams of blocks, as a peer and an orderer deliver them to clients.

A client sends requests one after the other on a stream; each is answered with blocks and a
status, and any status but SUCCESS ends the stream.
Source: docs/fabric/deliver.md#requests
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any, Final, NamedTuple

from fabric_protos.common import common_pb2
from fabric_protos.ledger.rwset import rwset_pb2
from fabric_protos.orderer import ab_pb2
from google.protobuf.message import DecodeError

from chaindock.aio import off_loop
from chaindock.endorser.acl import require
from chaindock.endorser.channel import Channel, Joined
from chaindock.errors import Denied, LedgerError
from chaindock.gateway.blocks import BlockFeed, Feeds
from chaindock.gateway.calls import Call as Context
from chaindock.gateway.calls import Service
from chaindock.gateway.forms import FeedBlock
from chaindock.gateway.options import GatewayOptions
from chaindock.gateway.requests import is_bound
from chaindock.gateway.seat import Seat
from chaindock.identity.msp import Identity
from chaindock.identity.policies import satisfied
from chaindock.ledger.delivered import PrivateSet
from chaindock.ledger.encoding import field, uvarint
from chaindock.lifecycle.collections import find_collection, stores
from chaindock.rpc.frames import Bundle
from chaindock.values import KIB

_REQUEST_BYTES: Final = 128 * KIB
"""A larger request is refused: it holds a certificate and some numbers."""
_BLOCK_AND_PRIVATE: Final = 4
"""Field of `DeliverResponse`."""
_READERS: Final = "/Channel/Readers"
_SUCCESS: Final = common_pb2.SUCCESS


class _End(Exception):  # control flow of one request, not an error
    """A status that ends the answer to a request."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


_BAD: Final = common_pb2.BAD_REQUEST


class Form(NamedTuple):
    """What a method delivers; `resource` is the name for access, "" = the orderer's."""

    resource: str = ""
    filtered: bool = False
    private: bool = False


_FORMS: Final = {
    "Deliver": Form("event/Block"),
    "DeliverFiltered": Form("event/FilteredBlock", filtered=True),
    "DeliverWithPrivateData": Form("event/Block", private=True),
}
ORDERED: Final = Form()
"""Blocks as the orderer made them, without what became of their transactions."""


class _Access:
    """Whether who asked may read; decided again when the channel was configured anew."""

    def __init__(self, channel: Channel, creator: bytes, form: Form) -> None:
        self._configuration = channel.members.configuration
        self._creator, self._form = creator, form
        self._sequence = -1

    def require(self) -> Identity:
        """Return who asked. Raises: Denied: the certificate has expired, or no access."""
        now = self._configuration
        if now.config.sequence != self._sequence:
            self._identity = now.msps.identify(self._creator)
            self._check(self._identity)
            self._sequence = now.config.sequence
        if self._identity.expired:
            raise Denied("client identity expired")
        return self._identity

    def _check(self, identity: Identity) -> None:
        if self._form.resource:
            require(self._configuration, self._form.resource, identity)
        elif reason := self._configuration.policies.reason(_READERS, [identity]):
            raise Denied(f"{reason}: permission denied")


class Deliver:
    """Delivers blocks at the server of one organisation's peer.

    Args:
        channels: those that clients may ask for there.
    """

    def __init__(
        self,
        channels: Mapping[str, Channel],
        feeds: Feeds,
        options: GatewayOptions,
        seat: Seat,
    ) -> None:
        self._channels, self._feeds = channels, feeds
        self._options, self._mspid = options, seat.mspid

    async def serve(self, form: Form, context: Context) -> None:
        """Answer the requests of a stream with blocks of a form."""
        while (data := await context.read()) is not None:
            try:
                granted = self._admit(bytes(data), context, form)
                del data  # only what is needed stays in memory
                await self._send(context, form, *granted)
                status = _SUCCESS
            except _End as end:
                status = end.status
            except Denied:
                status = common_pb2.FORBIDDEN
            except LedgerError:  # closed or reverted: a new request may be answered
                status = common_pb2.SERVICE_UNAVAILABLE
            await context.write(b"\x08" + uvarint(status))
            if status != _SUCCESS:
                return

    def _admit(
        self, data: bytes, context: Context, form: Form
    ) -> tuple[Channel, _Access, Any]:
        """Return channel, access and `SeekInfo` of a request. Raises: _End, Denied."""
        if len(data) > _REQUEST_BYTES:
            raise _End(_BAD)
        try:
            envelope = common_pb2.Envelope.FromString(data)
            payload = common_pb2.Payload.FromString(envelope.payload)
            header = common_pb2.ChannelHeader.FromString(payload.header.channel_header)
            signed = common_pb2.SignatureHeader.FromString(
                payload.header.signature_header
            )
        except DecodeError:
            raise _End(_BAD) from None
        if not payload.HasField("header") or not header.HasField("timestamp"):
            raise _End(_BAD)
        sent_s = header.timestamp.seconds + header.timestamp.nanos / 1e9
        if abs(time.time() - sent_s) > self._options.time_window_s:
            raise _End(_BAD)
        if self._options.binds and not is_bound(header.tls_cert_hash, context):
            raise _End(_BAD)
        channel = self._channels.get(header.channel_id)
        if channel is None:
            raise _End(common_pb2.NOT_FOUND)
        try:
            seek = ab_pb2.SeekInfo.FromString(payload.data)
        except DecodeError:
            raise _End(_BAD) from None
        access = _Access(channel, signed.creator, form)
        access.require().verify(envelope.payload, envelope.signature)
        return channel, access, seek

    async def _send(
        self, context: Context, form: Form, channel: Channel, access: _Access, seek: Any
    ) -> None:
        """Write the blocks that a request asks for. Raises: _End, Denied, LedgerError."""
        feed = self._feeds.of(channel)
        start, stop = _range(seek, channel.ledger.height)
        if stop < start:
            stop = sys.maxsize  # Fabric looks for the number alone
        patient = seek.behavior != ab_pb2.SeekInfo.FAIL_IF_NOT_READY
        # The private data of a small block may be large.
        follower = feed.follow(start, 1 if form.private else None)
        headers = seek.content_type == ab_pb2.SeekInfo.HEADER_WITH_SIG
        make = partial(_message, form=form, headers=headers)
        while True:
            if not patient and follower.position >= channel.ledger.height:
                raise _End(common_pb2.NOT_FOUND)
            batch = await anext(follower)
            first = batch.blocks[0]
            batch = batch.begin(stop - first.number + 1)
            identity = access.require()
            message: bytes | Bundle | None
            if form.private:
                message = await self._with_private(channel, feed, first, identity)
            else:
                message = await batch.message((form, headers), make)
            if message is not None:
                await context.write(message)
            if batch.blocks[-1].number == stop:
                return

    async def _with_private(
        self, channel: Channel, feed: BlockFeed, block: FeedBlock, identity: Identity
    ) -> bytes:
        sets = await feed.private(block.number)
        seen = [one for one in sets if self._may_see(channel, one, identity)]
        size = len(block.full) + sum(len(one.rwset) for one in seen)
        return await off_loop(size, partial(_assemble, block, seen))

    def _may_see(self, channel: Channel, one: PrivateSet, identity: Identity) -> bool:
        """Whether this peer has a collection, and the client may read it."""
        mspids = channel.members.configuration.msps.mspids
        config = find_collection(one.package, one.collection, mspids)
        if config is None:
            return False
        policy = config.member_orgs_policy.signature_policy
        return stores(config, self._mspid) and (
            not config.member_only_read or satisfied(policy, [identity])
        )


def _assemble(block: FeedBlock, sets: Sequence[PrivateSet]) -> bytes:
    """Return a `DeliverResponse` with a block and private data, which is in order."""
    parts = [field(1, block.raw)]
    for position, of_tx in groupby(sets, lambda one: one.position):
        found = rwset_pb2.TxPvtReadWriteSet()
        for ns, of_ns in groupby(of_tx, lambda one: one.ns):
            space = found.ns_pvt_rwset.add(namespace=ns)
            for one in of_ns:
                space.collection_pvt_rwset.add(
                    collection_name=one.collection, rwset=one.rwset
                )
        entry = field(2, found.SerializeToString())
        parts.append(field(2, b"\x08" + uvarint(position) + entry))
    return field(_BLOCK_AND_PRIVATE, b"".join(parts))


async def _message(block: FeedBlock, form: Form, *, headers: bool) -> bytes:
    """Return the `DeliverResponse` with a block. Raises: _End.

    `headers`: without transactions, unless they configure the channel.
    """
    if form.filtered:
        if block.contents.filtered is None:
            raise _End(_BAD)
        return block.contents.filtered
    data = not headers or block.contents.is_config
    return await block.form(data=data, judged=bool(form.resource))


def _range(seek: Any, height: int) -> tuple[int, int]:
    """Return the first and the last block of a request, as of a height. Raises: _End."""
    if not seek.HasField("start") or not seek.HasField("stop"):
        raise _End(_BAD)
    known = {"oldest": 0, "newest": height - 1, "next_commit": height}
    kind = seek.start.WhichOneof("Type")
    start = known.get(kind, seek.start.specified.number)
    if kind is None or start > height:
        raise _End(common_pb2.NOT_FOUND)
    last = seek.stop.WhichOneof("Type")
    if last == "specified" and seek.stop.specified.number < start:
        raise _End(_BAD)
    if last == "oldest" or kind == last == "newest":
        return start, start
    if last == "newest":
        return start, height - 1
    # Of what is no position, Fabric makes 0: blocks come without end.
    return start, seek.stop.specified.number


def service(
    channels: Mapping[str, Channel], feeds: Feeds, options: GatewayOptions, seat: Seat
) -> Service:
    """Return the service of blocks of a peer, at its server."""
    deliver = Deliver(Joined(channels, seat.mspid), feeds, options, seat)
    streams = {name: partial(deliver.serve, form) for name, form in _FORMS.items()}
    return Service("protos.Deliver", streams=streams, limit=options.deliver_calls)
