"""Transactions that wait for their block, and the errors if it is not written."""

from __future__ import annotations

import asyncio
import copy
from dataclasses import dataclass
from typing import Final

from fabric_protos.peer import proposal_pb2
from fabric_protos.peer import transaction_pb2 as codes

from chaindock.errors import (
    ChaindockError,
    LedgerClosed,
    LedgerError,
    TransactionInvalid,
)
from chaindock.ledger.ledger import TxLocation
from chaindock.ledger.transaction import Broken, ParsedTransaction, parse, read_headers
from chaindock.lifecycle.definitions import NAMESPACE

UPDATE: Final = "CONFIG_UPDATE"


@dataclass(eq=False, slots=True)
class Waiting:
    """A transaction in the queue of the orderer since `arrived_s`, of the loop's clock."""

    tx: ParsedTransaction
    arrived_s: float
    done: asyncio.Future[TxLocation]


def reverted() -> TransactionInvalid:
    """Return the error of a transaction that met a revert of the ledger."""
    return TransactionInvalid(
        "the transaction was not committed: the ledger was reverted meanwhile",
        hint="submit it again",
    )


def failure(error: BaseException) -> ChaindockError:
    """Return what the submitters of a block that failed with `error` are told."""
    if isinstance(error, ChaindockError):
        return error
    if isinstance(error, Exception):  # a defect must not end all ordering
        return LedgerError(
            f"the block could not be made: unexpected {type(error).__name__}",
            hint="this is a defect of Chaindock; the node's log holds the trace",
        )
    return LedgerClosed("the orderer ended while the block was committed")


def fail(waiting: Waiting, error: ChaindockError) -> None:
    """Tell the submitter that the transaction is not committed."""
    if not waiting.done.done():
        # A copy: one object raised to many waiters collects all their tracebacks.
        waiting.done.set_exception(copy.copy(error))
        waiting.done.exception()  # nobody may wait: that is no fault to report


def overtakes(envelope: bytes) -> bool:
    """Whether an envelope does not wait until somebody cuts a block.

    It says that it is an update, or calls `_lifecycle`: a deployment would hang.
    """
    tx = ParsedTransaction(envelope)
    try:
        _, _, header = read_headers(tx)
        kind, bad = proposal_pb2.ChaincodeHeaderExtension, codes.BAD_HEADER_EXTENSION
        called = parse(kind, header.extension, bad).chaincode_id.name
    except Broken:
        return False
    return tx.kind == UPDATE or called == NAMESPACE
