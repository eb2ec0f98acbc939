"""Help, start-up, and the table of exit statuses."""

import subprocess
import sys
from pathlib import Path

import click
import pytest

from chaindock import errors
from chaindock.cli.exits import MEANINGS, Exit, exit_status
from chaindock.cli.lazy import COMMANDS
from chaindock.cli.main import root
from chaindock.cli.session import Session

SLOW = {"aiohttp", "grpc", "rich", "yaml", "structlog", "asyncio", "psutil", "json"}


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
    assert not {"aiohttp", "grpc", "rich", "yaml", "structlog", "asyncio"} & loaded


@pytest.mark.parametrize("name", COMMANDS)
def test_command_says_in_the_list_what_its_own_help_says(name):
    context = click.Context(root, obj=Session())
    command = root.get_command(context, name)
    assert command is not None
    assert command.name == name
    assert (command.help or "").splitlines()[0] == COMMANDS[name][1]


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "config"])
def test_every_command_takes_home_and_json(name):
    command = root.get_command(click.Context(root, obj=Session()), name)
    assert command is not None
    options = {opt for param in command.params for opt in param.opts}
    assert {"--home", "--json"} <= options


def test_unknown_command_is_a_usage_error(run):
    result = run("depoly")
    assert result.exit_code == 2
    assert "No such command 'depoly'" in result.stderr


def test_help_lists_every_exit_status(run):
    text = run("--help").stdout
    for status, meaning in MEANINGS.items():
        assert f"{int(status):>3}  {meaning}" in text
    assert set(MEANINGS) == set(Exit)


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
