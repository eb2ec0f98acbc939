"""The program as a process: `up`, `down`, signals, pipes."""

import json
import os
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from chaindock.cli.client import AdminClient
from chaindock.cli.node import find_process
from chaindock.errors import NodeNotRunning
from chaindock.node.home import Home
from chaindock.operations.address import find_socket, opened_socket
from chaindock.processes.table import is_alive
from support.program import command, wait_for


def the_node(home: Path) -> psutil.Process:
    process = find_process(home)
    assert process is not None
    return process


def test_up_detached_returns_when_it_is_ready_and_down_when_it_is_gone(chaindock, home):
    up = chaindock("up", "-d", "--json")
    assert up.returncode == 0, up.stderr
    assert up.stderr == ""
    pid = json.loads(up.stdout)["pid"]
    process = psutil.Process(pid)
    assert chaindock("ps").returncode == 0
    # In a session of its own: the end of the terminal is not its end.
    assert os.getsid(pid) == pid

    down = chaindock("down")
    assert down.returncode == 0
    assert "has stopped" in down.stderr
    assert not is_alive(process)
    assert not find_socket(home).exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_deploy_that_is_ended_leaves_no_file(
    chaindock, env, source, tmp_path, number
):
    env["TMPDIR"] = str(tmp_path / "temp")
    (tmp_path / "temp").mkdir()
    assert chaindock("up", "-d").returncode == 0
    deploy = subprocess.Popen(
        command("deploy", str(source), "--name", "slow"),
        env=env,
        stderr=subprocess.PIPE,
    )
    with deploy:
        assert deploy.stderr is not None
        assert b"packaged" in deploy.stderr.readline()
        deploy.send_signal(number)
        assert deploy.wait(10) == -number
    assert list((tmp_path / "temp").iterdir()) == []


def test_up_detached_on_a_running_node_is_success(chaindock):
    """The node runs, so the wish is fulfilled; options that do nothing are told."""
    first = json.loads(chaindock("up", "-d", "--json").stdout)
    again = chaindock("up", "-d", "--backend", "docker")
    assert again.returncode == 0
    assert f"process {first['pid']}" in again.stdout
    assert "the node runs already\n" in again.stderr
    assert (
        "the running node ignores these options; stop it first: chaindock"
        in again.stderr
    )


def test_down_without_a_node_is_content(chaindock, home):
    down = chaindock("down")
    assert (down.returncode, down.stdout) == (0, "")
    assert "no node is running" in down.stderr
    assert json.loads(chaindock("down", "--json").stdout) == {
        "stopped": False,
        "home": str(home),
    }


def test_down_after_a_kill_finds_no_node_and_up_works_again(chaindock, home):
    pid = json.loads(chaindock("up", "-d", "--json").stdout)["pid"]
    process = psutil.Process(pid)
    process.kill()
    wait_for(lambda: not is_alive(process))
    assert find_socket(home).exists()
    assert "no node is running" in chaindock("down").stderr
    assert chaindock("ps").returncode == 3
    assert chaindock("up", "-d").returncode == 0


def test_a_node_that_dies_while_it_is_asked_is_none_that_runs(home):
    """`up` right after a kill: the system resets what the node had accepted."""
    home.mkdir(exist_ok=True)
    with opened_socket(home) as listener:
        listener.setblocking(True)
        listener.listen()

        def die():
            accepted, _ = listener.accept()
            listener.close()
            accepted.close()  # what was not read resets the connection

        with ThreadPoolExecutor(1) as thread:
            dying = thread.submit(die)
            with pytest.raises(NodeNotRunning, match="no node is running"):
                AdminClient(home).status()
            dying.result(10)


def test_a_lock_that_nobody_holds_is_not_believed(home):
    (home / "node.lock").write_text(f"{os.getpid()}\n")
    assert find_process(home) is None


def test_who_holds_the_lock_is_found_whatever_the_clock_says(home):
    with Home(home).locked():
        os.utime(home / "node.lock", (1, 1))
        assert the_node(home).pid == os.getpid()
    assert find_process(home) is None


@pytest.mark.parametrize("text", ["", "x", "-1", "999999999", "\xff"])
def test_lock_without_a_process_is_no_node(home, text):
    (home / "node.lock").write_text(text)
    assert find_process(home) is None


def test_several_homes_are_several_nodes(chaindock, home):
    other = str(home.parent / "other")
    first = json.loads(chaindock("up", "-d", "--json").stdout)
    second = json.loads(chaindock("up", "-d", "--home", other, "--json").stdout)
    assert first["pid"] != second["pid"]
    assert second["home"] == other
    assert chaindock("down", "--home", other).returncode == 0
    assert chaindock("status").returncode == 0


