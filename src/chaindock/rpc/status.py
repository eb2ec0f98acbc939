"""The codes of gRPC, and how a call ends.

Source: https://grpc.io/docs/guides/status-codes/
"""

from __future__ import annotations

from enum import IntEnum


class Status(IntEnum):
    """The codes of gRPC."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class CallEnded(Exception):
    """A call has ended, or is to end, with a status.

    Args:
        trailers: what is sent with the status, e.g. details of an error; names in lower
            case, those of binary values end with -bin.
    """

    def __init__(
        self, code: Status, text: str, trailers: tuple[tuple[str, bytes], ...] = ()
    ) -> None:
        super().__init__(f"{code.name}: {text}")
        self.code, self.text, self.trailers = code, text, trailers
