"""`deploy`, `start`, `stop`, `rm`, `ps`, `logs`, `status`."""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from chaindock.cli.progress import watch_attempt
from chaindock.cli.ps import planned
from chaindock.cli.show import show_error, visible
from chaindock.errors import BuildFailed, ChaindockError, NodeError
from chaindock.ids import name_from_label


def test_deploy_shows_phases_on_standard_error_and_nothing_else(run, node, source):
    result = run("deploy", str(source))
    assert result.exit_code == 0
    assert result.stdout == ""
    assert "packaged 2 files as basic_1.0:" in result.stderr
    assert "  dependencies ...\n" in result.stderr
    assert "an earlier build is used again" in result.stderr
    assert "basic is running: version 1.0, basic_1.0:" in result.stderr
    assert "on process (no container engine answers), in 1.5 s" in result.stderr
    assert "fetching" not in result.stderr


def test_deploy_shows_the_build_on_demand_without_its_colours(run, node, source):
    result = run("deploy", "-v", str(source))
    assert "  | fetching red things\n" in result.stderr


def test_deploy_as_json_gives_the_deployment(run, node, source):
    result = run("deploy", str(source), "--name", "b", "--version", "2.0", "--json")
    body = json.loads(result.stdout)
    assert (body["name"], body["version"], body["sequence"]) == ("b", "2.0", 1)
    assert body["package_id"].startswith("b_2.0:")
    assert [phase for phase, _ in body["phases"]][-1] == "ready"


def test_package_file_and_directory_have_the_same_id(run, node, source, tmp_path):
    file = tmp_path / "p.tar.gz"
    made = run("package", str(source), "-o", str(file), "--label", "basic_1.0")
    by_file = run("deploy", str(file), "--json")
    by_folder = run("deploy", str(source), "--label", "basic_1.0", "--json")
    ids = {json.loads(one.stdout)["package_id"] for one in (by_file, by_folder)}
    assert ids == {made.stdout.strip()}


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("basic_1.0", "basic"),
        ("basic", "basic"),
        ("fab.car_v2.1-rc", "fab-car"),
        ("a_b_1", "a-b"),
        ("1.0", "1-0"),
        ("_9", "chaincode"),
    ],
)
def test_name_comes_from_the_label(label, name):
    assert name_from_label(label) == name


def test_failed_build_ends_with_4_and_everything_known(run, node, source):
    result = run("deploy", str(source), "--name", "broken")
    assert result.exit_code == 4
    lines = result.stderr.splitlines()
    assert any(line.startswith("  compile") and "FAILED" in line for line in lines)
    at = lines.index("error: chaincode 'broken' did not compile: go ended with 1")
    assert lines[at + 1].startswith("  phase   compile, after ")
    assert lines[at + 2].startswith("  times   dependencies ")
    assert lines[at + 3] == "  ended   exit code 1"
    assert lines[at + 4] == "  output  1 line"
    assert lines[-2] == "  | main.go:7: undefined: x"
    assert lines[-1] == "hint: correct main.go"


def test_failed_build_as_json_is_the_error(run, node, source):
    result = run("deploy", str(source), "--name", "broken", "--json")
    assert result.exit_code == 4
    body = json.loads(result.stdout)
    assert body["error"] == "build-failed"
    assert body["facts"]["phase"] == "compile"
    assert len(body["facts"]["output"]) == 1


def test_out_of_memory_is_said(run, node, source):
    result = run("deploy", str(source), "--name", "exits")
    assert "  ended   out of memory, signal SIGKILL\n" in result.stderr


def test_defect_of_the_node_ends_with_70(run, node, source):
    assert run("deploy", str(source), "--name", "defect").exit_code == 70


@pytest.mark.parametrize(
    ("args", "what"),
    [
        (["--name", "a b"], "invalid chaincode name"),
        (["--version", "a b"], "invalid chaincode version"),
        (["--label", "-"], "invalid label"),
    ],
)
def test_bad_names_end_with_5(run, node, source, args, what):
    result = run("deploy", str(source), *args)
    assert result.exit_code == 5
    assert what in result.stderr


def test_path_that_is_not_there_ends_with_5(run, node, tmp_path):
    result = run("deploy", str(tmp_path / "gone"))
    assert result.exit_code == 5
    assert "expected a source directory or a package file" in result.stderr


