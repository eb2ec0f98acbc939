"""Options of the streams with chaincode, of calls and of launches.

Source: docs/fabric/configuration.md
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from chaindock.options import option
from chaindock.values import (
    INTEGER,
    MIB,
    Address,
    Bytes,
    Count,
    Seconds,
    SecondsOrNone,
    Syntax,
    floored,
)

_BATCH = Syntax(
    lambda value, base: 1000 if INTEGER.parse(value, base) == "0" else value
)


@dataclass(frozen=True)
class StreamOptions:
    """Streams between the node and chaincode."""

    use_write_batch: bool = option(True, "chaincode.runtimeParams.useWriteBatch")
    """Shims may send many writes in one message."""
    max_size_write_batch: Count = option(
        1000, "chaincode.runtimeParams.maxSizeWriteBatch", syntax=_BATCH
    )
    """Largest number of writes in one message; 0 means 1000."""
    use_get_multiple_keys: bool = option(
        True, "chaincode.runtimeParams.useGetMultipleKeys"
    )
    """Shims may read many keys with one message."""
    max_size_get_multiple_keys: Count = option(
        1000, "chaincode.runtimeParams.maxSizeGetMultipleKeys", syntax=_BATCH
    )
    """Largest number of keys in one message; 0 means 1000."""
    total_query_limit: Count = option(100_000, "ledger.state.totalQueryLimit")
    """Largest number of rows that one query returns; the rest is cut off."""
    state_database: Literal["CouchDB", "goleveldb"] = option(
        "CouchDB", "ledger.state.stateDatabase"
    )
    """With goleveldb, rich queries are refused as by a peer that has no CouchDB."""
    strict: bool = option(True, "chaindock.ledger.strictFabric")
    """Do as a peer with CouchDB: refuse keys, and fields of JSON values, that begin with _,
    and rich queries that sort without an index; ignore the limit of a query, and skip keys
    again in every 1000 results."""
    history_database: bool = option(True, "ledger.history.enableHistoryDatabase")
    """Contracts may read the history of a key."""
    max_message_bytes: Bytes = option(100 * MIB, "peer.maxRecvMsgSize")
    """Largest message of a client application, and from the node to chaincode. From
    chaincode the limit is chaindock.memory.contract and 1 MiB more, if that is smaller."""
    transaction_bytes: Bytes = option(32 * MIB, "chaindock.memory.transaction")
    """Most memory that the node holds for a transaction: what it reads and writes."""
    contract_bytes: Bytes = option(64 * MIB, "chaindock.memory.contract")
    """Most memory that the node holds for all open calls of a chaincode. One answer of
    the chaincode may have this size too, but no more than peer.maxRecvMsgSize."""
    overrun_s: Seconds = option(30.0, "chaindock.launch.overrun")
    """Time after the timeout of a call; without an answer by then, the node restarts
    the chaincode."""
    silence_s: float = 60.0
    """A stream that has not registered after this many seconds is closed."""
    ping_s: float = 45.0
    """Seconds without a message after which a chaincode that dialled is pinged, so that
    nothing in between (a virtual machine, a proxy) drops the connection."""
    mode: Literal["net", "dev"] = option("net", "chaincode.mode")
    """dev: the node accepts programs that a user started."""

    @property
    def receive_bytes(self) -> int:
        """The largest message from chaincode; the node ends a stream with a larger one."""
        return min(self.max_message_bytes, self.contract_bytes + MIB)


@dataclass(frozen=True)
class ListenOptions:
    """Where chaincode dials the node."""

    bind: Address = option(None, "peer.chaincodeListenAddress")
    """host:port that the node listens on for chaincode. Without a host: loopback and
    the gateway of the container network. Port 0 = a free one."""
    advertise: Address = option(None, "peer.chaincodeAddress")
    """Address, host:port, that the node tells chaincode to dial. Empty = the address that
    the node listens on."""
    tls: bool = option(True, "peer.tls.enabled")
    """TLS for client applications, and mutual TLS on the streams with chaincode; on the
    latter by default off in development mode."""


@dataclass(frozen=True)
class CallOptions:
    """Limits of calls."""

    execute_timeout_s: Seconds = option(
        30.0, "chaincode.executetimeout", syntax=floored(1.0, 30.0)
    )
    """Longest time from sending a call to its answer; less than 1s means 30s."""
    launch_wait_s: Seconds = option(300.0, "chaindock.launch.wait")
    """Longest time that a call waits for its chaincode to start."""


@dataclass(frozen=True)
class LaunchOptions:
    """How often a package is launched; limits of launches."""

    per_organization: bool = option(True, "chaindock.chaincode.perOrganization")
    """The peer of each organisation has a process or container of its own for each
    chaincode, as in Fabric, launched by its first call. false: one serves the peers of
    all organisations, as in development mode."""
    build_timeout_s: Seconds = option(600.0, "chaincode.installTimeout")
    """Longest time of a build; time spent fetching packages is not counted."""
    startup_timeout_s: Seconds = option(
        300.0, "chaincode.startuptimeout", syntax=floored(5.0)
    )
    """Longest time from creating the container or process to READY; at least 5s."""
    connect_timeout_s: SecondsOrNone = option(0.0, "chaindock.launch.connectTimeout")
    """Longest time from the start of the program to its connection; 0 = what is left of
    chaincode.startuptimeout."""
    register_timeout_s: Seconds = option(30.0, "chaindock.launch.registerTimeout")
    """Longest time from the connection to READY."""
