"""Change the state of a chaincode by hand, in a transaction of that chaincode.

The transaction is admitted, endorsed, ordered and validated as a call of the chaincode
would be; only its program does not run.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from fabric_protos.peer import chaincode_shim_pb2, proposal_pb2, proposal_response_pb2

from chaindock.chaincode.invocation import Invocation, Kind
from chaindock.errors import InvalidInput
from chaindock.ledger.queries import encode_key

FUNCTION: Final = b"chaindock.state.write"
"""What the transaction shows as its function; keys and values follow in turn."""
PRIVATE: Final = b"chaindock.state.writePrivate"
"""The same for a collection, which follows; keys and values are transient."""


def arguments(
    writes: Iterable[tuple[str, bytes]], collection: str = ""
) -> tuple[list[bytes], dict[str, bytes]]:
    """Return arguments and transient values of a call that writes keys; b"" deletes.

    Raises: InvalidInput: no key, an empty one, or one that is not valid Unicode.
    """
    rows = list(writes)
    for key, _ in rows:
        if not encode_key(key):
            raise InvalidInput("a key is empty: expected text")
    if not rows:
        raise InvalidInput("there is nothing to write: expected keys and values")
    if collection:
        return [PRIVATE, collection.encode()], dict(rows)
    return [FUNCTION, *(part for key, one in rows for part in (key.encode(), one))], {}


class StateWriter:
    """Takes the place of the chaincode for calls made of `arguments`."""

    def process_of(self, _mspid: str) -> str:
        """Say that it writes the same for the peers of all organisations."""
        return ""

    async def execute(
        self, _ccid: Any, invocation: Invocation, _mspid: str
    ) -> chaincode_shim_pb2.ChaincodeMessage:
        """Write what the arguments say into the namespace that is called."""
        function, *rest = invocation.input.args
        ns, simulator = invocation.namespace, invocation.simulator
        if function == PRIVATE:
            collection = rest[0].decode()
            invocation.require(collection, write=True)
            data = invocation.signed_proposal.proposal_bytes
            payload = proposal_pb2.Proposal.FromString(data).payload
            hidden = proposal_pb2.ChaincodeProposalPayload.FromString(payload)
            for key, value in sorted(hidden.TransientMap.items()):
                simulator.put_private(ns, collection, key, value)
        else:
            for key, value in zip(rest[::2], rest[1::2], strict=True):
                simulator.put_state(ns, key.decode(), value)
        response = proposal_response_pb2.Response(status=200)
        return chaincode_shim_pb2.ChaincodeMessage(
            type=Kind.COMPLETED, payload=response.SerializeToString()
        )