def test_file_that_is_no_package_is_named_with_the_next_step(run, node, tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("no package")
    result = run("deploy", str(file))
    assert result.exit_code == 5
    assert f"'{file}' is no package: " in result.stderr
    assert "chaindock package DIR" in result.stderr


def test_directory_without_chaincode_ends_with_5(run, node, tmp_path):
    (tmp_path / "empty").mkdir()
    assert run("deploy", str(tmp_path / "empty")).exit_code == 5


def test_next_after_init_required_is_the_init_call(run, node, source):
    """The command after `next:` works: before Init every other call is refused."""
    words = ("deploy", str(source), "--name", "basic", "--init-required")
    assert "invoke basic --init FUNCTION ARGS...\n" in run(*words).stderr
    assert "invoke basic FUNCTION ARGS...\n" in run(*words[:-1]).stderr


def test_deploy_says_when_nothing_changed(run, node, source):
    """`changed` is the node's word, in JSON and for people."""
    words = ("deploy", str(source), "--name", "basic")
    assert json.loads(run(*words, "--json").stdout)["changed"] is True
    assert "its definition did not change" not in run(*words, "--version", "2").stderr
    result = run(*words, "--version", "2")
    assert "in 1.5 s; its definition did not change\n" in result.stderr
    assert (
        json.loads(run(*words, "--version", "2", "--json").stdout)["changed"] is False
    )


@pytest.mark.parametrize(
    ("options", "label"),
    [
        ((), "basic_1.0"),
        (("--name", "other"), "other_1.0"),
        (("--version", "7"), "basic_7"),
        (("--name", "other", "--version", "7"), "other_7"),
        (("--label", "third_3"), "third_3"),
    ],
)
def test_default_label_is_what_the_help_says(run, node, source, options, label):
    """NAME_VERSION; the directory's name and 1.0 stand for what is not given."""
    assert f" as {label}:" in run("deploy", str(source), *options).stderr


def test_compiled_code_that_is_older_than_its_source_is_told(run, node, tmp_path):
    """A dist/ from before the last edit of src/ is deployed, with a warning."""
    source = tmp_path / "typed"
    scripts = {"start": "node dist/a.js", "build": "tsc"}
    source.mkdir()
    (source / "package.json").write_text(json.dumps({"scripts": scripts}))
    for folder, name, age in (("src", "a.ts", 10), ("dist", "a.js", 20)):
        (source / folder).mkdir()
        path = source / folder / name
        path.write_text("")
        os.utime(path, (time.time() - age,) * 2)
    told = "warning: dist/ is older than src/a.ts and is deployed as it is"
    assert told in run("deploy", str(source)).stderr
    os.utime(source / "dist" / "a.js")
    assert "older" not in run("deploy", str(source)).stderr


def test_a_program_that_is_started_by_hand_is_deployed_without_source(run, node):
    """`--dev NAME` defines the name and says how to start the program."""
    result = run("deploy", "--dev", "byhand")
    assert result.exit_code == 0
    assert "byhand is defined: version 1.0\n" in result.stderr
    assert (
        "CORE_CHAINCODE_ID_NAME=byhand:1.0 CORE_PEER_TLS_ENABLED=false "
        in result.stderr
    )
    body = json.loads(run("deploy", "--dev", "byhand", "--json").stdout)
    assert (body["package_id"], body["changed"]) == ("byhand:1.0", False)
    for wrong in ((), (".", "--dev", "a"), ("--dev", "a", "--name", "b")):
        assert run("deploy", *wrong).exit_code == 2


def test_containers_are_told_apart(run, basic):
    """Names that differ only in their last part are not cut to the same text."""
    prefix = "dev-peer0-0123456789abcdef-a-long-label_1.0-"
    for name, digit in (("a", "1"), ("b", "2")):
        details = {"container": prefix + digit * 64}
        basic.running[name] = replace(
            basic.running["basic"], name=name, details=details
        )
    shown = run("ps").stdout
    assert f"{prefix}{'1' * 12}\n" in shown
    assert f"{prefix}{'2' * 12}\n" in shown


def test_open_calls_are_listed(run, basic):
    """`ps --calls` shows each call, for how long, and whether its caller waits."""
    assert "no call is open" in run("ps", "--calls").stderr
    since = datetime.now(UTC) - timedelta(seconds=40)
    call = {
        "tx_id": "ab" * 32,
        "function": "slow",
        "since": since.isoformat(),
        "caller_left": True,
    }
    basic.running["basic"] = replace(basic.running["basic"], calls=[call])
    _, row = run("ps", "--calls").stdout.splitlines()
    assert row.split() == ["basic", "abababababab", "slow", "40", "s", "left"]
    assert json.loads(run("ps", "--json").stdout)[0]["calls"] == [call]


def test_ps_lists_what_is_deployed(run, basic):
    result = run("ps")
    head, row = result.stdout.splitlines()
    assert head.split() == [
        *("NAME", "VERSION", "SEQ", "STATE", "BACKEND", "SINCE", "PACKAGE", "WHERE")
    ]
    assert row.split()[:5] == ["basic", "1.0", "1", "running", "process"]
    assert row.endswith("pid 4711, none")
    (one,) = json.loads(run("ps", "--json").stdout)
    assert one["details"] == {"pid": "4711", "isolation": "none"}


def test_ps_of_nothing_says_so_beside_the_data(run, node):
    result = run("ps")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "no chaincode is deployed" in result.stderr
    assert json.loads(run("ps", "--json").stdout) == []


def test_stop_start_and_rm(run, basic):
    assert run("stop", "basic").exit_code == 0
    assert " stopped " in run("ps").stdout
    result = run("start", "basic", "--json")
    assert json.loads(result.stdout)["name"] == "basic"
    assert " running " in run("ps").stdout
    assert json.loads(run("rm", "basic", "--json").stdout) == {"removed": ["basic"]}
    assert run("rm", "basic").exit_code == 5


def test_start_takes_several_names(run, basic, source):
    """As `stop` and `rm` do; with --json several names give an array."""
    run("deploy", str(source), "--name", "other")
    assert run("stop", "basic", "other").exit_code == 0
    result = run("start", "basic", "other")
    assert result.exit_code == 0
    assert "basic is running" in result.stderr
    assert "other is running" in result.stderr
    body = json.loads(run("start", "basic", "other", "--json").stdout)
    assert [one["name"] for one in body] == ["basic", "other"]


def test_logs_are_the_lines_of_the_chaincode(run, basic):
    result = run("logs", "basic")
    assert result.stdout.splitlines() == [
        "fetching \x1b[31mred\x1b[0m things",
        "hello from chaincode",
    ]
    stamped = run("logs", "basic", "-t").stdout.splitlines()[1]
    assert stamped.endswith("Z stdout hello from chaincode")
    lines = run("logs", "basic", "--json").stdout.splitlines()
    assert json.loads(lines[1])["stream"] == "stdout"


def test_logs_of_the_attempt_before(run, basic, source):
    result = run("logs", "basic", "--previous")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "no earlier launch" in result.stderr
    run("start", "basic")
    assert "hello from chaincode" in run("logs", "basic", "--previous").stdout
    assert run("logs", "basic", "-f", "--previous").exit_code == 2


def test_status_shows_endpoints_and_warnings(run, node):
    result = run("status")
    assert "channel     mychannel, 1 block\n" in result.stdout
    assert "backend     process  (no container engine answers)\n" in result.stdout
    assert "warning: this node is in memory" in result.stderr
    assert json.loads(run("status", "--json").stdout)["node_id"] == "f00d"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J\x1b]0;title\x07gone", "gone"),
        ("a\rb", "a\\x0db"),
        ("\x9b31m", "\\x9b31m"),
        ("a\tb", "a   b"),
        ("\N{RIGHT-TO-LEFT OVERRIDE}", "\\x202e"),
        ("\N{SNOWMAN}", "\N{SNOWMAN}"),
    ],
)
def test_foreign_text_cannot_move_the_cursor(text, shown):
    assert visible(text) == shown