def test_error_of_a_detached_node_is_told(chaindock):
    up = chaindock("up", "-d", "--set", "chaindock.domain=refuses.example")
    assert up.returncode == 3
    assert up.stderr == "error: home is served by process 1\nhint: chaindock down\n"


def test_detached_node_that_dies_shows_the_end_of_its_log(chaindock, home):
    up = chaindock("up", "-d", "--set", "chaindock.domain=dies.example")
    assert up.returncode == 3
    assert "ended before it was ready (exit code 7)" in up.stderr
    assert "  | something went wrong before it could be told" in up.stderr
    assert str(home / "node.log") in up.stderr


def test_bad_setting_is_told_by_a_detached_node_too(chaindock):
    up = chaindock("up", "-d", "--set", "chaindock.chanel=x", "--json")
    assert up.returncode == 5
    body = json.loads(up.stdout)
    assert body["error"] == "config-invalid"
    assert body["hint"] == "did you mean 'chaindock.channel'?"


def test_a_configuration_elsewhere_counts_when_it_is_named(chaindock, env, tmp_path):
    (tmp_path / "fabric").mkdir()
    (tmp_path / "fabric" / "core.yaml").write_text(
        "chaindock: {domain: refuses.example}\n"
    )
    named = ("--config", "fabric")
    assert chaindock("up", "-d", *named, cwd=tmp_path).returncode == 3
    shown = chaindock("config", "show", "--changed", "--json", *named, cwd=tmp_path)
    found = json.loads(shown.stdout)["settings"]
    assert {"chaindock.domain": "refuses.example"}.items() <= {
        one["key"]: one["value"] for one in found
    }.items()
    gone = chaindock("doctor", "--config", "nowhere", cwd=tmp_path)
    assert "there is no core.yaml" in gone.stdout
    # What a shell has for the `peer` command is nothing to the node.
    env["FABRIC_CFG_PATH"] = str(tmp_path / "fabric")
    assert chaindock("up", "-d").returncode == 0


def test_home_that_cannot_be_made_ends_with_3(chaindock, home):
    (home / "file").write_text("")
    up = chaindock("up", "-d", "--home", str(home / "file" / "x"))
    assert up.returncode == 3
    assert "cannot be written" in up.stderr


def test_interrupted_up_ends_the_node_that_was_starting(chaindock, env, home):
    args = command("up", "-d", "--set", "chaindock.domain=never.example")
    with subprocess.Popen(args, env=env, stderr=subprocess.PIPE, text=True) as up:
        log = home / "node.log"
        wait_for(lambda: log.exists() and "never ready" in log.read_text())
        (node,) = psutil.Process(up.pid).children()
        up.send_signal(signal.SIGINT)
        assert up.wait(10) == 130
    assert not is_alive(node)


