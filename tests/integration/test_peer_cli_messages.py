"""Our client in place of the `peer` command sends what a recorded `peer` command sent."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Self

import grpc
import pytest
from fabric_protos.common import common_pb2
from fabric_protos.orderer import ab_pb2
from fabric_protos.peer import (
    chaincode_pb2,
    events_pb2,
    proposal_pb2,
    proposal_response_pb2,
    transaction_pb2,
)

from chaindock.identity.organization import Organization
from support.clients.peer_cli import program
from support.shims import builds

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.golang, pytest.mark.timeout(300)]
FABRIC = builds.FIXTURES / "fabric31"
CODE = "vec_1:3e524eb81112383ed764184ecc17372e488411c3b147dfcb10a6977c5c633e43"
FIRST = ("-v", "1", "--sequence", "1")
GROUPS = ("--collections-config", FABRIC / "collections.json")
BOTH = ("--signature-policy", "AND('Org1MSP.peer','Org2MSP.peer')")
MAJORITY = ("--channel-config-policy", "Channel/Application/Endorsement")
SENT = {
    "querycommitted vec": ("querycommitted", "-n", "vec"),
    "querycommitted all": ("querycommitted",),
    "queryapproved": ("queryapproved", "-n", "vec"),
    "checkcommitreadiness (before)": (
        *("checkcommitreadiness", "-n", "vec", *FIRST, *GROUPS),
    ),
    "approveformyorg vec": (
        *("approveformyorg", "-n", "vec", *FIRST, *GROUPS, "--package-id", CODE),
    ),
    "commit vec": ("commit", "-n", "vec", *FIRST, *GROUPS),
    "approveformyorg vec3 (signature policy needs absent org)": (
        *("approveformyorg", "-n", "vec3", *FIRST, *BOTH, "--package-id", CODE),
    ),
    "commit vec3": ("commit", "-n", "vec3", *FIRST, *BOTH),
    "approveformyorg vecinit (init required)": (
        *("approveformyorg", "-n", "vecinit", *FIRST, "--init-required"),
        *("--package-id", CODE),
    ),
    "approveformyorg vecnopkg (no package id)": (
        *("approveformyorg", "-n", "vecnopkg", *FIRST, *MAJORITY),
    ),
}


class Recorder:
    """A server that notes what comes, and accepts it; all methods of all services."""

    def __init__(self) -> None:
        self.came: list[tuple[str, bytes]] = []
        self.endorses, self.agrees, self.status = True, True, 200
        self._server = grpc.server(ThreadPoolExecutor(8))
        methods: dict[str, dict[str, Any]] = {
            "protos.Endorser": {
                "ProcessProposal": grpc.unary_unary_rpc_method_handler(self._endorse)
            },
            "protos.Deliver": {
                "DeliverFiltered": grpc.stream_stream_rpc_method_handler(self._deliver)
            },
            "orderer.AtomicBroadcast": {
                "Broadcast": grpc.stream_stream_rpc_method_handler(self._order)
            },
        }
        for name, own in methods.items():
            handler = grpc.method_handlers_generic_handler(name, own)
            self._server.add_generic_rpc_handlers((handler,))
        self.port = self._server.add_insecure_port("127.0.0.1:0")

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.stop(None).wait()

    def _endorse(self, request: bytes, _context: Any) -> bytes:
        self.came.append(("proposal", request))
        answer = proposal_response_pb2.ProposalResponse(payload=b"payload")
        answer.response.status = 200
        if not self.agrees:
            answer.payload += bytes([len(self.came)])
        if self.endorses:
            answer.endorsement.endorser = b"somebody"
        return bytes(answer.SerializeToString())

    def _order(self, requests: Iterator[bytes], _context: Any) -> Iterator[bytes]:
        for request in requests:
            self.came.append(("broadcast", request))
            answer = ab_pb2.BroadcastResponse(status=self.status, info="no room")
            yield answer.SerializeToString()

    def _deliver(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        self.came.append(("deliver", next(requests)))
        block = events_pb2.FilteredBlock(channel_id="mychannel")
        block.filtered_transactions.add(txid=header_of(self.came[0][1])[0].tx_id)
        yield events_pb2.DeliverResponse(filtered_block=block).SerializeToString()


def header_of(request: bytes) -> tuple[Any, Any, Any]:
    """Return the headers and the call of a signed proposal."""
    signed = proposal_pb2.SignedProposal.FromString(request)
    proposal = proposal_pb2.Proposal.FromString(signed.proposal_bytes)
    header = common_pb2.Header.FromString(proposal.header)
    content = proposal_pb2.ChaincodeProposalPayload.FromString(proposal.payload)
    return (
        common_pb2.ChannelHeader.FromString(header.channel_header),
        common_pb2.SignatureHeader.FromString(header.signature_header),
        chaincode_pb2.ChaincodeInvocationSpec.FromString(content.input).chaincode_spec,
    )


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    with Recorder() as server:
        yield server


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a `core.yaml` and the organisation of the caller."""
    folder = tmp_path_factory.mktemp("org")
    Organization.open(folder, "Org1MSP", "org1.example.com")
    core = "peer:\n  client:\n    connTimeout: 2s\n"
    (folder / "core.yaml").write_text(core)
    return folder


Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(recorder: Recorder, folder: Path) -> Run:
    """Run a command that asks the recorder, as a peer and as an orderer."""
    (msp,) = folder.glob("**/users/Admin@*/msp")
    address = f"127.0.0.1:{recorder.port}"
    env = {
        **os.environ,  # noqa: TID251  # tests have no config
        "FABRIC_CFG_PATH": str(folder),
        "CORE_PEER_ADDRESS": address,
        "CORE_PEER_LOCALMSPID": "Org1MSP",
        "CORE_PEER_MSPCONFIGPATH": str(msp),
    }

    def run(*words: object, **other: str) -> subprocess.CompletedProcess[str]:
        argv = [str(program()), *map(str, words), "-C", "mychannel", "-o", address]
        return subprocess.run(
            argv, env={**env, **other}, capture_output=True, text=True, check=False
        )

    return run