def test_phase_that_ended_before_its_error_came_is_shown_as_failed(capsys):
    def events() -> Iterator[dict[str, Any]]:
        yield {"event": "phase", "phase": "dependencies"}
        yield {"event": "phase-end", "phase": "dependencies", "seconds": 1}
        yield {"event": "phase", "phase": "compile"}
        yield {"event": "phase-end", "phase": "compile", "seconds": 2}
        yield {"event": "over"}
        raise BuildFailed("m", phase="compile")

    with pytest.raises(BuildFailed):
        watch_attempt(events())
    assert capsys.readouterr().err.splitlines() == [
        "  dependencies ...",
        "  dependencies    1.0 s",
        "  compile ...",
        "  compile         2.0 s  FAILED",
    ]


def test_stream_that_stops_without_an_end_is_an_error():
    with pytest.raises(NodeError):
        watch_attempt(iter([{"event": "phase", "phase": "start"}]))


def test_hashes_are_short_for_people_and_whole_in_json(capsys):
    error = BuildFailed(f"package basic_1:{'ab' * 32} is bad", hint="do")
    show_error(error, as_json=False)
    assert (
        capsys.readouterr().err
        == "error: package basic_1:abababababab is bad\nhint: do\n"
    )
    show_error(error, as_json=True)
    assert "ab" * 32 in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"state": "crash-loop", "failures": 3},
            "gave up after 3 failures in a row; to try again: chaindock start basic",
        ),
        ({"state": "back-off", "next_try": "2000-01-01T00:00:00Z"}, "next attempt now"),
        ({"state": "back-off", "next_try": "2999-01-01T00:00:00Z"}, "next attempt in "),
        ({"state": "running"}, ""),
    ],
)
def test_ps_says_what_comes_next(changes, told):
    said = planned({"name": "basic", **changes})
    assert said.startswith(told)
    assert bool(said) == bool(told)


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"cause": "exited", "exit_code": 7, "registered": True}, "exit code 7, after"),
        (
            {"cause": "not-found", "exit_code": 127, "registered": False},
            "exit code 127, there is no such program, before it registered",
        ),
        (
            {"cause": "engine-gone", "registered": True},
            "its engine does not answer, after",
        ),
        ({"cause": "oom", "oom": True, "signal": 9}, "out of memory, signal SIGKILL"),
    ],
)
def test_the_end_of_a_chaincode_is_told_in_words(capsys, facts, told):
    error = ChaindockError("it is over", retryable=True, **facts)
    show_error(error, as_json=False)
    shown = capsys.readouterr().err
    assert f"  ended   {told}" in shown
    assert "  later   a later attempt may succeed without a change" in shown
