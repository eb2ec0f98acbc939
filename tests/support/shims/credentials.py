"""What both ends of a stream show each other, as gRPC takes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc

if TYPE_CHECKING:
    from chaindock.identity.ca import TlsAuthority, TlsPair


def client(root_pem: str, pair: TlsPair | None) -> grpc.ChannelCredentials:
    """Return what a chaincode dials with; None = it shows no certificate."""
    if pair is None:
        return grpc.ssl_channel_credentials(root_pem.encode())
    return grpc.ssl_channel_credentials(
        root_pem.encode(), pair.key_pem.encode(), pair.cert_pem.encode()
    )


def server(
    authority: TlsAuthority, pair: TlsPair, *, asks: bool = True
) -> grpc.ServerCredentials:
    """Return what a chaincode serves with; `asks` for a certificate of the same root."""
    return grpc.ssl_server_credentials(
        [(pair.key_pem.encode(), pair.cert_pem.encode())],
        authority.root_pem.encode() if asks else None,
        require_client_auth=asks,
    )
