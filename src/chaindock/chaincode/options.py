"""What can be set about streams, calls and launches; config fills it in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StreamOptions:
    """One stream with chaincode.

    Args:
        use_write_batch, max_size_write_batch: announced with READY (records).
        use_get_multiple_keys, max_size_get_multiple_keys: announced with READY (keys).
        total_query_limit: rows of one query; what is beyond is cut silently.
        max_message_bytes: largest message, both ways.
        overrun_s: seconds after its timeout in which a call has to be answered; else
            the chaincode is started again.
        silence_s: a stream that has not registered after this many seconds ends.
        ping_s: seconds without a message after which chaincode that dials is pinged, so
            that no virtual machine or proxy in between drops the connection.
        admit_unlaunched: admit programs that a user started (development mode).
    """

    use_write_batch: bool = True
    max_size_write_batch: int = 1000
    use_get_multiple_keys: bool = True
    max_size_get_multiple_keys: int = 1000
    total_query_limit: int = 100_000
    max_message_bytes: int = 100 * 1024 * 1024
    overrun_s: float = 30.0
    silence_s: float = 60.0
    ping_s: float = 45.0
    admit_unlaunched: bool = False


@dataclass(frozen=True)
class ListenOptions:
    """Where chaincode dials the node.

    Args:
        bind: host and port to listen on. Without a host, the node listens on those of
            its addresses that chaincode needs; without a port, on a free one each.
        advertise: host and port that chaincode is told to dial; None = the bound ones.
        tls: mutual TLS with chaincode that dials.
    """

    bind: tuple[str, int] | None = None
    advertise: tuple[str, int] | None = None
    tls: bool = True

    @property
    def port(self) -> int:
        """The port to listen on; 0 = a free one."""
        return self.bind[1] if self.bind else 0


@dataclass(frozen=True)
class CallOptions:
    """Calls.

    Args:
        execute_timeout_s: from sending until the final message.
        launch_wait_s: how long a call waits for a launch under way.
    """

    execute_timeout_s: float = 30.0
    launch_wait_s: float = 300.0


@dataclass(frozen=True)
class LaunchOptions:
    """Launches and stops.

    Args:
        build_timeout_s: phases package to image.
        startup_timeout_s: phases create to ready, all together.
        connect_timeout_s: phase connect, in which it boots; 0 = what is left of these.
        register_timeout_s: phases register and ready.
        stop_grace_s: between asking and killing when the node itself goes down.
    """

    build_timeout_s: float = 600.0
    startup_timeout_s: float = 300.0
    connect_timeout_s: float = 0.0
    register_timeout_s: float = 30.0
    stop_grace_s: float = 10.0
