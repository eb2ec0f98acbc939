"""What chaincode in a container can and cannot do, on the real engine."""

from __future__ import annotations

import asyncio
import base64
from dataclasses import replace
from typing import Any

import pytest

from chaindock.container.attempt import Attempt, Phase
from chaindock.container.contracts import BuildEnvironment, ClientTls, RunSettings
from chaindock.errors import NotFound
from chaindock.values import MIB
from support.doubles.backend import WatchedAttempt, built
from support.doubles.scripts import hang, serve
from support.engines.docker_backend import DockerBackend, clean
from support.engines.docker_shell import run_shell, shell_package
from support.need import need_image
from support.nodes.remains import filter_rules
from support.nodes.targets import need_root

pytestmark = [pytest.mark.docker, pytest.mark.timeout(180)]
TLS = ClientTls("KEY\n", "CERT\n", "ROOT\n")
DIAL = (
    'timeout 3 bash -c "exec 3<>/dev/tcp/{0}/{1}" 2>/dev/null && echo open || echo shut'
)


def limited(backend: DockerBackend, **changes: Any) -> None:
    sandbox = replace(backend.options.sandbox, **changes)
    backend.options = replace(backend.options, sandbox=sandbox)


async def test_it_has_no_rights(backend: DockerBackend):
    lines, _ = await run_shell(
        backend,
        "id -u; id -g; grep -E '^(CapEff|CapPrm|CapBnd|NoNewPrivs)' /proc/self/status",
    )
    assert lines == [
        "501",
        "501",
        "CapPrm:\t0000000000000000",
        "CapEff:\t0000000000000000",
        "CapBnd:\t0000000000000000",
        "NoNewPrivs:\t1",
    ]


async def test_it_can_write_to_tmp_and_nowhere_else(backend: DockerBackend):
    lines, _ = await run_shell(
        backend,
        "for d in / /chaincode /usr/local/bin /etc /tmp $HOME; do\n"
        '(echo x > $d/probe) 2>/dev/null && echo "$d yes" || echo "$d no"; done',
    )
    assert lines == [
        "/ no",
        "/chaincode no",
        "/usr/local/bin no",
        "/etc no",
        "/tmp yes",
        "/tmp yes",
    ]


async def test_it_reaches_the_node_and_no_neighbour(backend: DockerBackend):
    served, package = await backend.built(
        serve(), serves=True, builder=await backend.builder()
    )
    async with backend.within():
        dial = await served.start(backend.peer, Attempt(package.ccid))
        host, _, port = dial.address.partition(":")  # type: ignore[union-attr]
        await _until_open(host, int(port))
        node = DIAL.format("${1%:*}", "${1#*:}")
        lines, _ = await run_shell(backend, f"{node}\n{DIAL.format(host, port)}\n")
        await served.stop(0)
    assert lines == ["open", "shut"]


async def test_what_outlives_the_node_on_its_network_stays_shut_in(
    backend: DockerBackend,
):
    """It may be chaincode that the engine would not end. The next start removes all."""
    need_root()
    controller = backend.controller("second")
    await controller.__aenter__()
    instance, package = await backend.built(hang(), builder=controller)
    async with backend.within():
        await instance.start(backend.peer, Attempt(package.ccid))
        assert "nothing else" in instance.describe()["isolation"]
        network = f"chaindock-{backend.node_id}-second"
        body = {"Image": need_image("runtime"), "Cmd": ["sleep", "60"]}
        host = {"HostConfig": {"NetworkMode": network}}
        other = await backend.engine.create_container(None, {**body, **host})
        try:
            await backend.engine.start_container(other)
            await controller.aclose()
            assert filter_rules(f"{backend.node_id}-second")
        finally:
            await backend.engine.remove_container(other)
        async with backend.controller("second") as again:
            await again.reap()
        assert filter_rules(f"{backend.node_id}-second") == []


async def test_where_the_filter_cannot_be_used_it_says_what_is_open(
    backend: DockerBackend,
):
    backend.options = replace(backend.options, path="/nowhere")
    dial = DIAL.format("${1%:*}", "$PORT")
    package = shell_package(backend.folder / "shell", dial)
    instance = await built(await backend.builder(), package, Attempt(package.ccid))
    async with backend.within():
        # The gateway is known when a first container has been started.
        await instance.start(backend.peer, Attempt(package.ccid))
        told = instance.describe()
        gateway = told["weaker"].partition(" or on ")[2].partition(":")[0]
        server = await asyncio.start_server(lambda _, out: out.close(), gateway)
        port = server.sockets[0].getsockname()[1]
        settings = RunSettings(env={"PORT": str(port)})
        attempt = WatchedAttempt(package)
        async with server:
            await instance.start(replace(backend.peer, settings=settings), attempt)
            await instance.wait()
            await instance.stop(0)
    assert told["isolation"] == "internal network: no route to other machines"
    assert "services of this machine" in told["weaker"]
    assert "no program 'iptables'" in told["weaker"]
    assert [line for _, line in attempt.lines] == ["open"]


