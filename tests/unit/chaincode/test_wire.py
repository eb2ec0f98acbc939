"""Messages of clients that would become far more memory than they have bytes."""

from __future__ import annotations

from typing import Any

import pytest
from fabric_protos.discovery import protocol_pb2
from fabric_protos.gateway import gateway_pb2
from fabric_protos.peer import chaincode_pb2, proposal_pb2

from chaindock.chaincode.wire import message_of
from chaindock.errors import InvalidInput

MANY = 1_000_000


@pytest.mark.parametrize(
    ("form", "data"),
    [
        (gateway_pb2.EndorseRequest, b"\x22\x00" * MANY),
        (chaincode_pb2.ChaincodeInput, b"\x0a\x00" * MANY),
        (proposal_pb2.ChaincodeProposalPayload, b"\x12\x00" * MANY),
        (protocol_pb2.Request, b"\x12\x02\x1a\x00" * MANY),
        # a part of it
        (chaincode_pb2.ChaincodeSpec, b"\x1a\x80\x89\x7a" + b"\x0a\x00" * MANY),
    ],
)
def test_a_large_message_of_many_parts_is_refused_before_it_is_parsed(
    form: Any, data: bytes
) -> None:
    with pytest.raises(InvalidInput, match=r"more than \d+ fields in one message"):
        message_of(form, data)


def test_a_large_message_of_few_parts_is_parsed() -> None:
    given = chaincode_pb2.ChaincodeSpec(
        input=chaincode_pb2.ChaincodeInput(args=[b"x" * 60] * 20_000)
    )
    assert message_of(chaincode_pb2.ChaincodeSpec, given.SerializeToString()) == given


def test_what_is_no_message_has_the_text_of_a_peer() -> None:
    text = "proto: cannot parse invalid wire-format data"
    for data in (b"\xff" * 100, b"\xff" * 100_000):
        with pytest.raises(InvalidInput, match=text):
            message_of(chaincode_pb2.ChaincodeSpec, data)
