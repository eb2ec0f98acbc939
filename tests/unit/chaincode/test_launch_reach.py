"""needs.md row 13: a launch that came to no stream says what kept it from the node."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from chaindock.chaincode import launcher
from chaindock.container.contracts import Exit
from chaindock.errors import (
    EngineUnavailable,
    ExitedEarly,
    LaunchFailed,
    LaunchTimeout,
    NameUnresolved,
    NetworkMissing,
    NodeUnreachable,
    NotFound,
    TlsFailed,
)
from chaindock.identity.ca import TlsAuthority
from chaindock.lifecycle.states import LaunchState
from support.doubles.launch_fakes import (
    FakeInstance,
    dies_at_once,
    never_registers,
    serves,
)
from support.doubles.launch_world import World, failure
from support.eventually import eventually
from support.shims.stream_node import CCID, OTHER

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

PROBED = (
    NameUnresolved("does not resolve", hosts=["node"], port="1"),
    NodeUnreachable("cannot connect", hosts=["10.0.0.1"], port="1"),
)


@pytest.fixture
async def hasty(no_task_is_left: None) -> AsyncIterator[World]:
    """A launcher that soon gives up on what does not register."""
    async with World(connect_timeout_s=0.3) as world:
        yield world


@pytest.fixture
async def guarded(no_task_is_left: None) -> AsyncIterator[World]:
    """The same with TLS."""
    async with World(TlsAuthority(), connect_timeout_s=1.0) as world:
        yield world


async def speaks_no_tls(instance: FakeInstance) -> None:
    """Connect as one does that knows nothing of certificates."""
    host, _, port = (await instance.peer.listener.address_on("127.0.0.1")).partition(
        ":"
    )
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    await reader.read()
    writer.close()


async def speaks_no_tls_and_stays(instance: FakeInstance) -> Exit:
    await speaks_no_tls(instance)
    return await never_registers(instance)


async def speaks_no_tls_and_ends(instance: FakeInstance) -> Exit:
    await speaks_no_tls(instance)
    return Exit(1)


# --- what stands in the way -------------------------------------------------------------


@pytest.mark.parametrize("kept", PROBED, ids=lambda one: one.slug)
async def test_what_is_found_from_inside_is_told(hasty: World, kept: LaunchFailed):
    instance = hasty.builder.prepare(CCID, never_registers)

    async def probe() -> LaunchFailed:
        return kept

    instance.probes = probe
    error = await failure(hasty, type(kept))
    assert error.message.endswith(kept.message)
    assert error.facts["hosts"] == kept.facts["hosts"]
    assert error.facts["phase"] == "connect"
    assert error.facts["output"] == ["waiting for something"]
    assert not instance.running


async def test_whether_there_is_a_way_is_not_asked_at_the_end_only(
    no_task_is_left: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(launcher, "_UNHEARD_S", 0.2)
    async with World(connect_timeout_s=60) as world:
        instance = world.builder.prepare(CCID, never_registers)

        async def probe() -> LaunchFailed:
            return PROBED[1]

        instance.probes = probe
        async with asyncio.timeout(10):
            await failure(world, NodeUnreachable)
        assert not instance.running


async def test_a_connection_of_the_probe_is_not_one_of_the_chaincode(
    no_task_is_left: None, monkeypatch: pytest.MonkeyPatch
):
    """Or each slow start would be told as a matter of TLS."""
    monkeypatch.setattr(launcher, "_UNHEARD_S", 0.1)
    async with World(TlsAuthority(), connect_timeout_s=1.0) as world:
        instance = world.builder.prepare(CCID, never_registers)

        async def probe() -> None:
            host, _, port = (
                await instance.peer.listener.address_on("127.0.0.1")
            ).partition(":")
            _, writer = await asyncio.open_connection(host, int(port))
            writer.close()
            await writer.wait_closed()
            await eventually(lambda: world.registry.arrivals.in_vain(0.0))

        instance.probes = probe
        error = await failure(world, LaunchTimeout)
        assert error.slug == "launch-timeout"


async def test_one_that_is_slow_and_has_a_way_is_waited_for(
    no_task_is_left: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(launcher, "_UNHEARD_S", 0.1)
    asked = []
    async with World(connect_timeout_s=60) as world:

        async def boots(instance: FakeInstance) -> Exit:
            await asyncio.sleep(0.5)
            return await serves(instance)

        instance = world.builder.prepare(CCID, boots)

        async def probe() -> None:
            asked.append(CCID)

        instance.probes = probe
        await world.launch(CCID)
    assert asked == [CCID]


async def test_a_network_that_is_missing_is_told(hasty: World):
    instance = hasty.builder.prepare(CCID)
    instance.errors.append(NetworkMissing("no network 'blue'", network="blue"))
    error = await failure(hasty, NetworkMissing)
    assert (error.slug, error.facts["network"]) == ("network-missing", "blue")
    assert error.facts["phase"] == "create"


async def test_when_nothing_is_found_it_took_too_long(hasty: World):
    hasty.builder.prepare(CCID, never_registers)
    await failure(hasty, LaunchTimeout)


@pytest.mark.parametrize(
    "broken", [EngineUnavailable("gone", endpoint="x"), NotFound("no such network")]
)
async def test_looking_that_fails_changes_nothing(hasty: World, broken: Exception):
    async def probe() -> None:
        raise broken

    hasty.builder.prepare(CCID, never_registers).probes = probe
    await failure(hasty, LaunchTimeout)


async def test_looking_is_bounded(hasty: World, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(launcher, "_PROBE_S", 0.1)
    hasty.builder.prepare(CCID, never_registers).probes = asyncio.Event().wait  # type: ignore[assignment]
    async with asyncio.timeout(10):
        await failure(hasty, LaunchTimeout)


async def test_a_stop_ends_the_looking(hasty: World):
    begun, ended = asyncio.Event(), asyncio.Event()

    async def probe() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    instance = hasty.builder.prepare(CCID, never_registers)
    instance.probes = probe
    launch = asyncio.ensure_future(hasty.launch(CCID))
    async with asyncio.timeout(10):
        await begun.wait()
        await hasty.stop(CCID, 1)
        with pytest.raises(LaunchFailed, match="was stopped while it started"):
            await launch
    assert ended.is_set()
    assert not instance.running
    assert hasty.state() is LaunchState.DOWN


async def test_one_that_ends_by_itself_is_not_looked_for(hasty: World):
    async def probe() -> LaunchFailed:
        pytest.fail("its end tells enough")

    hasty.builder.prepare(CCID, dies_at_once).probes = probe
    await failure(hasty, ExitedEarly)


# --- TLS --------------------------------------------------------------------------------


async def test_one_that_connects_and_never_comes_through_tls_is_told(guarded: World):
    guarded.builder.prepare(CCID, speaks_no_tls_and_stays)
    error = await failure(guarded, TlsFailed)
    assert error.facts["handshakes"] == 1
    assert "the chaincode connected (connections seen: 1)" in error.message
    assert "CORE_PEER_TLS_ROOTCERT_FILE" in (error.hint or "")
    assert error.facts["phase"] == "connect"


async def test_one_that_ends_because_of_it_is_told_with_its_end(guarded: World):
    guarded.builder.prepare(CCID, speaks_no_tls_and_ends)
    error = await failure(guarded, TlsFailed)
    assert (error.facts["exit_code"], error.facts["cause"]) == (1, "exited")
    assert "container exited with 1" in error.message


@pytest.mark.parametrize(
    ("plays", "kind"), [(never_registers, LaunchTimeout), (dies_at_once, ExitedEarly)]
)
async def test_one_that_does_not_connect_is_no_matter_of_tls(
    guarded: World,
    plays: Callable[[FakeInstance], Awaitable[Exit]],
    kind: type[LaunchFailed],
):
    guarded.builder.prepare(CCID, plays)
    await failure(guarded, kind)


async def test_what_another_one_did_is_not_told_of_it(guarded: World):
    """Connections cannot be told apart by where they come from."""
    both = asyncio.Event()

    async def waits(instance: FakeInstance) -> Exit:
        both.set()
        return await never_registers(instance)

    async def breaks(instance: FakeInstance) -> Exit:
        await both.wait()
        return await speaks_no_tls_and_ends(instance)

    guarded.builder.prepare(CCID, waits)
    guarded.builder.prepare(OTHER, breaks)
    ends = await asyncio.gather(
        guarded.launch(CCID), guarded.launch(OTHER), return_exceptions=True
    )
    assert [type(one) for one in ends] == [LaunchTimeout, ExitedEarly]
