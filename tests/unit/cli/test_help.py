"""Help, start-up, completion, and the table of exit statuses."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from chaindock import errors
from chaindock.cli.main import COMMANDS, GROUPS, root
from chaindock.cli.session import Session
from chaindock.cli.show import Exit, exit_status

LEAVES = [
    (name, *sub)
    for name in COMMANDS
    if name != "config"
    for command in [root.get_command(click.Context(root, obj=Session()), name)]
    for sub in (
        [(one,) for one in command.commands]
        if isinstance(command, click.Group)
        else [()]
    )
]
"""The words of each command that does something, `config show` apart."""
SLOW = {
    *("aiohttp", "grpc", "rich", "yaml", "structlog", "asyncio", "psutil", "json"),
    "prometheus_client",
}


def test_help_imports_click_and_nothing_slow():
    program = (
        "import sys\n"
        "from chaindock.cli.main import root\n"
        "try:\n    root(['--help'], prog_name='chaindock')\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "print(*{name.split('.')[0] for name in sys.modules}, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={},  # a coverage run would import more
    )
    assert SLOW & set(done.stderr.split()) == set()
    assert "chaindock deploy DIR" in done.stdout


def test_client_commands_start_without_server_libraries(home):
    program = (
        "import sys\n"
        "from chaindock.cli.main import root\n"
        "try:\n    root(['--home', sys.argv[1], 'ps'], prog_name='chaindock')\n"
        "except SystemExit as end:\n    assert end.code == 3\n"
        "print(*{name.split('.')[0] for name in sys.modules})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(home)],
        capture_output=True,
        text=True,
        check=True,
        env={},
    )
    loaded = set(done.stdout.split())
    assert SLOW - {"json", "psutil"} & loaded == set()


@pytest.mark.parametrize("name", COMMANDS)
def test_command_says_in_the_list_what_its_own_help_says(name):
    context = click.Context(root, obj=Session())
    command = root.get_command(context, name)
    assert command is not None
    assert command.name == name
    assert (command.help or "").splitlines()[0] == COMMANDS[name][1]


@pytest.mark.parametrize("name", sorted({words[0] for words in LEAVES if words[1:]}))
def test_a_group_tells_of_each_command_a_whole_sentence(run, name):
    assert "..." not in run(name, "--help").stdout.partition("Commands:")[2]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("ps",), "Only chaincodes of this channel. [default: of all]"),
        (("state", "put"), "NAME KEY [VALUE]"),
        (("query",), "chaincode.executetimeout, which is 30s at first]"),
        (("up",), "size=N (transactions) or manual. [default: auto]"),
    ],
)
def test_help_names_defaults_and_values(run, words, told):
    assert told in " ".join(run(*words, "--help").stdout.split())


def leaf(words: tuple[str, ...]) -> click.Command:
    command: click.Command = root
    for word in words:
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(command, obj=Session()), word)
        assert found is not None
        command = found
    return command


@pytest.mark.parametrize("words", LEAVES)
def test_every_command_takes_home_and_json(words):
    command = leaf(words)
    options = {opt for param in command.params for opt in param.opts}
    assert {"--home", "--json"} <= options


def test_unknown_command_is_a_usage_error(run):
    result = run("depoly")
    assert result.exit_code == 2
    assert "No such command 'depoly'. Did you mean 'deploy'?" in result.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("depoly", "--json"), "Did you mean 'deploy'?"),
        (("ps", "--jsn", "--json"), "No such option '--jsn'"),
        (("--json", "query", "basic"), "Missing argument 'FUNCTION'"),
        (("query", "basic", "f", "--transient", "x", "--json"), "expected KEY=VALUE"),
    ],
)
def test_usage_errors_are_json_where_json_is_asked_for(run, words, told):
    """A script that reads standard output gets an object for every kind of error."""
    result = run(*words)
    assert result.exit_code == 2
    body = json.loads(result.stdout)
    assert body["error"] == "invalid-input"
    assert told in body["message"]
    assert body["hint"].endswith("--help")
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("reset", "--yes", "--home", ""), "Invalid value for '--home': it is empty"),
        (("state", "ls", "--channel", ""), "Invalid value for '-C' / '--channel': it"),
        (("channel", "rm", "", "--yes"), "a name is empty"),
        (("state", "put", "", "k", "v"), "a name is empty"),
    ],
)
def test_a_variable_that_is_not_set_means_no_default(run, words, told):
    """`--home "$HERE"` must not reset the home of the user."""
    result = run(*words)
    assert result.exit_code in {2, 5}
    assert told in result.stderr


def test_json_behind_the_dashes_is_an_argument_also_in_errors(run):
    """`--json` after `--` belongs to the chaincode: the error stays text."""
    result = run("query", "--jsn", "--", "basic", "f", "--json")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--jsn" in result.stderr


def test_help_shows_commands_in_groups(run):
    """A reader of the help finds related commands side by side."""
    text = run("--help").stdout
    at = [text.index(f"\n{heading}:\n") for heading in GROUPS]
    assert at == sorted(at)
    assert text.index("  up ") < text.index("\nChaincode:\n") < text.index("  deploy ")


@pytest.mark.parametrize("names", LEAVES)
def test_every_command_shows_examples_that_it_takes(run, names):
    """Each example in a command's help can be parsed by that command."""
    text = run(*names, "--help").stdout
    examples = text.partition("\n  Examples:\n")[2].strip().splitlines()
    assert examples
    for line in examples:
        shown = line.strip()
        if shown.startswith('eval "$('):
            shown = shown.removeprefix('eval "$(').replace(')"', " ")
        shown = shown.partition(" > ")[0].partition(" | ")[0]
        words = shlex.split(shown, comments=True)
        assert words[: len(names) + 1] == ["chaindock", *names]
        given = words[len(names) + 1 :]
        leaf(names).make_context(names[-1], given, obj=Session())


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_the_script_of_a_shell(run, shell):
    """The script asks the program for completions."""
    result = run("completion", shell)
    assert result.exit_code == 0
    assert f"_CHAINDOCK_COMPLETE={shell}_complete" in result.stdout


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("chaindock de", {"deploy", "demo"}),
        ("chaindock stop b", {"basic"}),
        ("chaindock query ", {"basic"}),
        ("chaindock stop basic --j", {"--json"}),
        ("chaindock completion ", {"bash", "zsh", "fish"}),
        ("chaindock state ex", {"export"}),
        ("chaindock state get b", {"basic"}),
        ("chaindock events ", {"basic"}),
    ],
)
def test_completion_knows_commands_options_and_chaincodes(home, basic, line, wanted):
    """What a shell offers after TAB."""
    assert completed(home, line) == wanted


