"""`discovery.Discovery`: peers, orderers and endorsers, for SDKs that plan by themselves.

Addresses are those at which the node serves now, also for channels of earlier starts.
Source: docs/fabric/peer.md#discovery
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from hashlib import sha256
from typing import Any, Final

from fabric_protos.discovery import protocol_pb2 as messages
from fabric_protos.gossip import message_pb2 as gossip
from fabric_protos.msp.msp_config_pb2 import FabricMSPConfig, MSPConfig
from fabric_protos.peer.proposal_response_pb2 import ChaincodeInterest

from chaindock.endorser.channel import Channel, Joined
from chaindock.endorser.layouts import eligible, endorsing, runnable
from chaindock.errors import ChaindockError, Denied, InvalidInput, NotFound
from chaindock.gateway.calls import Service
from chaindock.gateway.options import GatewayOptions
from chaindock.gateway.requests import is_bound, unmarshalled
from chaindock.gateway.seat import Seat, named
from chaindock.gateway.statuses import Refusal
from chaindock.identity.msp import Msps, SigningIdentity, require_local
from chaindock.identity.organization import Organizations
from chaindock.ids import CHANNEL_WRITERS
from chaindock.rpc.status import Status
from chaindock.values import KIB

_StateOf = Callable[[Channel], gossip.GossipMessage]

_MOST: Final = 20
"""Queries in a request, and interests in all of them; more are refused."""
_LARGEST: Final = 128 * KIB
"""Bytes of a request; a larger one is refused. Anybody may send one: it is read on the loop."""
_LIMIT: Final = 100
"""Requests at once at one server."""
_DENIED: Final = "access denied"


def service(
    channels: Mapping[str, Channel],
    organizations: Organizations,
    options: GatewayOptions,
    seat: Seat,
) -> Service:
    """Return the service of one peer, for `ClientListener`."""
    made = Discovery(seat, channels, organizations, binds=options.binds)
    unary = {"Discover": made.discover}
    return Service("discovery.Discovery", unary, limit=_LIMIT)


class Discovery:
    """Answers what clients ask the peer of one organisation about the node.

    Args:
        binds: clients must name the certificate of their connection.
    """

    def __init__(
        self,
        seat: Seat,
        channels: Mapping[str, Channel],
        organizations: Organizations,
        *,
        binds: bool = False,
    ) -> None:
        self._seat, self._channels = seat, Joined(channels, seat.mspid)
        self._organizations, self._binds = organizations, binds

    async def discover(self, request: bytes, context: Any = None) -> bytes:
        """Answer a serialised SignedRequest with a Response. Raises: Refusal."""
        if len(request) > _LARGEST:
            raise Refusal(Status.UNKNOWN, "a request has at most 128 KiB")
        signed = unmarshalled(messages.SignedRequest, request)
        asked = _read(signed.payload)
        claimed = asked.authentication.client_tls_cert_hash
        if self._binds and not is_bound(claimed, context):
            text = "client claimed TLS hash doesn't match computed TLS hash from gRPC stream"
            raise Refusal(Status.UNKNOWN, text)
        answer, state = messages.Response(), cache(_state)
        for query in asked.queries:
            try:
                client = asked.authentication.client_identity
                channel = self._admit(query.channel, client, signed)
                answer.results.append(await self._answer(query, channel, state))
            except ChaindockError as error:
                answer.results.add(error=messages.Error(content=error.message))
        return bytes(answer.SerializeToString())

    def _admit(
        self, name: str, client: bytes, signed: messages.SignedRequest
    ) -> Channel | None:
        """Return the channel of a query, None = it names none. Raises: Denied."""
        mspid, allowed = self._seat.mspid, True
        channel = self._channels.get(name)
        if name and channel is None:
            raise Denied(_DENIED)
        try:
            if channel is not None:
                configuration = channel.members.configuration
                identity = configuration.msps.identify(client)
                allowed = configuration.policies.satisfied(CHANNEL_WRITERS, [identity])
            else:
                found = self._organizations.find(mspid)
                identity = Msps([found.msp] if found else []).identify(client)
                require_local("Admins", identity, mspid)
            identity.verify(signed.payload, signed.signature)
        except (Denied, NotFound) as error:
            raise Denied(_DENIED) from error
        if not allowed or identity.expired:
            raise Denied(_DENIED)
        return channel

    async def _answer(
        self, query: messages.Query, channel: Channel | None, state: _StateOf
    ) -> messages.QueryResult:
        """Return the result of a query. Raises: ChaindockError with its text."""
        kind = query.WhichOneof("query")
        if channel is None and kind == "local_peers":
            alive = ((one, self._peer(one, None)) for one in self._served())
            return messages.QueryResult(members=_by_organization(alive))
        if channel is not None and kind == "config_query":
            return messages.QueryResult(config_result=self._configuration(channel))
        if channel is not None and kind == "peer_query":
            members = self._members(channel, query.peer_query.filter, state)
            return messages.QueryResult(members=members)
        if channel is not None and kind == "cc_query":
            interests = query.cc_query.interests
            _require_interests(interests)
            found = [await self._endorsers(channel, one, state) for one in interests]
            result = messages.ChaincodeQueryResult(content=found)
            return messages.QueryResult(cc_query_res=result)
        raise InvalidInput("unknown or missing request type")

    # --- peers

    def _served(self) -> list[SigningIdentity]:
        """Return the peers that clients can reach."""
        found = map(self._organizations.find, self._seat.addresses)
        return [one.peer for one in found if one is not None]

    def _members(
        self, channel: Channel, interest: ChaincodeInterest, state: _StateOf
    ) -> messages.PeerMembershipResult:
        """Return the peers of a channel that may do what `interest` says."""
        chosen, info = eligible(channel, interest), state(channel)
        peers = (one for one in self._served() if one.mspid in chosen)
        return _by_organization((one, self._peer(one, info)) for one in peers)

    def _peer(
        self, peer: SigningIdentity, state: gossip.GossipMessage | None
    ) -> messages.Peer:
        """Return a peer as gossip would tell of it; `state` is that of its channel."""
        pki_id = sha256(peer.creator).digest()
        alive = gossip.GossipMessage(
            tag=gossip.GossipMessage.EMPTY,
            alive_msg=gossip.AliveMessage(
                membership=gossip.Member(
                    endpoint=named(self._seat.addresses[peer.mspid]), pki_id=pki_id
                ),
                timestamp=gossip.PeerTime(inc_num=1, seq_num=1),
            ),
        )
        told = messages.Peer(
            identity=peer.creator, membership_info=_sealed(peer, alive)
        )
        if state is not None:
            state.state_info.pki_id = pki_id
            told.state_info.CopyFrom(_sealed(peer, state))
        return told

    # --- endorsers

    async def _endorsers(
        self, channel: Channel, interest: ChaincodeInterest, state: _StateOf
    ) -> messages.EndorsementDescriptor:
        """Return who can endorse together. Raises: InvalidInput."""
        try:
            layouts = await endorsing(channel, interest)
        except ChaindockError as error:
            shown = " ".join(str(interest).split())
            raise InvalidInput(f"failed constructing descriptor for {shown}") from error
        groups = {one: f"G{n}" for n, one in enumerate(sorted(set().union(*layouts)))}
        result = messages.EndorsementDescriptor(chaincode=interest.chaincodes[0].name)
        info = state(channel)
        for peer in self._served():
            if group := groups.get(peer.mspid):
                told = self._peer(peer, info)
                result.endorsers_by_groups[group].peers.append(told)
        for layout in layouts:
            quantities = {groups[mspid]: 1 for mspid in layout}
            result.layouts.add(quantities_by_group=quantities)
        return result

    # --- configuration

    def _configuration(self, channel: Channel) -> messages.ConfigResult:
        """Return the MSPs of a channel, and where its orderer is reached."""
        result = messages.ConfigResult()
        groups = channel.members.configuration.config.channel_group.groups
        for part in ("Orderer", "Application"):
            for group in groups[part].groups.values():
                raw = MSPConfig.FromString(group.values["MSP"].value).config
                msp = FabricMSPConfig.FromString(raw)
                organization = self._organizations.find(msp.name)
                if organization is not None and not msp.tls_root_certs:
                    msp.tls_root_certs.append(organization.tls[0])
                result.msps[msp.name].CopyFrom(msp)
                if part == "Orderer" and msp.name in self._seat.addresses:
                    address = named(self._seat.addresses[msp.name])
                    host, _, port = address.rpartition(":")
                    endpoints = result.orderers[msp.name].endpoint
                    endpoints.add(host=host.strip("[]"), port=int(port))
        return result


def _read(payload: bytes) -> messages.Request:
    """Return a request that names its client. Raises: Refusal."""
    try:
        asked = messages.Request.FromString(payload)
    except Exception as error:
        text = "failed parsing request: proto: cannot parse invalid wire-format data"
        raise Refusal(Status.UNKNOWN, text) from error
    interests = sum(len(query.cc_query.interests) for query in asked.queries)
    text = ""
    if not asked.HasField("authentication"):
        text = "access denied, no authentication info in request"
    elif not asked.authentication.client_identity:
        text = "access denied, client identity wasn't supplied"
    elif max(len(asked.queries), interests) > _MOST:
        text = f"at most {_MOST} queries and {_MOST} interests are answered at once"
    if text:
        raise Refusal(Status.UNKNOWN, text)
    return asked


def _require_interests(interests: Any) -> None:
    """Refuse a query for endorsers that asks for nothing. Raises: InvalidInput."""
    if not interests:
        raise InvalidInput("chaincode query must have at least one chaincode interest")
    for interest in interests:
        if not interest.chaincodes:
            raise InvalidInput("chaincode interest must contain at least one chaincode")
        if not all(one.name for one in interest.chaincodes):
            raise InvalidInput("chaincode name in interest cannot be empty")


def _state(channel: Channel) -> gossip.GossipMessage:
    """Return what gossip tells of the peers of a channel, which all have the same."""
    height = channel.ledger.height
    properties = gossip.Properties(ledger_height=height)
    for name, version in runnable(channel):
        properties.chaincodes.add(name=name, version=version)
    return gossip.GossipMessage(
        tag=gossip.GossipMessage.CHAN_OR_ORG,
        state_info=gossip.StateInfo(
            timestamp=gossip.PeerTime(inc_num=1, seq_num=height), properties=properties
        ),
    )


def _by_organization(
    peers: Iterable[tuple[SigningIdentity, messages.Peer]],
) -> messages.PeerMembershipResult:
    result = messages.PeerMembershipResult()
    for peer, told in peers:
        result.peers_by_org[peer.mspid].peers.append(told)
    return result


def _sealed(peer: SigningIdentity, message: gossip.GossipMessage) -> gossip.Envelope:
    payload = message.SerializeToString()
    return gossip.Envelope(payload=payload, signature=peer.sign(payload))