@pytest.mark.parametrize("name", SENT)
def test_a_lifecycle_command_sends_what_was_recorded(
    recorder: Recorder, run: Run, name: str
):
    done = run("lifecycle", "chaincode", *SENT[name])
    assert done.returncode == 0, done.stderr
    calls = json.loads((FABRIC / "lifecycle_calls.json").read_text())
    recorded = next(one for one in calls if one["name"] == name)
    header, signature, spec = header_of(recorder.came[0][1])
    assert (header.type, header.version, header.epoch) == (3, 0, 0)
    assert header.extension == b"\x12\x0c\x12\n_lifecycle"
    assert len(signature.nonce) == 24
    assert spec == chaincode_pb2.ChaincodeSpec(
        chaincode_id=chaincode_pb2.ChaincodeID(name="_lifecycle"),
        input=chaincode_pb2.ChaincodeInput(
            args=[recorded["function"].encode(), base64.b64decode(recorded["args"])]
        ),
    )
    submits = name.startswith(("approve", "commit"))
    came = dict(recorder.came)  # the two streams, on their own threads, in any order
    assert len(came) == len(recorder.came)
    assert came.keys() - {"proposal"} == (
        {"deliver", "broadcast"} if submits else set()
    )
    if submits:
        envelope = common_pb2.Envelope.FromString(came["broadcast"])
        payload = common_pb2.Payload.FromString(envelope.payload)
        assert payload.header.channel_header == header.SerializeToString()
        (action,) = transaction_pb2.Transaction.FromString(payload.data).actions
        assert action.header == payload.header.signature_header


CALL = ("-n", "basic", "-c", '{"Args":["get","k"]}')


@pytest.mark.statement(80, of="client", by="own")
def test_a_query_without_an_endorsement_fails(recorder: Recorder, run: Run):
    assert run("chaincode", "query", *CALL).returncode == 0
    recorder.endorses = False
    assert "endorsement failure during query" in run("chaincode", "query", *CALL).stderr


def test_a_call_on_which_peers_disagree_is_not_ordered(recorder: Recorder, run: Run):
    recorder.agrees = False
    peers = ("--peerAddresses", f"127.0.0.1:{recorder.port}") * 2
    done = run("chaincode", "invoke", *CALL, *peers)
    assert "ProposalResponsePayloads do not match" in done.stderr
    assert [kind for kind, _ in recorder.came] == ["proposal"] * 2
    assert recorder.came[0] == recorder.came[1]


def test_what_the_orderer_says_is_told(recorder: Recorder, run: Run):
    recorder.status = 503
    done = run("chaincode", "invoke", *CALL)
    assert "got unexpected status: SERVICE_UNAVAILABLE -- no room" in done.stderr


def test_the_time_to_connect_is_that_of_the_file(run: Run):
    done = run("chaincode", "query", *CALL, CORE_PEER_ADDRESS="127.0.0.1:1")
    assert "context deadline exceeded" in done.stderr
    done = run("chaincode", "query", *CALL, FABRIC_CFG_PATH="/")
    assert 'Config File "core" Not Found' in done.stderr


@pytest.mark.parametrize(
    ("broken", "text"),
    [
        ("keystore", "no private key"),
        ("cacerts", "could not load a valid ca certificate"),
        ("signcerts", "could not load a valid signer certificate"),
        ("role", "must be a client, a peer, an orderer or an admin"),
    ],
)
def test_a_user_whom_the_directory_does_not_show_is_refused(
    recorder: Recorder, run: Run, folder: Path, tmp_path: Path, broken: str, text: str
):
    """As Fabric's command does, before it connects."""
    (user,) = folder.glob("**/users/Admin@*/msp")
    msp = shutil.copytree(user, tmp_path / "msp")
    if broken == "role":
        units = (msp / "config.yaml").read_text()
        (msp / "config.yaml").write_text(units.replace(": admin", ": boss"))
    else:
        shutil.rmtree(msp / broken)
    done = run("chaincode", "query", *CALL, CORE_PEER_MSPCONFIGPATH=str(msp))
    assert text in done.stderr
    assert not recorder.came