def test_completion_without_a_node_is_silent(home):
    """Nothing is offered and nothing is written on the user's prompt."""
    assert completed(home, "chaindock stop ") == set()


def completed(home: Path, line: str) -> set[str]:
    words = line.split(" ")
    done = subprocess.run(
        [sys.executable, "-m", "chaindock"],
        capture_output=True,
        text=True,
        check=True,
        env={
            "CHAINDOCK_HOME": str(home),
            "_CHAINDOCK_COMPLETE": "bash_complete",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(words) - 1),
        },
    )
    assert done.stderr == ""
    return {item.partition(",")[2] for item in done.stdout.split()}


def test_help_lists_every_exit_status(run):
    text = " ".join(run("--help").stdout.split()) + " "
    for status in Exit:
        assert f" {int(status)} {status.meaning} " in text


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (errors.BuildFailed, 4),
        (errors.RegistrationRefused, 4),
        (errors.ExecuteTimeout, 1),
        (errors.ChaincodeError, 1),
        (errors.EngineUnavailable, 6),
        (errors.ToolMissing, 6),
        (errors.NodeNotRunning, 3),
        (errors.NodeAlreadyRunning, 3),
        (errors.ConfigInvalid, 5),
        (errors.NotFound, 5),
        (errors.Denied, 5),
        (errors.Unsupported, 5),
        (errors.LedgerCorrupt, 70),
        (errors.ChaindockError, 70),
    ],
)
def test_error_gives_its_exit_status(kind, status):
    assert exit_status(kind("m")) == status


def test_defect_shows_its_trace_and_ends_with_70(home, monkeypatch):
    from click.testing import CliRunner

    monkeypatch.setattr(Session, "client", lambda _: 1 // 0)
    result = CliRunner().invoke(root, ["ps"])
    assert result.exit_code == 70
    assert "Traceback" in result.stderr
    assert "error: unexpected ZeroDivisionError" in result.stderr
    assert "please report it" in result.stderr


def test_home_may_stand_before_or_after_the_command(home, tmp_path):
    from click.testing import CliRunner

    for line in (["--home", str(home), "ps"], ["ps", "--home", str(home)]):
        result = CliRunner().invoke(root, line, env={"CHAINDOCK_HOME": "/elsewhere"})
        assert f"'{home}'" in result.stderr
    result = CliRunner().invoke(root, ["ps"], env={"CHAINDOCK_HOME": str(home)})
    assert f"'{home}'" in result.stderr


def test_module_runs_like_the_program():
    done = subprocess.run(
        [sys.executable, "-m", "chaindock", "--version"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path("/"),
    )
    assert done.stdout.startswith("chaindock ")
