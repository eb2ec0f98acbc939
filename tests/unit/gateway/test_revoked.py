"""Whom a channel has revoked: refused by every method, over a real connection."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from fabric_protos.msp import msp_config_pb2

from chaindock.gateway import broadcast, deliver, discovery, gateway, peer
from chaindock.gateway.blocks import Feeds
from chaindock.gateway.listener import ClientListener
from chaindock.gateway.options import GatewayOptions
from chaindock.identity.msp import Msp
from chaindock.identity.organization import Organization, Organizations
from support.clients import wire
from support.clients.strangers import issued_by, revocations
from support.peers import World

if TYPE_CHECKING:
    from pathlib import Path

    from chaindock.identity.msp import SigningIdentity


def revoke(org: Organization, who: SigningIdentity) -> None:
    """Have the definition of an organisation, of which a channel is made, revoke a user."""
    config = msp_config_pb2.FabricMSPConfig.FromString(org.msp.config().config)
    certificate = org.msp.identify(who.creator).certificate
    config.revocation_list.append(revocations(org._ca, certificate))
    org.msp = Msp(config)


async def test_a_revoked_user_is_refused_by_every_method(
    tmp_path: Path, other: Organization
) -> None:
    org = Organization.open(tmp_path / "org", "Org1MSP", "org1.example.com")
    revoked = issued_by(org.path / "ca", "Org1MSP")
    good = issued_by(org.path / "ca", "Org1MSP")
    revoke(org, revoked)
    feeds, options = Feeds(), GatewayOptions(listen=("127.0.0.1", 0))
    organizations = Organizations(tmp_path / "org", org)
    async with World.opened(tmp_path, org, other) as world:
        await world.define()
        channels = world.channels
        services = [
            partial(gateway.service, channels, options, 30.0, feeds),
            partial(peer.service, channels, organizations, 900, 0),
            partial(discovery.service, channels, organizations, options),
            partial(deliver.service, channels, feeds, options),
            partial(broadcast.service, channels, feeds, options),
        ]
        async with ClientListener(options, services) as listener:
            await listener.serve(org)
            place = {k: v or "" for k, v in listener.connection("Org1MSP").items()}
            async with wire.wire({**place, "tls_ca": place["ca"]}) as node:
                request = wire.endorse(good, "basic", "200", "k")
                answer = await node.call(wire.UNARY["Endorse"], request)
                envelope = wire.signed(good, answer)
                before = world.channel.ledger.height
                told = await wire.answers(node, revoked, envelope)
        assert world.channel.ledger.height == before
    denied = {name for name, text in told.items() if "PERMISSION_DENIED" in text}
    assert denied == {"CommitStatus", "ChaincodeEvents"}
    access = "access denied: channel [mychannel] creator org [Org1MSP]"
    for name in ("Evaluate", "Endorse", "ProcessProposal"):
        assert access in told[name], told[name]
    assert told["Discover"] == "access denied"
    forbidden = {name for name in told if told[name].startswith("403")}
    assert forbidden == set(wire.STREAMS)
    assert "status=FORBIDDEN" in told["Submit"]
