"""Simulate one proposal: the chaincode that it names, and those that this one calls.

All calls of a transaction share its budget. Those on its channel share its simulator, and so
its snapshot and its read-write set; those on another one get a simulator of their own.
Source: docs/fabric/ledger.md#proposal, docs/fabric/shim-protocol.md#other-chaincode,
    docs/fabric/peer.md#system-chaincodes
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

from fabric_protos.peer import proposal_response_pb2
from fabric_protos.peer.chaincode_pb2 import ChaincodeInput
from fabric_protos.peer.chaincode_shim_pb2 import ChaincodeMessage
from fabric_protos.peer.collection_pb2 import CollectionConfigPackage

from chaindock.aio import off_loop
from chaindock.chaincode.invocation import Call, Invocation, Outcome, outcome_of
from chaindock.chaincode.support import ChaincodeSupport
from chaindock.endorser.checks import Proposal
from chaindock.endorser.configuration import Configuration
from chaindock.errors import (
    ChaindockError,
    ExecuteFailed,
    InvalidInput,
    LaunchFailed,
    NotFound,
)
from chaindock.identity.msp import Identity
from chaindock.ids import ChannelId
from chaindock.ledger.simulator import Simulator
from chaindock.lifecycle.collections import Collections
from chaindock.lifecycle.definitions import Approval, read_definition
from chaindock.lifecycle.deployments import Deployments

Elsewhere = Callable[["Simulation", Call, str, str, ChaincodeInput], Awaitable[bytes]]

_INITIALIZED: Final = "\x00\U0010ffffinitialized"
_LEGACY: Final = "lscc"
"""Namespace of definitions of the former lifecycle, in which there are none."""
_NOT_CALLABLE: Final = {
    "qscc": "Rejecting invoke of QSCC from another chaincode because of potential for "
    "deadlocks, original invocation for '{}'",
    "cscc": "Rejecting invoke of CSCC from another chaincode, original invocation for "
    "'{}'",
}
UNSIMULATED: Final = frozenset(_NOT_CALLABLE)
"""Their calls read no state: a proposal response has neither reads nor interest."""


class SystemChaincode(Protocol):
    """Answers calls itself; the peer has checked who signed the proposal."""

    async def execute(
        self,
        simulator: Simulator | None,
        args: Sequence[bytes],
        identity: Identity,
        mspid: str,
    ) -> proposal_response_pb2.Response:
        """Return the answer to a call; never raises for what a caller can send.

        `simulator` is of the channel of the proposal; None if that has no channel.
        `args` are the name of the function and its arguments; `identity` signed.
        `mspid` is the organisation of the peer that is asked, in calls inside the node
        that of the caller.
        """


def undefined(
    name: str,
    channel: str = "",
    cause: str = "could not get channel config for channel ''",
    **facts: Any,
) -> NotFound:
    """Return the refusal of a proposal to chaincode that is not defined on a channel."""
    if name == _LEGACY:
        return NotFound(
            "this peer has no lscc, the lifecycle before Fabric 2.0: use `peer lifecycle "
            "chaincode` instead of `peer chaincode install`, `instantiate`, `upgrade` and "
            "`list`"
        )
    return NotFound(
        f"make sure the chaincode {name} has been successfully defined on channel "
        f"{channel} and try again: {cause}",
        **facts,
    )


@dataclass(kw_only=True, eq=False)
class Simulation:
    """One simulation of a proposal."""

    proposal: Proposal
    channel: ChannelId
    """Empty = none; else that of the proposal, or another one where its chaincode has
    called chaincode."""
    identity: Identity
    """Who signed the proposal, and fulfils the channel's Writers policy."""
    simulator: Simulator
    """Of the channel; its owner calls `done`."""
    definitions: Deployments
    executor: ChaincodeSupport
    system: Mapping[str, SystemChaincode]
    """System chaincodes by name."""
    mspid: str
    """Organisation of the peer that simulates. It decides which private values there
    are, and what system chaincodes answer."""
    configuration: Configuration
    """Of the channel."""
    elsewhere: Elsewhere
    """Calls chaincode on another channel."""

    async def run(self, timeout_s: float | None) -> tuple[Outcome, str]:
        """Return what the chaincode of the proposal said, and its version.

        Raises: NotFound: not defined. InvalidInput: Init was required or not.
            LaunchFailed, ExecuteFailed: no answer.
        """
        proposal = self.proposal
        if proposal.name in self.system:
            answer = await self._execute(proposal.name, proposal.input)
            return Outcome(answer, None, nbytes=len(answer.payload)), "syscc"
        definition = self._definition()
        self._check_init(definition, is_init=proposal.input.is_init)
        nbytes = len(proposal.payload)
        invocation = self._invocation(proposal.name, proposal.input, nbytes)
        invocation.timeout_s = timeout_s
        final = await self.executor.execute(definition.ccid, invocation, self.mspid)
        held = invocation.answer_held
        taken = partial(outcome_of, final, invocation)
        return await off_loop(held.nbytes if held else 0, taken), definition.version

    def _definition(self) -> Approval:
        """Return the definition of the proposal's chaincode. Raises: NotFound."""
        name, channel = self.proposal.name, self.channel
        if not channel:
            raise undefined(name)
        try:
            return self._find(name)
        except NotFound as error:
            raise undefined(
                name, channel, error.message, hint=error.hint, **error.facts
            ) from error

    def _find(self, name: str) -> Approval:
        found = self.definitions.at(self.simulator, name)
        self.proposal.ran.add((self.definitions, name, found.ccid))
        return found

    def _invocation(
        self, name: str, given: ChaincodeInput, nbytes: int, caller: Call | None = None
    ) -> Invocation:
        """Return a call with `given`, of at most `nbytes`."""
        return Invocation(
            channel_id=self.channel,
            tx_id=self.proposal.tx_id,
            namespace=name,
            input=given,
            signed_proposal=self.proposal.signed,
            nbytes=nbytes + self.proposal.nbytes,
            simulator=self.simulator,
            capability=self.configuration.capability,
            is_init=given.is_init,
            refusals=self.proposal.refusals,
            spent=self.proposal.spent,
            caller=caller,
            invoke=self.called,
            collections=partial(self._collections, name),
        )

    def _collections(self, name: str) -> Collections:
        """Return what the client may do with the collections of `name`."""
        found = read_definition(self.simulator, name)
        return Collections(
            self.channel,
            name,
            CollectionConfigPackage() if found is None else found.collections,
            self.configuration.peers,
            self.identity,
            self.mspid,
        )

    def _check_init(self, definition: Approval, *, is_init: bool) -> None:
        """Apply the rules of chaincode that requires Init; record the init."""
        simulator = self.simulator
        name, version = definition.name, definition.version
        cause, hint = None, "leave out --init"
        if not definition.init_required:
            if is_init:
                cause = "does not require initialization but called as init"
        else:
            stored = simulator.get_state(name, _INITIALIZED)
            if is_init and stored == version.encode():
                cause = "is already initialized but called as init"
            elif is_init:
                simulator.put_state(name, _INITIALIZED, version.encode())
            elif stored != version.encode():
                cause = (
                    "has not been initialized for this version, must call as init first"
                )
                hint = f"chaindock invoke {name} --init FUNCTION ARGS..."
        if cause is not None:
            text = f"invalid invocation: chaincode '{name}' {cause}"
            raise InvalidInput(text, hint=hint, chaincode=name)

    # --- calls of other chaincode -----------------------------------------------------

    async def called(
        self, caller: Call, name: str, channel: str, given: ChaincodeInput
    ) -> bytes:
        """Call `name` on a channel, "" = this one, for `caller`, which may be elsewhere.

        The creator of the proposal is a writer of its channel since it was admitted.

        Raises: NotFound: no such channel. Denied: the creator is no writer there.
            ExecuteFailed: anything else.
        """
        if channel not in {"", self.channel}:
            return await self.elsewhere(self, caller, name, channel, given)
        if name in _NOT_CALLABLE:
            text = _NOT_CALLABLE[name].format(self.proposal.name)
            return self._answer(
                proposal_response_pb2.Response(status=500, message=text)
            )
        if name in self.system:
            return self._answer(await self._execute(name, given))
        try:
            definition = self._callee(name)
            self._check_init(definition, is_init=given.is_init)
            call = self._invocation(name, given, caller.asked_bytes, caller)
            try:
                final = await self.executor.execute(definition.ccid, call, self.mspid)
            except LaunchFailed:
                # An upgrade may have stopped that version; the new one answers.
                now = self._callee(name).ccid
                if now == definition.ccid:
                    raise
                final = await self.executor.execute(now, call, self.mspid)
            held = call.answer_held
            return await off_loop(held.nbytes if held else 0, final.SerializeToString)
        except ChaindockError as error:
            raise ExecuteFailed(
                f"execute failed: {error.message}", hint=error.hint, **error.facts
            ) from error

    def _callee(self, name: str) -> Approval:
        channel = self.channel
        try:
            return self._find(name)
        except NotFound as error:
            if "sequence" not in error.facts:
                self.simulator.saw((_LEGACY, ""), name, None)  # a peer looks there, too
            raise NotFound(
                f"invalid invocation: [channel {channel}] failed to get chaincode "
                f"container info for {name}: {error.message}",
                hint=error.hint,
                **error.facts,
            ) from error

    async def _execute(
        self, name: str, given: ChaincodeInput
    ) -> proposal_response_pb2.Response:
        size = self.proposal.nbytes
        args: list[bytes] = await off_loop(size, partial(list, given.args))
        return await self.system[name].execute(
            self.simulator, args, self.identity, self.mspid
        )

    def _answer(self, response: proposal_response_pb2.Response) -> bytes:
        final: bytes = ChaincodeMessage(
            type=ChaincodeMessage.COMPLETED,
            payload=response.SerializeToString(),
            txid=self.proposal.tx_id,
            channel_id=self.channel,
        ).SerializeToString()
        return final
