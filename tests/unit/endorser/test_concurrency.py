"""More proposals at once than the limit allows."""

import asyncio
from typing import Any

import pytest

from chaindock.endorser.checks import parse_proposal
from chaindock.errors import TooManyRequests
from support.ledgers.proposals import new_proposal


async def test_more_proposals_than_the_limit_are_refused_and_the_others_served(defined):
    """As Fabric does with peer.limits.concurrency.endorserService, and in its words."""

    def process() -> Any:
        signed = new_proposal("mychannel", "basic", [b"get", b"k"], defined.user)
        return defined.endorser.process(parse_proposal(signed), endorse=False)

    held = defined.chaincode.hold = asyncio.Event()
    tasks = [asyncio.ensure_future(process()) for _ in range(20)]
    for _ in tasks:
        await defined.chaincode.entered.acquire()
    for _ in range(2):
        with pytest.raises(TooManyRequests) as caught:
            await process()
        assert caught.value.message == (
            "too many requests for /protos.Endorser, exceeding concurrency limit (20)"
        )
    held.set()
    answers = await asyncio.gather(*tasks)
    answers.append(await process())
    assert [outcome.response.status for outcome, _ in answers] == [200] * 21
