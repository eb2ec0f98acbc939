"""What reaches terminals, logs and pipes that are closed or full."""

import subprocess

import pytest

from chaindock.cli import show
from support.program import command, on_terminal


def test_standard_output_that_is_closed_or_full_is_an_error_without_a_trace(
    chaindock, env, source
):
    """Data that was lost gives status 74 and one line on standard error."""
    chaindock("up", "-d")
    chaindock("deploy", str(source))
    for words in (("ps",), ("status", "--json"), ("query", "basic", "echo", "x")):
        for target, reason in (
            (">/dev/full", "No space left on device"),
            (">&-", "Bad file descriptor"),
        ):
            done = subprocess.run(
                ["/bin/sh", "-c", f'"$@" {target}', "sh", *command(*words)],
                env=env,
                capture_output=True,
                text=True,
                check=False,
            )
            told = done.stderr.splitlines()[-1]
            assert told == f"error: standard output cannot be written: {reason}"
            assert "Traceback" not in done.stderr
            assert done.returncode == 74


def test_a_reader_that_has_gone_before_the_first_line_is_no_error_on_the_screen(
    chaindock, env
):
    """`chaindock status | head -0` ends with 141 and without a word."""
    chaindock("up", "-d")
    words = command("status")
    with subprocess.Popen(
        words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as status:
        assert status.stdout is not None
        assert status.stderr is not None
        status.stdout.close()
        assert status.wait(20) == 141
        assert status.stderr.read() == b""


@pytest.mark.parametrize("setting", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_colours_are_not_sent_where_they_are_not_wanted(
    chaindock, env, source, setting
):
    """NO_COLOR and dumb terminals get no escape sequences, in errors neither."""
    chaindock("up", "-d")
    for words in (
        ("deploy", str(source)),
        ("deploy", str(source), "--name", "broken"),
        ("ps",),
        ("rm", "nothing"),
    ):
        _, screen = on_terminal(env, *words, **setting)
        assert screen
        assert "\x1b[3" not in screen
        if "TERM" in setting:
            assert "\x1b" not in screen


def test_a_payload_without_a_line_end_does_not_run_into_the_next_text(
    chaindock, env, source
):
    """In a log that takes both streams the note about the block has its own line.

    A pipe of its own gets the payload byte by byte.
    """
    chaindock("up", "-d")
    chaindock("deploy", str(source))
    words = command("invoke", "basic", "echo", "x")
    log = subprocess.run(
        words,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    ).stdout
    assert log.startswith("x\ntransaction ")
    assert chaindock("invoke", "basic", "echo", "x").stdout == "x"
    assert on_terminal(env, "query", "basic", "echo", "x")[1] == "x\r\n"
    assert on_terminal(env, "query", "basic", "echo", "x\n")[1] == "x\r\n"


def test_a_narrow_terminal_gets_all_columns_of_a_table(chaindock, env, source):
    """Columns that do not fit go to a second line; no line is broken in the middle."""
    chaindock("up", "-d")
    chaindock("deploy", str(source))
    _, screen = on_terminal(env, "ps", columns=56, NO_COLOR="1")
    head, more_head, row, more = screen.splitlines()
    assert head.split() == ["NAME", "VERSION", "SEQ", "STATE", "BACKEND", "SINCE"]
    assert more_head.split() == ["PACKAGE", "WHERE"]
    assert row.startswith("basic ")
    assert more.endswith("  pid 4711, none")
    assert max(map(len, screen.splitlines())) <= 56


def test_a_long_cell_breaks_at_spaces_and_keeps_names_whole(capsys, monkeypatch):
    monkeypatch.setattr(show, "width", lambda: 40)
    place = "dev-peer0-basic-1.0-0123456789abcdef, read-only, stream: mutual TLS"
    show.table([("basic", place)], NAME=lambda one: one[0], WHERE=lambda one: one[1])
    assert capsys.readouterr().out.splitlines() == [
        "NAME",
        "    WHERE",
        "basic",
        "    dev-peer0-basic-1.0-0123456789abcdef,",
        "    read-only, stream: mutual TLS",
    ]


def test_terminal_gets_a_mark_for_each_phase_and_the_build_on_demand(
    chaindock, env, source
):
    chaindock("up", "-d")
    status, screen = on_terminal(env, "deploy", "-v", str(source))
    assert status == 0
    for phase in ("dependencies", "compile", "ready"):
        assert f"✓\x1b[0m {phase}" in screen
    assert "fetching red things" in screen
    assert "an earlier build is used again" in screen
    status, screen = on_terminal(env, "deploy", str(source), "--name", "broken")
    assert status == 4
    assert "✗\x1b[0m compile" in screen


def test_terminal_gets_payload_and_logs_without_control_characters(
    chaindock, env, source
):
    chaindock("up", "-d")
    chaindock("deploy", str(source))
    assert on_terminal(env, "logs", "basic", "-t")[1].count("\x1b[31m") == 0
    chaindock("invoke", "basic", "put", "k", "a\x1b[2Jb\nc")
    assert on_terminal(env, "query", "basic", "get", "k") == (0, "ab\r\nc\r\n")
    assert "\x1b[32mrunning" in on_terminal(env, "ps")[1]


def test_text_that_does_not_fit_the_terminal_is_escaped(chaindock, env, source, home):
    env["PYTHONIOENCODING"] = "latin-1"
    chaindock("up", "-d")
    chaindock("deploy", str(source))
    (log,) = (home / "output").rglob("*.log")
    with log.open("a") as file:
        file.write("2026-11-24T10:00:00Z stdout \N{SNOWMAN}\n")
    assert "\\u2603" in chaindock("logs", "basic").stdout


def test_variables_on_a_screen_are_told_to_be_shown_and_not_set(chaindock, env):
    """Somebody who types `env peer` alone would else wonder why nothing changed."""
    chaindock("up", "-d")
    words = ("env", "peer", "--org", "Org1")
    assert 'eval "$(chaindock env peer --org Org1)"' in on_terminal(env, *words)[1]
    fish = on_terminal(env, *words, "--shell", "fish", columns=200)[1]
    assert "chaindock env peer --org Org1 --shell fish | source" in fish
    assert "shown" not in chaindock(*words).stderr
