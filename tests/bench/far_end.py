"""A chaincode that does as little as a chaincode can, in a process of its own.

Usage: far_end.py ADDRESS CCID. With the variables of a peer that has TLS on, it shows
the certificate that they name. It dials the node and answers every transaction at once;
a transaction `put KEY VALUE` writes before it answers. It knows nothing of Chaindock.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from pathlib import Path

import grpc
import grpc.aio
from fabric_protos.peer import chaincode_pb2, proposal_response_pb2
from fabric_protos.peer import chaincode_shim_pb2 as shim

Kind = shim.ChaincodeMessage
DONE = proposal_response_pb2.Response(status=200).SerializeToString()


def answer(message: shim.ChaincodeMessage) -> shim.ChaincodeMessage | None:
    """Return what follows on a message of the node."""
    kind, payload = Kind.COMPLETED, DONE
    if message.type == Kind.TRANSACTION:
        arguments = chaincode_pb2.ChaincodeInput.FromString(message.payload).args
        if arguments[0] == b"put":
            key, value = arguments[1].decode(), arguments[2]
            put = shim.PutState(key=key, value=value)
            kind, payload = Kind.PUT_STATE, put.SerializeToString()
    elif message.type != Kind.RESPONSE:
        return None
    return Kind(
        type=kind, payload=payload, txid=message.txid, channel_id=message.channel_id
    )


def dial(address: str) -> grpc.aio.Channel:
    """Return a channel as the environment says it."""
    if os.environ.get("CORE_PEER_TLS_ENABLED") != "true":  # noqa: TID251  # not ours
        return grpc.aio.insecure_channel(address)
    names = ("PEER_TLS_ROOTCERT", "TLS_CLIENT_KEY", "TLS_CLIENT_CERT")
    paths = [os.environ[f"CORE_{name}_FILE"] for name in names]  # noqa: TID251
    material = [Path(path).read_bytes() for path in paths]
    return grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(*material))


async def main(address: str, ccid: str) -> None:
    async with dial(address) as channel:
        stream = channel.stream_stream(
            "/protos.ChaincodeSupport/Register",
            request_serializer=Kind.SerializeToString,
            response_deserializer=Kind.FromString,
        )()
        name = chaincode_pb2.ChaincodeID(name=ccid).SerializeToString()
        await stream.write(Kind(type=Kind.REGISTER, payload=name))
        while (message := await stream.read()) is not grpc.aio.EOF:
            reply = answer(message)
            if reply is not None:
                await stream.write(reply)


if __name__ == "__main__":
    # The node ends the stream when it is over.
    with contextlib.suppress(grpc.aio.AioRpcError):
        asyncio.run(main(*sys.argv[1:]))