def test_node_that_does_not_stop_is_killed_only_on_demand(chaindock, home):
    chaindock("up", "-d", "--set", "chaindock.domain=stays.example")
    process = the_node(home)
    down = chaindock("down", "--timeout", "0.5")
    assert down.returncode == 3
    assert f"(process {process.pid}) has not stopped after 0.5 s" in down.stderr
    assert is_alive(process)
    assert chaindock("down", "--timeout", "0.5", "--force").returncode == 0
    assert not is_alive(process)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_foreground_node_ends_cleanly_on_a_signal(env, home, number):
    with subprocess.Popen(
        command("up"),
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as up:
        assert up.stdout is not None
        assert up.stdout.readline().startswith("node ")
        up.send_signal(number)
        _, errors = up.communicate(timeout=10)
        assert up.returncode == 0
        assert "Traceback" not in errors
    assert not find_socket(home).exists()


def test_foreground_node_ends_when_it_is_asked_to(chaindock, env):
    with subprocess.Popen(
        command("up", "--json"), env=env, stdout=subprocess.PIPE, text=True
    ) as up:
        assert up.stdout is not None
        assert up.stdout.readline() == "{\n"
        assert chaindock("down").returncode == 0
        assert up.wait(10) == 0


def test_reader_that_leaves_is_no_error_on_the_screen(chaindock, env, home, source):
    chaindock("up", "-d")
    chaindock("deploy", str(source))
    (log,) = (home / "output").rglob("*.log")
    with log.open("a") as file:
        file.write("2026-11-24T10:00:00Z stdout more\n" * 50_000)
    with subprocess.Popen(
        command("logs", "basic"),
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as logs:
        assert logs.stdout is not None
        assert logs.stderr is not None
        logs.stdout.readline()
        logs.stdout.close()
        assert logs.wait(10) == 141
        assert logs.stderr.read() == b""


@pytest.mark.parametrize("by", ["ctrl-c", "down"])
def test_followed_logs_end_with_whoever_ends_them(chaindock, env, source, by):
    chaindock("up", "-d")
    chaindock("deploy", str(source))
    with subprocess.Popen(
        command("logs", "basic", "-f"),
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as logs:
        assert logs.stdout is not None
        logs.stdout.readline()
        if by == "down":
            assert chaindock("down").returncode == 0
        else:
            logs.send_signal(signal.SIGINT)
        _, errors = logs.communicate(timeout=10)
    assert (logs.returncode, errors) == (0, "")


def test_interrupted_deploy_ends_with_130_and_stops_in_the_node(chaindock, env, source):
    chaindock("up", "-d")
    with subprocess.Popen(
        command("deploy", str(source), "--name", "slow"),
        env=env,
        stderr=subprocess.PIPE,
        text=True,
    ) as deploy:
        assert deploy.stderr is not None
        while "dependencies" not in deploy.stderr.readline():
            pass
        deploy.send_signal(signal.SIGINT)
        errors = deploy.stderr.read()
        assert deploy.wait(10) == 130
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    "words", [("deploy", "--name", "slow"), ("logs", "basic", "-f")]
)
def test_a_node_that_dies_meanwhile_is_told(chaindock, env, home, source, words):
    """needs.md row 20: what ends with the node must not look like an end of its own."""
    chaindock("up", "-d")
    chaindock("deploy", str(source))
    rest = (str(source),) if words[0] == "deploy" else ()
    with subprocess.Popen(
        command(*words, *rest),
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as program:
        assert program.stdout is not None
        first = "dependencies" if rest else "hello from chaincode"
        while first not in program.stdout.readline():
            pass
        the_node(home).kill()
        said = program.stdout.read()
        assert program.wait(10) == 3
    assert f"the node of home {str(home)!r} stopped or does not answer" in said
    assert "hint: read the end of its log" in said
    assert "Traceback" not in said


def test_demo_with_a_wrong_answer_fails_and_leaves_nothing(chaindock, env, tmp_path):
    env["TMPDIR"] = str(tmp_path / "tmp")
    (tmp_path / "tmp").mkdir()
    env["CORE_CHAINDOCK_DOMAIN"] = "forgets.example"
    demo = chaindock("demo")
    assert demo.returncode == 1
    assert "the example and the node disagree" in demo.stderr
    assert list((tmp_path / "tmp").iterdir()) == []


def test_demo_without_images_runs_its_own_contract_as_a_process_and_says_so(
    chaindock, env
):
    """Without --backend the demo may choose; a back end that was named is kept."""
    env["CORE_CHAINDOCK_DOMAIN"] = "imageless.example"
    demo = chaindock("demo")
    assert demo.returncode == 0, demo.stderr
    told = "no container is possible: the engine has no image 'python:3'\n"
    assert told in demo.stdout
    assert "runs as a process instead" in demo.stdout
    demo = chaindock("demo", "--backend", "docker")
    assert demo.returncode != 0
    assert "error: the engine has no image 'python:3'" in demo.stderr
    env["CORE_CHAINDOCK_BACKEND"] = "docker"
    assert "error: the engine has no image 'python:3'" in chaindock("demo").stderr
    env["CORE_CHAINDOCK_BACKEND"] = "process"
    demo = chaindock("demo")
    assert demo.returncode == 0, demo.stderr
    assert "no container is possible" not in demo.stdout


def test_demo_tells_phases_answers_and_blocks(chaindock, env, home, tmp_path):
    env["TMPDIR"] = str(tmp_path / "tmp")
    (tmp_path / "tmp").mkdir()
    demo = chaindock("demo")
    assert demo.returncode == 0, demo.stderr
    assert "chaincode runs on process (no container engine answers)" in demo.stdout
    assert "  dependencies ...\n" in demo.stderr
    assert "refused: P1 is registered already" in demo.stdout
    assert demo.stdout.endswith("done. Node and home are removed.\n")
    assert list((tmp_path / "tmp").iterdir()) == []
    assert list(home.iterdir()) == []

    body = json.loads(chaindock("demo", "--json", "--contract", "all").stdout)
    assert [one["name"] for one in body["deployments"]] == [
        *("coldchain-python", "coldchain-node", "coldchain-go")
    ]
    assert len(body["calls"]) == 12
    assert len(body["blocks"]) == 7
