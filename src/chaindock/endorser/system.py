"""What a system chaincode is: a part of the peer that is called like a chaincode.

Source: docs/fabric/peer.md#system-chaincodes
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fabric_protos.peer.proposal_response_pb2 import Response

    from chaindock.identity.msp import Identity
    from chaindock.ledger.simulator import Simulator

UNSIMULATED = frozenset({"cscc", "qscc"})
"""Their calls read no state: a proposal response has neither reads nor interest."""


class SystemChaincode(Protocol):
    """Answers calls itself; the peer has checked who signed the proposal."""

    async def execute(
        self,
        simulator: Simulator | None,
        args: Sequence[bytes],
        identity: Identity,
        mspid: str,
    ) -> Response:
        """Return the answer to a call; never raises for what a caller can send.

        Args:
            simulator: of the channel of the proposal; None if that has no channel.
            args: name of the function and its arguments.
            identity: who signed.
            mspid: organisation of the peer that is asked, in calls inside the node that
                of the caller.
        """
