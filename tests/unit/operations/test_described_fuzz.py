"""No envelope that a block can hold makes its description fail."""

import json
import random

import msgspec
import pytest
from fabric_protos.common import common_pb2

from chaindock.node.described import describe, describe_block, events_of
from support.ledgers.envelopes import config, rwset, transaction

ROUNDS = 1500


def envelopes() -> list[bytes]:
    good = rwset(
        reads={"k": (1, 0), "absent": None},
        writes={"k": b"v", "gone": None},
        metadata={"k": {"policy": b"p"}},
    )
    args = [b"put", b"\xff", b"k" * 50]
    return [transaction(good, args=args, event=("e", b"p")).envelope, config()]


def broken(draw: random.Random, data: bytes) -> bytes:
    """Return `data` with some bytes changed, cut out or repeated."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(changed))
        match draw.randrange(4):
            case 0:
                changed[at] = draw.randrange(256)
            case 1:
                del changed[at : at + draw.randint(1, 20)]
            case 2:
                changed[at:at] = changed[at : at + 20]
            case 3:
                changed = changed[: at + 1]
        if not changed:
            break
    return bytes(changed)


@pytest.mark.parametrize("seed", [1, 2])
def test_broken_envelopes_are_described(seed):
    draw = random.Random(seed)
    for _ in range(ROUNDS):
        envelope = broken(draw, draw.choice(envelopes()))
        found = describe(envelope, draw.choice([0, 11, 255, None]))
        json.loads(msgspec.json.encode(found))
        block = common_pb2.Block()
        block.data.data.append(envelope)
        block.metadata.metadata.extend([b"", b"", b"\0", b"", b"\xff"])
        data = block.SerializeToString()
        assert len(describe_block(data, brief=True)["transactions"]) == 1
        for event in events_of(data):
            json.dumps(event)
