"""Change the state of a chaincode by hand, in a transaction of that chaincode.

The transaction is admitted, endorsed, ordered and validated as a call of the chaincode
would be; only its program does not run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from fabric_protos.peer import chaincode_shim_pb2, proposal_response_pb2

from chaindock.chaincode.invocation import Kind
from chaindock.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterable

    from chaindock.chaincode.invocation import Invocation

FUNCTION: Final = b"chaindock.state.write"
"""What the transaction shows as its function; keys and values follow in turn."""


def arguments(writes: Iterable[tuple[str, bytes]]) -> list[bytes]:
    """Return the arguments of a call that writes these keys; b"" deletes.

    Raises: InvalidInput: no key, an empty one, or one that is not valid Unicode.
    """
    args = [FUNCTION]
    for key, value in writes:
        try:
            args += [key.encode(), value]
        except UnicodeEncodeError as error:
            raise InvalidInput(f"key {key!r}: expected valid Unicode") from error
        if not key:
            raise InvalidInput("a key is empty: expected text")
    if len(args) == 1:
        raise InvalidInput("there is nothing to write: expected keys and values")
    return args


class StateWriter:
    """Takes the place of the chaincode for calls made of `arguments`."""

    async def execute(
        self, _ccid: Any, invocation: Invocation
    ) -> chaincode_shim_pb2.ChaincodeMessage:
        """Write what the arguments say into the namespace that is called."""
        _, *rest = invocation.input.args
        for key, value in zip(rest[::2], rest[1::2], strict=True):
            invocation.simulator.put_state(invocation.namespace, key.decode(), value)
        response = proposal_response_pb2.Response(status=200)
        return chaincode_shim_pb2.ChaincodeMessage(
            type=Kind.COMPLETED, payload=response.SerializeToString()
        )