async def test_it_reaches_no_other_network(backend: DockerBackend):
    # A listener that only this test has, on a bridge that is not the chaincode's.
    label = {"org.chaindock.node": f"{backend.node_id}-other"}
    engine = backend.engine
    other = await engine.create_network(
        {"Name": f"{backend.node_id}-other", "Driver": "bridge", "Labels": label}
    )
    inside = {
        "Image": backend.options.images["script"].builder,
        "Cmd": ["perl", "-MIO::Socket::INET", "-e", _LISTEN],
        "Labels": label,
        "HostConfig": {"NetworkMode": other},
    }
    try:
        target = await engine.create_container(None, inside)
        await engine.start_container(target)
        state = await engine.inspect_container(target)
        (net,) = state["NetworkSettings"]["Networks"].values()
        await _until_open(net["IPAddress"], 7777)
        lines, _ = await run_shell(backend, DIAL.format(net["IPAddress"], 7777))
    finally:
        await clean(engine, f"{backend.node_id}-other")
    assert lines == ["shut"]


async def test_it_resolves_no_names(backend: DockerBackend):
    lines, _ = await run_shell(
        backend, "getent hosts chaindock.invalid || echo none; cat /etc/resolv.conf"
    )
    assert lines[0] == "none"


async def test_too_much_memory_is_told_as_such(backend: DockerBackend):
    limited(backend, memory_bytes=48 * MIB)
    _, result = await run_shell(
        backend, "exec perl -e 'my $x = \"x\" x (200 * 1024 * 1024); print length $x'"
    )
    assert result.oom
    assert "memory" in result.reason


async def test_a_fork_bomb_stays_within_its_limit(backend: DockerBackend):
    limited(backend, pids=20)
    lines, _ = await run_shell(
        backend,
        "exec perl -e '$| = 1; my $n = 0; for (1..200) { my $p = fork; last unless defined $p;"
        ' if (!$p) { sleep 60; exit } $n++ } print "$n\\n"; kill 9, 0\'',
    )
    assert int(lines[0]) < 20


async def test_tls_files_arrive_on_a_read_only_root(backend: DockerBackend):
    attempt_folder = "/etc/hyperledger/fabric"
    lines, _ = await run_shell(
        backend,
        f"cd {attempt_folder}\nfor f in *; do echo $f $(cat $f); done\n"
        "echo x > client.key || echo read-only\n"
        'echo "$CORE_PEER_TLS_ENABLED $CORE_TLS_CLIENT_KEY_FILE"',
        replace(backend.peer, tls=TLS),
    )
    # The shell's own complaint comes on another stream, at any place in between.
    lines = [line for line in lines if "main.sh" not in line]
    assert lines[:5] == [
        f"client.crt {base64.b64encode(b'CERT' + chr(10).encode()).decode()}",
        f"client.key {base64.b64encode(b'KEY' + chr(10).encode()).decode()}",
        "client_pem.crt CERT",
        "client_pem.key KEY",
        "peer.crt ROOT",
    ]
    assert "read-only" in lines
    assert f"true {attempt_folder}/client_pem.key" in lines


async def test_tls_leaves_no_volume_behind(backend: DockerBackend):
    # Other tests make and remove volumes of the same engine at the same time.
    instance, package = await backend.built(hang())
    attempt = WatchedAttempt(package)
    async with backend.within():
        await instance.start(replace(backend.peer, tls=TLS), attempt)
        found = await backend.engine.inspect_container(instance.describe()["container"])
        (volume,) = [one["Name"] for one in found["Mounts"] if one["Type"] == "volume"]
        await backend.engine.call("GET", f"volumes/{volume}")
        await instance.stop(1)
    with pytest.raises(NotFound):
        await backend.engine.call("GET", f"volumes/{volume}")
    assert Phase.UPLOAD in attempt.entered


async def test_the_build_is_as_confined_and_keeps_its_secrets(backend: DockerBackend):
    package = shell_package(
        backend.folder / "p",
        "env | grep SECRET; echo done",
        # A build of its own: an earlier run that was ended may have left an equal image.
        build="id -u; grep CapEff /proc/self/status; echo $NPM_TOKEN\n"
        f": {backend.node_id}",
    )
    secrets = BuildEnvironment({"NPM_TOKEN": "SECRET-1"})
    attempt = WatchedAttempt(package)
    async with backend.within(), backend.controller(environment=secrets) as controller:
        instance = await built(controller, package, attempt)
        run = WatchedAttempt(package)
        await instance.start(backend.peer, run)
        await instance.wait()
        image = await backend.engine.inspect_image(instance.describe()["image"])
        history = await backend.engine.call("GET", f"images/{image['Id']}/history")
        await instance.stop(0)
    assert attempt.of("build") == ["500", "CapEff:\t0000000000000000", "SECRET-1"]
    assert [line for _, line in run.lines] == ["done"]
    assert "SECRET-1" not in f"{image} {history}"


_LISTEN = (
    "$s=IO::Socket::INET->new(LocalPort=>7777,Listen=>5) or die; while(1){$s->accept}"
)


async def _until_open(host: str, port: int) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                _, writer = await asyncio.open_connection(host, port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return
