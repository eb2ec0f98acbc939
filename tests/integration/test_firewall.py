"""Firewall rules that close this machine's end of a container network: real ones."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from chaindock.controllers.docker import firewall as under_test
from chaindock.controllers.docker.firewall import (
    FirewallRule,
    HostFirewall,
    firewall_problems,
)
from support.need import missing
from support.nodes.remains import filter_rules

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

PATH = "/usr/sbin:/sbin:/usr/bin:/bin"
RULE = FirewallRule("cd-nowhere0", "10.213.251.1", 4711)


def iptables(*args: str) -> None:
    subprocess.run(["iptables", "-w", "5", *args], check=True, timeout=20)


def rules_of(chain: str) -> list[str]:
    shown = subprocess.run(
        ["iptables", "-w", "5", "-S", chain], check=True, capture_output=True, text=True
    )
    return shown.stdout.splitlines()


@pytest.fixture
async def node() -> AsyncIterator[str]:
    if os.geteuid() != 0 or shutil.which("iptables", path=PATH) is None:
        missing("root and iptables are needed to set rules")
    name = f"test-{secrets.token_hex(4)}"
    yield name
    await HostFirewall(name, PATH).remove()
    assert filter_rules(name) == []


def inside(rules: list[str]) -> list[str]:
    """The rules of our chain, in order, of IPv4 and then of IPv6."""
    return [rule for rule in rules if rule.startswith("-A CHAINDOCK-")]


async def test_only_the_listener_is_left_open(node: str):
    assert await HostFirewall(node, PATH).enforce(RULE) == ""
    rules = filter_rules(node)
    let_pass = [rule for rule in inside(rules) if rule.endswith("-j ACCEPT")]
    open_ = [rule for rule in let_pass if "ESTABLISHED" not in rule]
    assert len(open_) == 1  # and no container has many connections there
    assert any("connlimit" in r and r.endswith("DROP") for r in inside(rules))
    assert "-d 10.213.251.1/32 -p tcp" in open_[0]
    assert "--dport 4711" in open_[0]
    assert inside(rules)[-1].endswith("-j DROP")
    hooks = [rule for rule in rules if not rule.startswith("-A CHAINDOCK-")]
    others = [rule for rule in hooks if "cd-nowhere0" not in rule]
    assert [rule.split(" -m ")[0] for rule in others] == [
        "-A INPUT -d 10.213.251.1/32 -p tcp"
    ]
    assert {rule.split()[1] for rule in hooks} == {"INPUT", "FORWARD", "OUTPUT"}


async def test_the_listener_is_reached_from_this_machine_and_its_bridge(node: str):
    assert await HostFirewall(node, PATH).enforce(RULE) == ""
    ours = inside(filter_rules(node))
    local, other = (n for n, rule in enumerate(ours) if " -i " in rule)
    assert "-i lo " in ours[local]
    assert ours[local].endswith("-j RETURN")
    assert "! -i cd-nowhere0 -p tcp" in ours[other]
    assert "REJECT" in ours[other]
    assert "-p tcp" in ours[other + 1], "the listener's own rules come after it"


async def test_a_lock_that_is_held_leaves_no_rule_out(
    node: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It says nothing of what the kernel can do: it is tried again, as a whole."""
    monkeypatch.setattr(under_test, "_RETRY_S", 0.0)
    for name in ("iptables", "ip6tables"):
        for program in (name, f"{name}-restore"):
            real = shutil.which(program, path=PATH)
            says = "Another app is currently holding the xtables lock"
            held = f'[ -e {tmp_path}/held ] && {{ echo "{says}" >&2; exit 4; }}'
            on = "" if program == name else held
            (tmp_path / program).write_text(f'#!/bin/sh\n{on}\nexec {real} "$@"\n')
            (tmp_path / program).chmod(0o755)
    host = HostFirewall(node, f"{tmp_path}:{PATH}")
    (tmp_path / "held").touch()
    assert await host.enforce(RULE) != ""
    assert filter_rules(node) == []
    (tmp_path / "held").unlink()
    assert await host.enforce(RULE) == ""
    assert host.open_to_users == ""
    for which in ("OUTPUT", "connlimit"):
        assert any(which in rule for rule in filter_rules(node))


