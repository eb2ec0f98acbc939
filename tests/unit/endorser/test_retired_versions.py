"""A call that waits for a version which an upgrade takes down meanwhile."""

from __future__ import annotations

from typing import Any

import pytest

from chaindock.errors import LaunchFailed, StartFailed
from chaindock.ids import Ccid

NEWER = Ccid("basic_2.0:" + "2" * 64)


@pytest.mark.parametrize("kind", ["invoke", "query"])
async def test_it_goes_to_the_new_version(defined: Any, kind: str):
    """A query moves to the new version as an invoke does."""
    execute = defined.chaincode.execute

    async def overtaken(ccid: Ccid, invocation: Any, mspid: str) -> Any:
        if ccid != NEWER:
            await defined.define(version="2.0", ccid=NEWER)
            raise StartFailed(f"chaincode {ccid!r} was stopped", ccid=ccid)
        return await execute(ccid, invocation, mspid)

    defined.chaincode.execute = overtaken
    call = getattr(defined.caller, kind)
    answer = await call("basic", [b"put", b"k", b"v"], signer=defined.user)
    valid = "VALID" if kind == "invoke" else None
    assert (answer.status, answer.code_name) == (200, valid)
    assert [ccid for ccid, _ in defined.chaincode.seen] == [NEWER]


async def test_without_an_upgrade_the_failure_is_the_answer(defined: Any):
    async def fails(ccid: Ccid, invocation: Any, mspid: str) -> Any:
        defined.chaincode.seen.append((ccid, invocation))
        raise StartFailed(f"chaincode {ccid!r} was stopped", ccid=ccid)

    defined.chaincode.execute = fails
    with pytest.raises(LaunchFailed, match="was stopped"):
        await defined.caller.invoke("basic", [b"put", b"k", b"v"], signer=defined.user)
    assert len(defined.chaincode.seen) == 1
