"""A node's endorsing side on a real ledger; only the chaincode is a function."""

import asyncio
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import pytest
from fabric_protos.peer import (
    chaincode_event_pb2,
    chaincode_shim_pb2,
    proposal_response_pb2,
)

from chaindock.chaincode.invocation import Kind
from chaindock.endorser.acl import require
from chaindock.endorser.caller import Caller, DefinitionWriter
from chaindock.endorser.channel import Members
from chaindock.endorser.configuration import Configuration
from chaindock.endorser.cutting import OrdererOptions
from chaindock.endorser.endorser import Endorser
from chaindock.endorser.genesis import genesis_envelope
from chaindock.endorser.orderer import Orderer
from chaindock.identity.organization import Organization, Organizations
from chaindock.ids import Ccid, ChannelId
from chaindock.ledger.ledger import Ledger
from chaindock.lifecycle.contract import LifecycleContract
from chaindock.lifecycle.definitions import Approval, Definition
from support.doubles.definitions import definitions_of
from support.ledgers.ledger import committed_definition

CHANNEL = ChannelId("mychannel")
CONCURRENCY = 20
CCID = Ccid("basic_1.0:" + "a" * 64)


class Approvals:
    """Everything that a test approves."""

    def __init__(self) -> None:
        self.known: dict[Any, Any] = {}
        self.stopped: set[Any] = set()

    def approval(self, name: Any, sequence: Any) -> Any:
        return self.known.get((name, sequence))

    def is_stopped(self, name: Any) -> Any:
        return name in self.stopped


class Chaincode:
    """Runs in place of real chaincode: put, get, status, event, hang, …"""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.raises: Any = None
        self.hold: Any = None
        self.entered = asyncio.Semaphore(0)

    def process_of(self, _mspid: Any) -> str:
        return ""

    async def execute(self, ccid: Any, invocation: Any, mspid: Any) -> Any:
        self.seen.append((ccid, invocation))
        self.entered.release()
        if self.hold is not None:
            await self.hold.wait()
        if self.raises is not None:
            raise self.raises
        function, *args = (bytes(a).decode() for a in invocation.input.args)
        said = getattr(self, function)(invocation, *args)
        invocation.simulator.budget.give_back()  # as at the end of a real call
        return said

    def put(self, invocation: Any, key: Any, value: Any) -> Any:
        invocation.simulator.put_state(invocation.namespace, key, value.encode())
        return answer(payload=value.encode())

    def get(self, invocation: Any, key: Any) -> Any:
        value = invocation.simulator.get_state(invocation.namespace, key)
        return answer(payload=value or b"")

    def hide(
        self,
        invocation: Any,
        key: Any,
        value: Any,
        collection: Any = "_implicit_org_Org1MSP",
    ) -> Any:
        space = invocation.namespace, collection
        invocation.simulator.put_private(*space, key, value.encode())
        return answer()

    def reveal(self, invocation: Any, key: Any) -> Any:
        space = invocation.namespace, "_implicit_org_Org1MSP"
        return answer(payload=invocation.simulator.get_private(*space, key) or b"")

    def label(self, invocation: Any, key: Any, policy: Any) -> Any:
        entries = {"VALIDATION_PARAMETER": bytes.fromhex(policy)}
        invocation.simulator.put_metadata(invocation.namespace, key, entries)
        return answer()

    def fill(self, invocation: Any, count: Any) -> Any:
        for number in range(int(count)):
            key = f"k{number:05}"
            invocation.simulator.put_state(invocation.namespace, key, b"v")
        return answer()

    def copy(self, invocation: Any, source: Any, target: Any) -> Any:
        value = invocation.simulator.get_state(invocation.namespace, source)
        invocation.simulator.put_state(invocation.namespace, target, value or b"-")
        return answer(payload=value or b"")

    def status(self, invocation: Any, status: Any, message: Any = "") -> Any:
        invocation.simulator.put_state(invocation.namespace, "never", b"x")
        return answer(int(status), message, b"data", event=("e", b"p"))

    def event(self, invocation: Any, name: Any, payload: Any) -> Any:
        invocation.simulator.put_state(invocation.namespace, "k", b"v")
        return answer(event=(name, payload.encode()))

    def swallow(self, invocation: Any) -> Any:
        invocation.refuse("rich queries are not supported")
        return answer(payload=b"all is well")

    def init(self, invocation: Any) -> Any:
        return answer(payload=b"init" if invocation.is_init else b"not init")


