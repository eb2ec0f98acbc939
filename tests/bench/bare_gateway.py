"""A gRPC server with TLS that verifies one signature of a call, and answers with bytes.

Usage: bare_gateway.py FOLDER. The folder has server.crt and server.key, and the answers of
a real node in a file for each method. The server prints its port. It knows nothing of
Chaindock.
"""

from __future__ import annotations

import asyncio
import sys
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from fabric_protos.common import common_pb2
from fabric_protos.gateway import gateway_pb2 as pb
from fabric_protos.msp import identities_pb2
from fabric_protos.peer import proposal_pb2

if TYPE_CHECKING:
    from collections.abc import Callable

    Part = tuple[bytes, bytes, bytes]
"""Creator, message, signature."""


def of_proposal(signed: Any) -> Part:
    proposal = proposal_pb2.Proposal.FromString(signed.proposal_bytes)
    header = common_pb2.Header.FromString(proposal.header)
    return creator(header), signed.proposal_bytes, signed.signature


def of_envelope(envelope: Any) -> Part:
    payload = common_pb2.Payload.FromString(envelope.payload)
    return creator(payload.header), envelope.payload, envelope.signature


def creator(header: Any) -> bytes:
    found: bytes = common_pb2.SignatureHeader.FromString(
        header.signature_header
    ).creator
    return found


def of_status(signed: Any) -> Part:
    request = pb.CommitStatusRequest.FromString(signed.request)
    return request.identity, signed.request, signed.signature


METHODS: dict[str, tuple[Any, Callable[[Any], Part]]] = {
    "Evaluate": (pb.EvaluateRequest, lambda r: of_proposal(r.proposed_transaction)),
    "Endorse": (pb.EndorseRequest, lambda r: of_proposal(r.proposed_transaction)),
    "Submit": (pb.SubmitRequest, lambda r: of_envelope(r.prepared_transaction)),
    "CommitStatus": (pb.SignedCommitStatusRequest, of_status),
}


@lru_cache
def key_of(identity: bytes) -> Any:
    pem = identities_pb2.SerializedIdentity.FromString(identity).id_bytes
    return x509.load_pem_x509_certificate(pem).public_key()


async def main(folder: Path) -> None:
    server = grpc.aio.server()
    handlers: dict[str, Any] = {}
    for name, (kind, part_of) in METHODS.items():
        answer = (folder / name).read_bytes()

        async def method(
            request: Any,
            _: Any,
            part_of: Callable[[Any], Part] = part_of,
            answer: bytes = answer,
        ) -> bytes:
            identity, message, signature = part_of(request)
            key_of(identity).verify(signature, message, ec.ECDSA(hashes.SHA256()))
            return answer

        handlers[name] = grpc.unary_unary_rpc_method_handler(method, kind.FromString)
    service = grpc.method_handlers_generic_handler("gateway.Gateway", handlers)
    server.add_generic_rpc_handlers((service,))
    pair = [(folder / name).read_bytes() for name in ("server.key", "server.crt")]
    credentials = grpc.ssl_server_credentials([(pair[0], pair[1])])
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
