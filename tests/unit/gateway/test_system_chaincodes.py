"""What the system chaincodes `qscc` and `cscc` answer, and to whom."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import pytest
from fabric_protos.common import common_pb2, configtx_pb2, configuration_pb2
from fabric_protos.common.ledger_pb2 import BlockchainInfo
from fabric_protos.gateway import gateway_pb2
from fabric_protos.peer import transaction_pb2

from chaindock.endorser.cutting import OrdererOptions
from chaindock.endorser.genesis import genesis_envelope
from chaindock.gateway.gateway import Gateway
from chaindock.gateway.options import GatewayOptions
from chaindock.gateway.seat import Seat
from chaindock.ids import ChannelId
from chaindock.ledger.blocks import header_der
from support.ledgers.proposals import new_proposal
from support.peers import CHANNEL, call

NOBODY: Any = None
READERS = "/Channel/Application/Readers"


# --- qscc


@pytest.mark.statement(38, of="client")
async def test_blocks_and_transactions_are_found_by_all_their_names(world):
    await world.define()
    response = await world.qscc("GetChainInfo", "mychannel")
    info = BlockchainInfo.FromString(response.payload)
    assert info.height == 3
    last = (await world.qscc("GetBlockByNumber", "mychannel", str(2**64 - 1))).payload
    block = common_pb2.Block.FromString(last)
    header = block.header
    assert (header.number, header.previous_hash) == (2, info.previousBlockHash)
    der = header_der(header.number, header.previous_hash, header.data_hash)
    assert sha256(der).digest() == info.currentBlockHash
    by_hash = await world.qscc("GetBlockByHash", "mychannel", info.currentBlockHash)
    assert by_hash.payload == last
    more = await world.qscc("GetBlockByNumber", "mychannel", "2", "what is too much")
    assert more.payload == last
    envelope = common_pb2.Envelope.FromString(block.data.data[0])
    payload = common_pb2.Payload.FromString(envelope.payload)
    tx_id = common_pb2.ChannelHeader.FromString(payload.header.channel_header).tx_id
    by_id = await world.qscc("GetBlockByTxID", "mychannel", tx_id)
    assert by_id.payload == last
    # A second occurrence is invalid, and the id leads to the first one.
    await world.channel.orderer.submit(block.data.data[0])
    found = await world.qscc("GetTransactionByID", "mychannel", tx_id)
    transaction = transaction_pb2.ProcessedTransaction.FromString(found.payload)
    assert (transaction.transactionEnvelope, transaction.validationCode) == (
        envelope,
        0,
    )


async def test_a_peer_that_has_not_joined_tells_nothing_of_a_channel(world):
    for name, function, text in (
        ("qscc", "GetChainInfo", "Invalid chain ID, mychannel"),
        (
            "cscc",
            "GetConfigBlock",
            "Failed to get policy manager for channel [mychannel]",
        ),
    ):
        for peer, status in ((world.peer, 200), (world.second, 500)):
            signer = world.user if status == 200 else world.other.user("User1")
            answer = await call(peer, signer, "", name, function, "mychannel")
            assert answer.response.status == status
            assert (text in answer.response.message) == (status == 500)


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (
            ["GetBlockByNumber", "mychannel", "18446744073709551616"],
            (
                "Failed to parse block number with error strconv.ParseUint: parsing "
                '"18446744073709551616": value out of range'
            ),
        ),
        (["GetBlockByNumber", "mychannel", "9" * 5000], "value out of range"),
        (
            ["GetBlockByNumber", "mychannel", "9223372036854775808"],
            (
                "Failed to get block number 9223372036854775808, error no such block "
                "number [9223372036854775808] in index"
            ),
        ),
        (["GetBlockByNumber", "mychannel", "\u0661"], "invalid syntax"),
        (["GetBlockByHash", "mychannel", b"\xff\xfe"], "no such block hash [fffe]"),
        (
            ["GetBlockByTxID", "mychannel", b"\xff"],
            "Failed to get block for txID \ufffd",
        ),
        (
            ["Nope", "mychannel", ""],
            "access denied for [Nope][mychannel]: [Unmapped policy for qscc/Nope]",
        ),
        (["GetChainInfo", b"\xff"], "Invalid chain ID, \ufffd"),
    ],
)
async def test_qscc_says_what_is_wrong(world, args, text):
    response = await world.qscc(*args)
    assert response.status == 500
    assert text in response.message


async def test_applications_ask_for_blocks_through_the_gateway(world):
    channels: Any = world.channels
    seat = Seat(world.org.mspid, "127.0.0.1:7051")
    gateway = Gateway(channels, GatewayOptions(), None, seat)
    for name, args in (
        ("qscc", [b"GetBlockByNumber", CHANNEL.encode(), b"0"]),
        ("cscc", [b"GetConfigBlock", CHANNEL.encode()]),
    ):
        proposed = new_proposal(CHANNEL, name, args, world.user)
        request = gateway_pb2.EvaluateRequest(proposed_transaction=proposed)
        raw = await gateway.evaluate(request.SerializeToString(), NOBODY)
        result = gateway_pb2.EvaluateResponse.FromString(raw).result
        assert result.payload == world.channel.ledger.get_block(0)


# --- cscc


async def test_the_configuration_is_told_as_block_and_as_itself(world):
    block = common_pb2.Block.FromString(
        (await world.cscc("GetConfigBlock", "mychannel")).payload
    )
    assert block.header.number == 0
    response = await world.cscc("GetChannelConfig", "mychannel")
    found = configtx_pb2.Config.FromString(response.payload)
    assert found == world.channel.members.configuration.config


async def test_the_configuration_names_the_orderer_where_it_listens_now(world):
    world.channel.endorser.system["cscc"]._orderer = lambda: "localhost:17050"
    response = await world.cscc("GetChannelConfig", "mychannel")
    group = configtx_pb2.Config.FromString(response.payload).channel_group
    named = group.groups["Orderer"].groups["Org1MSP"].values["Endpoints"].value
    for raw in (named, group.values["OrdererAddresses"].value):
        found = configuration_pb2.OrdererAddresses.FromString(raw)
        assert list(found.addresses) == ["localhost:17050"]
    kept = world.channel.members.configuration.config.channel_group
    assert "OrdererAddresses" not in kept.values


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ([], "Incorrect number of arguments, 0"),
        (["GetConfigBlock"], "Incorrect number of arguments, 1"),
        (["GetChannelConfig", ""], "empty channel name provided"),
        (
            ["GetConfigBlock", "nochannel"],
            (
                "access denied for [GetConfigBlock][nochannel]: Failed to get policy "
                "manager for channel [nochannel]"
            ),
        ),
        (["Nope", ""], "Requested function Nope not found."),
        (
            ["JoinChainBySnapshot", "/tmp"],
            "access denied for [JoinChainBySnapshot]: Failed verifying that proposal's",
        ),
        (["JoinChain", b"\xff"], "Failed to reconstruct the genesis block, proto: "),
        (
            ["JoinChain", ""],
            (
                '"JoinChain" request failed to extract channel id from the block due to '
                "[failed to retrieve channel id - block is empty]"
            ),
        ),
    ],
)
async def test_cscc_says_what_is_wrong(world, args, text):
    response = await world.cscc(*args, channel="")
    assert response.status == 500
    assert response.message.startswith(text)


async def test_the_peer_joins_its_own_channel_and_no_other(world):
    genesis = world.channel.ledger.get_block(0)
    fetched = common_pb2.Block.FromString(genesis)
    del fetched.metadata.metadata[2:]  # as an orderer gives it
    join = ["JoinChain", fetched.SerializeToString()]
    assert (await world.cscc(*join, channel="", signer=world.admin)).status == 200
    denied = await world.cscc(*join, channel="")
    assert denied.message.startswith(
        "access denied for [JoinChain][mychannel]: [Failed"
    )
    envelope = genesis_envelope(ChannelId("other"), world.org.msp, OrdererOptions())
    for changed, text in (
        (envelope, "channel 'other' is not one of this node for Org1MSP"),
        (
            genesis_envelope(CHANNEL, world.other.msp, OrdererOptions()),
            "ledger [mychannel] already exists with state [ACTIVE]",
        ),
        (b"\xff", "failed to extract channel id"),
        (b"", "because of Invalid configuration block, missing Application"),
    ):
        fetched.data.data[:] = [changed]
        join = ["JoinChain", fetched.SerializeToString()]
        response = await world.cscc(*join, channel="", signer=world.admin)
        assert response.status == 500
        assert text in response.message, response.message
    snapshots = await world.cscc("JoinBySnapshotStatus", channel="", signer=world.admin)
    assert "snapshots of a Fabric peer are not supported" in snapshots.message


async def test_readers_of_the_channel_alone_are_told_about_it(world):
    for name, function in (("qscc", "GetChainInfo"), ("cscc", "GetChannelConfig")):
        answer = await world.call(name, function, CHANNEL, signer=world.org.orderer)
        assert answer.response.status == 500
        assert f"with policy [{READERS}]: [implicit policy evaluation failed - 0 " in (
            answer.response.message
        )


async def test_a_name_of_braces_does_not_make_an_error_grow(world):
    name = "{}" * 1000
    for function in ("GetConfigBlock", "GetChannelConfig"):
        said = (await world.cscc(function, name, channel="")).message
        assert said.startswith(f"access denied for [{function}][{name}]: Failed to get")
        assert len(said) < 3 * len(name)
