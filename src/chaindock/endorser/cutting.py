"""When a block is cut: Fabric's batch settings, and modes for people who test contracts.

Source: docs/fabric/ledger.md#transaction
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final

from fabric_protos.common.configtx_pb2 import Config
from fabric_protos.orderer.configuration_pb2 import BatchSize, BatchTimeout
from google.protobuf.message import DecodeError

from chaindock.errors import InvalidInput
from chaindock.options import option
from chaindock.values import (
    MIB,
    Bytes,
    Count,
    SecondsOrNone,
    Syntax,
    WrongValueError,
    read_duration,
    show_duration,
)

AUTO: Final = ("auto", 0.0)
MANUAL: Final = ("manual", 0.0)
_EXPECTED: Final = "auto, manual, interval=DURATION such as interval=1s, or size=N"
_SIZES: Final = "max_message_count", "absolute_max_bytes", "preferred_max_bytes"
_MOST: Final = 5000
"""Transactions that wait at most: a larger block never fills."""


def read_mode(value: Any, base: Path | None = None) -> tuple[str, float]:
    """Return kind and number (seconds or transactions) of a mode of cutting blocks."""
    del base
    kind, _, number = str(value).strip().partition("=")
    if (kind, number) in {("auto", ""), ("manual", "")}:
        return kind, 0.0
    if kind == "interval" and number:
        seconds = read_duration(number)
        if seconds > 0:
            return kind, seconds
    if kind == "size" and number.isascii() and number.isdigit():
        if len(number) < 5 and 1 <= int(number) <= _MOST:
            return kind, float(number)
        raise WrongValueError(f"size=N with N from 1 to {_MOST}")
    raise WrongValueError(_EXPECTED)


def show_mode(mode: tuple[str, float]) -> str:
    """Return a mode as `read_mode` takes it."""
    kind, number = mode
    if kind == "interval":
        return f"{kind}={show_duration(number)}"
    return f"{kind}={number:g}" if number else kind


Mode = Annotated[tuple[str, float], Syntax(read_mode, show_mode)]


@dataclass(frozen=True)
class OrdererOptions:
    """How blocks are cut; the names are those of Fabric's BatchSize.

    Args:
        max_waiting, max_waiting_bytes: transactions in the queue; when it is full,
            submitters wait.
    """

    mode: Mode = option(AUTO, "chaindock.block.mode")
    """When a block is cut: auto (by the other chaindock.block settings),
    interval=DURATION (that time after the first transaction of the block), size=N (when
    N transactions wait), manual (by `chaindock block cut`)."""
    max_message_count: Count = option(500, "chaindock.block.maxMessageCount")
    """Largest number of transactions in a block."""
    absolute_max_bytes: Bytes = option(10 * MIB, "chaindock.block.absoluteMaxBytes")
    """Largest transaction."""
    preferred_max_bytes: Bytes = option(2 * MIB, "chaindock.block.preferredMaxBytes")
    """Largest block; a larger transaction gets a block of its own."""
    batch_timeout_s: SecondsOrNone = option(0.0, "chaindock.block.batchTimeout")
    """Time that a block waits for more transactions; 0s = a block takes those that came
    while the previous one was committed, or follow at once."""
    max_waiting: int = _MOST
    max_waiting_bytes: int = 24 * MIB

    @property
    def most(self) -> int:
        """Transactions in a block at most."""
        kind, number = self.mode
        return int(number) if kind == "size" else self.max_message_count

    @property
    def wait_s(self) -> float | None:
        """Seconds after which the first transaction's block is cut; None = never."""
        kind, number = self.mode
        if kind == "interval":
            return number
        if kind == "manual" or (kind == "size" and not self.batch_timeout_s):
            return None
        return self.batch_timeout_s

    def next_block(self, sizes: Iterable[int]) -> tuple[int, bool]:
        """Return how many transactions of these bytes the next block takes; if it is full.

        A full block is cut at once, but for the mode `manual`.
        """
        size = count = 0
        for one in sizes:
            size += one
            if count and size > self.preferred_max_bytes:
                return count, True
            count += 1
            if count >= self.most or size > self.preferred_max_bytes:
                return count, True
        return count, False


def in_force(options: OrdererOptions, config: Config) -> OrdererOptions:
    """Return `options` with what clients have changed in a channel's configuration.

    A value that the node has written has version 0. Raises: InvalidInput.
    """
    values, wrong = config.channel_group.groups["Orderer"].values, False
    size, timeout = values["BatchSize"], values["BatchTimeout"]
    try:
        if size.version:
            held = BatchSize.FromString(size.value)
            sizes = {name: getattr(held, name) for name in _SIZES}
            options = replace(options, **sizes)
            wrong = held.preferred_max_bytes > held.absolute_max_bytes
            wrong = wrong or not all(sizes.values())
        if timeout.version:
            time_s = read_duration(BatchTimeout.FromString(timeout.value).timeout)
            options = replace(options, batch_timeout_s=time_s)
            wrong = wrong or not time_s
    except (DecodeError, WrongValueError) as error:
        raise InvalidInput(f"the size or time of batches: {error}") from error
    if wrong:
        raise InvalidInput(f"Attempted to set impossible batches: {options}")
    return options