async def test_only_the_user_of_the_node_connects_onto_the_bridge(node: str):
    host = HostFirewall(node, PATH)
    assert await host.enforce(RULE) == ""
    assert host.open_to_users == ""
    out = [rule for rule in filter_rules(node) if rule.startswith("-A OUTPUT")]
    assert out
    for rule in out:  # a rule for each family of addresses
        assert f"-o {RULE.interface} -p tcp" in rule
        assert "FIN,SYN,RST,ACK SYN" in rule  # what is open already goes on
        assert f"! --uid-owner {os.geteuid()} " in rule
        assert "-j REJECT" in rule


async def test_connections_are_counted_for_each_address(node: str):
    rule = FirewallRule(RULE.interface, "fd00:213::1", RULE.port)
    for gateway, bits in ((RULE, "32"), (rule, "128")):
        assert await HostFirewall(node, PATH).enforce(gateway) == ""
        (crowd,) = (rule for rule in filter_rules(node) if "connlimit" in rule)
        assert f"--connlimit-mask {bits} " in crowd
        assert f"-d {gateway.address}/{bits} " in crowd


async def test_asking_again_changes_nothing(node: str):
    host = HostFirewall(node, PATH)
    await host.enforce(RULE)
    before = filter_rules(node)
    assert await host.enforce(RULE) == ""
    assert filter_rules(node) == before


async def test_another_port_takes_the_place_of_the_first(node: str):
    host = HostFirewall(node, PATH)
    await host.enforce(FirewallRule(RULE.interface, RULE.address, None))
    count = len(filter_rules(node))
    await host.enforce(RULE)
    rules = filter_rules(node)
    assert len(rules) == count + 5
    assert any("--dport 4711" in rule for rule in rules)


async def test_rules_that_somebody_flushed_are_put_back(node: str):
    host = HostFirewall(node, PATH)
    await host.enforce(RULE)
    before = filter_rules(node)
    hook = next(rule for rule in before if rule.startswith("-A INPUT"))
    iptables("-D", *hook.replace('"', "").split()[1:])
    assert filter_rules(node) != before
    assert await host.enforce(RULE) == ""
    assert len(filter_rules(node)) == len(before)


async def test_our_rule_comes_before_one_that_was_added_later(node: str):
    host = HostFirewall(node, PATH)
    await host.enforce(RULE)
    foreign = ["INPUT", "-i", "cd-foreign0", "-m", "comment"]
    foreign += ["--comment", f"not a chaindock: {node}", "-j", "ACCEPT"]
    iptables("-I", *foreign)
    try:
        assert await host.enforce(RULE) == ""
        order = [rule for rule in rules_of("INPUT") if node in rule]
        assert all(f'"chaindock:{node}"' in rule for rule in order[:2])
        # Somebody else's rule stays, now and at the end.
        assert "cd-foreign0" in order[2]
        await host.remove()
    finally:
        iptables("-D", *foreign)


async def test_nothing_lets_pass_what_is_forwarded_before_our_rule(node: str):
    """Engines put rules of their own first when they make a network, or start again."""
    host = HostFirewall(node, PATH)
    await host.enforce(RULE)
    foreign = ["FORWARD", "-i", RULE.interface, "-j", "ACCEPT"]
    iptables("-I", *foreign)
    try:
        assert await host.enforce(RULE) == ""
        order = [rule for rule in rules_of("FORWARD") if RULE.interface in rule]
        assert [f"chaindock:{node}" in rule for rule in order] == [True, True, False]
        before = filter_rules(node)
        assert await host.enforce(RULE) == ""
        assert filter_rules(node) == before
    finally:
        iptables("-D", *foreign)


async def test_nothing_lets_others_connect_before_our_rule(node: str):
    host = HostFirewall(node, PATH)
    await host.enforce(RULE)
    foreign = ["OUTPUT", "-o", RULE.interface, "-j", "ACCEPT"]
    iptables("-I", *foreign)
    try:
        assert await host.enforce(RULE) == ""
        order = [rule for rule in rules_of("OUTPUT") if RULE.interface in rule]
        assert [f"chaindock:{node}" in rule for rule in order] == [True, False]
    finally:
        iptables("-D", *foreign)


async def test_what_a_killed_node_left_is_found(node: str):
    await HostFirewall(node, PATH).enforce(RULE)
    await HostFirewall(f"{node}x", PATH).remove()  # another node's
    assert filter_rules(node)
    await HostFirewall(node, PATH).remove()
    assert filter_rules(node) == []