def answer(
    status: Any = 200, message: Any = "", payload: Any = b"", event: Any = None
) -> Any:
    response = proposal_response_pb2.Response(
        status=status, message=message, payload=payload
    )
    raised = None
    if event is not None:
        raised = chaincode_event_pb2.ChaincodeEvent(
            chaincode_id="forged", event_name=event[0], payload=event[1]
        )
    return chaincode_shim_pb2.ChaincodeMessage(
        type=Kind.COMPLETED,
        payload=response.SerializeToString(),
        chaincode_event=raised,
    )


@dataclass
class Node:
    org: Organization
    ledger: Ledger
    endorser: Endorser
    orderer: Orderer
    caller: Caller
    writer: DefinitionWriter
    chaincode: Chaincode
    approvals: Approvals
    user: object = field(init=False)

    def __post_init__(self) -> Any:
        self.user = self.org.user("User1")

    async def label(self, key: Any, policy: bytes, *endorsers: Any) -> Any:
        """Give a key a policy; return the code."""
        args = [b"label", key.encode(), policy.hex().encode()]
        return await self._code(args, endorsers)

    async def fill(self, count: Any, *endorsers: Any) -> Any:
        """Write so many keys; return the code."""
        return await self._code([b"fill", b"%d" % count], endorsers)

    async def _code(self, args: Any, endorsers: Any) -> Any:
        signer: Any = self.user
        answered = await self.caller.invoke(
            "basic", args, signer=signer, endorsers=endorsers
        )
        return answered.code

    async def define(
        self,
        name: Any = "basic",
        version: Any = "1.0",
        *,
        init_required: Any = False,
        ccid: Any = CCID,
        validation_parameter: bytes = b"",
        collections: Any = None,
    ) -> Any:
        before = committed_definition(self.ledger, name)
        sequence = before.sequence + 1 if before else 1
        self.approvals.known[name, sequence] = Approval(
            name, sequence, version, ccid, init_required=init_required
        )
        await self.writer.commit(
            Definition(
                name=name,
                sequence=sequence,
                version=version,
                init_required=init_required,
                validation_parameter=validation_parameter,
                collections=collections,
            ),
            ccid,
        )


@pytest.fixture(scope="session")
def org(tmp_path_factory: Any) -> Any:
    return Organization.open(
        tmp_path_factory.mktemp("organizations"), "Org1MSP", "org1.example.com"
    )


@pytest.fixture
def organizations(tmp_path: Any) -> Any:
    """Several can join; a test whose node belongs to the first one makes it `org`."""
    folder = tmp_path / "organizations"
    first = Organization.open(folder, "Org1MSP", "org1.example.com")
    return Organizations(folder, first)


@pytest.fixture
def members(node: Any, organizations: Any) -> Any:
    made = Members(CHANNEL, organizations, node.endorser.configuration)
    node.endorser.peers = made.peers
    node.writer = replace(node.writer, admins=made.admins)
    return made


@pytest.fixture
def options() -> Any:
    return OrdererOptions()


@pytest.fixture
async def node(tmp_path: Any, org: Any, options: Any) -> Any:
    approvals: Any = Approvals()
    chaincode: Any = Chaincode()
    opened = Ledger(
        tmp_path / "ledger.db",
        CHANNEL,
        org.orderer,
        lambda: genesis_envelope(CHANNEL, org.msp, options),
    )
    async with opened as ledger:
        configuration = Configuration.of(ledger)
        endorser = Endorser(
            configuration=configuration,
            peers={org.mspid: org.peer},
            ledger=ledger,
            definitions=definitions_of(approvals),
            executor=chaincode,
            system={
                "_lifecycle": LifecycleContract(
                    CHANNEL,
                    lambda: configuration.peers,
                    cast("Any", None),
                    partial(require, configuration),
                )
            },
            concurrency=CONCURRENCY,
        )
        async with Orderer(ledger, configuration, options) as orderer:
            caller = Caller(CHANNEL, endorser, orderer)
            yield Node(
                org,
                ledger,
                endorser,
                orderer,
                caller,
                DefinitionWriter(caller, ledger, lambda: [org.admin]),
                chaincode,
                approvals,
            )


@pytest.fixture
async def defined(node: Any) -> Any:
    await node.define()
    return node


@pytest.fixture
async def two(node: Any, members: Any, organizations: Any) -> Any:
    """Both organisations are a majority of the admins."""
    await node.define()
    await members.add("Org2", node.orderer)
    node.admins = [organizations.find(f"Org{number}MSP").admin for number in (1, 2)]
    return node