async def test_nodes_do_not_meet(node: str):
    second = f"{node}-b"
    hosts = [HostFirewall(name, PATH) for name in (node, second)]
    try:
        said = await asyncio.gather(*(host.enforce(RULE) for host in hosts))
        assert said == ["", ""]
        assert len(filter_rules(second)) == len(filter_rules(f'{node}"'))
    finally:
        await hosts[1].remove()
    assert filter_rules(node)


# --- where it cannot be done ------------------------------------------------------------


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], str]:
    """Return a function that makes an iptables of a given text, and gives its PATH."""

    def make(text: str) -> str:
        for name in ("iptables", "ip6tables", "iptables-restore", "ip6tables-restore"):
            path = tmp_path / name
            path.write_text(f"#!/bin/sh\n{text}\n")
            path.chmod(0o755)
        return str(tmp_path)

    return make


async def test_no_program_is_said(tmp_path: Path):
    assert "'iptables'" in await HostFirewall("n", str(tmp_path)).enforce(RULE)
    assert "'iptables'" in (await firewall_problems(str(tmp_path)))[0]
    await HostFirewall("n", str(tmp_path)).remove()


async def test_no_rights_are_said(program: Callable[[str], str]):
    path = program("echo 'Fatal: can not open lock: Permission denied' >&2; exit 4")
    assert (
        await HostFirewall("n", path).enforce(RULE)
        == "iptables needs root or CAP_NET_ADMIN"
    )


async def test_its_own_words_are_handed_on(program: Callable[[str], str]):
    path = program("echo 'iptables: No chain/target/match by that name.' >&2; exit 1")
    assert "No chain/target/match" in await HostFirewall("n", path).enforce(RULE)


async def test_a_kernel_that_cannot_tell_users_apart_gives_the_other_walls(
    node: str, program: Callable[[str], str]
):
    words = "Warning: Extension owner revision 0 not supported, missing kernel module?"
    path = program(
        f'case "$*" in *uid-owner*) echo "{words}" >&2; exit 4;; esac; '
        f'PATH={PATH} exec "${{0##*/}}" "$@"'
    )
    host = HostFirewall(node, path)
    assert await host.enforce(RULE) == ""
    assert "Extension owner" in host.open_to_users
    rules = filter_rules(node)
    assert {rule.split()[1] for rule in rules} >= {"INPUT", "FORWARD"}
    assert await host.enforce(RULE) == ""
    assert filter_rules(node) == rules
    found = await firewall_problems(path)
    assert found[0] == ""
    assert "Extension owner" in found[1]


async def test_whether_users_can_be_told_apart_is_seen_without_a_change(node: str):
    before = rules_of("OUTPUT")
    assert await firewall_problems(PATH) == ("", "")
    assert rules_of("OUTPUT") == before


async def test_a_program_that_hangs_does_not_hold_up(
    program: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(under_test, "_LIMIT_S", 0.3)
    began = time.monotonic()
    host = HostFirewall("n", program("exec sleep 60"))
    assert "longer than" in await host.enforce(RULE)
    assert time.monotonic() - began < 20
    monkeypatch.setattr(under_test, "_LIMIT_S", 60)
    assert "longer than" in await host.enforce(
        RULE
    )  # known by now, and not tried again
    assert time.monotonic() - began < 30


async def test_what_was_done_before_it_failed_is_undone(
    node: str, program: Callable[[str], str]
):
    path = program(
        'case "$0" in *ip6tables-restore) exit 3;; esac; '
        f'PATH={PATH} exec "${{0##*/}}" "$@"'
    )
    assert await HostFirewall(node, path).enforce(RULE) != ""
    assert filter_rules(node) == []


async def test_rules_in_force_stay_when_they_cannot_be_looked_at(
    node: str, program: Callable[[str], str], tmp_path: Path
):
    """Others run behind them: a lock that is held must not let these out."""
    once = tmp_path / "once"
    path = program(
        f'rm {once} 2>/dev/null && exit 4; PATH={PATH} exec "${{0##*/}}" "$@"'
    )
    host = HostFirewall(node, path)
    assert await host.enforce(RULE) == ""
    before = filter_rules(node)
    once.touch()
    assert await host.enforce(RULE) != ""
    assert not once.exists()
    assert filter_rules(node) == before
