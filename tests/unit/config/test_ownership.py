"""What others could have written is not trusted: home, core.yaml, files that it names."""

import grp
import os
import pwd
import shlex
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from chaindock.cli.main import root
from chaindock.config import environment
from chaindock.config.environment import require_own
from chaindock.config.load import load
from chaindock.container.contracts import RunSettings
from chaindock.errors import ConfigInvalid
from chaindock.ids import Ccid
from chaindock.node.home import Home

CCID = Ccid("parcels:" + "0" * 64)
STRANGER = 65_534


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    write(home / "core.yaml", "chaindock: {chaincodes: {parcels: {pids: 5}}}\n")
    return home


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


def give_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `path` belong to somebody else than who asks."""
    if os.geteuid() == 0:
        os.chown(path, STRANGER, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: STRANGER)


def refusal(home: Path, folder: Path | None = None, **env: str) -> ConfigInvalid:
    with pytest.raises(ConfigInvalid) as caught:
        load(home, env=env, folder=folder)
    return caught.value


@pytest.mark.parametrize("mode", [0o770, 0o720, 0o707, 0o702])
@pytest.mark.parametrize("name", ["", "core.yaml"])
def test_what_group_or_others_may_write_is_refused(home, name, mode):
    path = home / name
    path.chmod(mode)
    error = refusal(home)
    assert repr(str(path)) in error.message
    assert f"{mode:04o}" in error.message
    assert error.hint is not None
    assert error.hint.endswith(f"chmod go-w {shlex.quote(str(path))}")
    path.chmod(stat.S_IMODE(path.stat().st_mode) & ~0o022)  # that command
    load(home, env={})


@pytest.mark.parametrize("name", ["", "core.yaml"])
def test_what_belongs_to_somebody_else_is_refused(home, name, monkeypatch):
    if name and os.geteuid() != 0:
        pytest.skip("only root can give away one file of a home")
    path = home / name
    give_away(path, monkeypatch)
    error = refusal(home)
    assert repr(str(path)) in error.message
    assert error.hint is not None
    assert "chown " in error.hint
    assert error.hint.endswith(shlex.quote(str(path)))


def test_files_of_root_are_trusted_by_all(home, monkeypatch):
    if os.geteuid() == 0:  # else there is no file of root here
        monkeypatch.setattr(os, "geteuid", lambda: STRANGER)
    load(home, env={})


def test_a_file_that_is_named_and_its_folder_count_too(home, tmp_path):
    folder = tmp_path / "fabric"
    folder.mkdir(mode=0o700)
    path = write(folder / "core.yaml", "peer: {id: x}\n")
    for one in (folder, path):
        before = stat.S_IMODE(one.stat().st_mode)
        one.chmod(before | 0o020)
        assert repr(str(one)) in refusal(home, folder).message
        one.chmod(before)
    load(home, env={}, folder=folder)


@pytest.mark.parametrize(
    "key",
    [
        "operations.tls.key.file",
        "operations.tls.cert.file",
        "operations.tls.clientRootCAs.files",
        "vm.docker.tls.key.file",
    ],
)
def test_keys_and_certificates_that_the_file_names_count_too(home, key):
    path = write(home / "named.pem", "x")
    *sections, last = key.split(".")
    lines = [f"{'  ' * depth}{one}:\n" for depth, one in enumerate(sections)]
    value = "[named.pem]" if last == "files" else "named.pem"
    text = "".join(lines) + f"{'  ' * len(sections)}{last}: {value}\n"
    write(home / "core.yaml", text)
    load(home, env={})
    path.chmod(0o660)
    assert repr(str(path)) in refusal(home).message


def test_the_cache_of_finished_builds_counts_too(home, tmp_path):
    """What lies in it is run as a contract of the user."""
    cache = tmp_path / ".cache" / "chaindock"
    load(home, env={"HOME": str(tmp_path)})
    cache.mkdir(mode=0o700, parents=True)
    load(home, env={"HOME": str(tmp_path)})
    cache.chmod(0o770)
    assert repr(str(cache)) in refusal(home, HOME=str(tmp_path)).message
    load(home, env={"HOME": str(tmp_path), "XDG_CACHE_HOME": "/nowhere"})


def test_a_home_where_anybody_may_replace_it_is_refused(tmp_path):
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    home = open_to_all / "deep" / "home"  # also before it is made
    error = refusal(home)
    assert repr(str(open_to_all)) in error.message
    assert f"chmod go-w {open_to_all}" in str(error.hint)
    home.mkdir(mode=0o700, parents=True)
    assert repr(str(open_to_all)) in refusal(home).message
    open_to_all.chmod(0o1777)  # as /tmp: others cannot replace what is ours
    load(home, env={})


def test_a_home_below_a_directory_of_a_group_is_refused(tmp_path, home, monkeypatch):
    tmp_path.chmod(0o775)
    monkeypatch.setattr(grp, "getgrgid", lambda _: SimpleNamespace(gr_name="staff"))
    assert repr(str(tmp_path)) in refusal(home).message
    tmp_path.chmod(0o1775)
    load(home, env={})


def test_the_group_that_has_the_name_of_the_user_holds_nobody_else(tmp_path, home):
    """Distributions with umask 002 give each user such a group."""
    name = pwd.getpwuid(os.geteuid()).pw_name
    if grp.getgrgid(tmp_path.stat().st_gid).gr_name != name:
        pytest.skip("this user has no group of that name")
    tmp_path.chmod(0o775)
    load(home, env={})


def test_a_home_below_a_directory_of_somebody_else_is_refused(tmp_path):
    """Its owner can put another directory in the place of the home."""
    if os.geteuid() != 0:
        pytest.skip("only root can give away one directory")
    theirs = tmp_path / "theirs"
    theirs.mkdir(mode=0o755)
    os.chown(theirs, STRANGER, -1)
    error = refusal(theirs / "home")  # also before it is made
    assert f"{str(theirs)!r} is not trusted: it belongs to" in error.message
    (theirs / "home").mkdir(mode=0o700)
    assert repr(str(theirs)) in refusal(theirs / "home").message


def test_the_file_that_is_read_is_the_one_that_was_checked(home, monkeypatch):
    path = home / "core.yaml"

    def then_exchanged(place: Path) -> None:
        require_own(place)
        if place == path:
            path.unlink()
            path.write_text("peer: {id: theirs}\n")
            path.chmod(0o666)

    monkeypatch.setattr(environment, "require_own", then_exchanged)
    with (
        pytest.raises(ConfigInvalid, match="is not trusted"),
        environment.compose(path),
    ):
        pass


def test_a_link_leads_to_no_place_that_is_open_to_all(tmp_path, home):
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    (open_to_all / "home").mkdir(mode=0o700)
    open_to_all.chmod(0o777)
    link = tmp_path / "link"
    link.symlink_to(open_to_all / "home")
    assert repr(str(open_to_all)) in refusal(link).message


def test_links_of_somebody_else_are_refused(tmp_path, home):
    """Their owner can let them lead elsewhere, and the node would write its keys there."""
    if os.geteuid() != 0:
        pytest.skip("only root can give away one link")
    theirs, middle = tmp_path / "theirs", tmp_path / "middle"
    theirs.symlink_to(home)
    middle.symlink_to("../" + tmp_path.name + "/theirs")
    load(middle, env={})
    os.lchown(theirs, STRANGER, -1)
    for path in (theirs, middle):
        told = refusal(path).message
        assert f"{str(theirs)!r} is not trusted: it belongs to" in told


@pytest.mark.parametrize("name", ["", "named.pem"])
def test_links_in_a_circle_are_told_as_what_cannot_be_read(home, name):
    path = home / name
    if not name:
        path = home = home.with_name("link")
    path.symlink_to(path.name)
    text = "operations: {tls: {key: {file: named.pem}}}\n"
    if name:
        write(home / "core.yaml", text)
    error = refusal(home)
    assert f"{str(path)!r} cannot be read" in error.message


def test_a_file_that_others_may_write_from_now_on_is_not_read_again(home):
    """The contract is restarted with the settings that it had."""
    sections = load(home, env={}).chaincodes
    path = write(home / "core.yaml", "chaindock: {chaincodes: {parcels: {pids: 7}}}\n")
    path.chmod(0o666)
    assert sections.of(CCID, ["parcels"]).run.pids == 5
    assert "0666" in str(sections.problem_of(CCID, ["parcels"]))
    path.chmod(0o600)
    assert sections.of(CCID, ["parcels"]).run.pids == 7


def test_a_file_that_was_named_and_vanishes_leaves_all_settings_as_they_were(
    home, tmp_path
):
    folder = tmp_path / "fabric"
    folder.mkdir(mode=0o700)
    text = "chaindock: {chaincodes: {parcels: {pids: 5}}}\n"
    path = write(folder / "core.yaml", text)
    sections = load(home, env={}, folder=folder).chaincodes
    path.rename(folder / "away")
    assert sections.of(CCID, ["parcels"]).run.pids == 5
    (problem,) = sections.problems()
    assert "there is no core.yaml" in problem.message
    assert str(sections.problem_of(CCID, ["parcels"])) == str(problem)
    (folder / "away").rename(path)
    assert sections.problems() == []
    path.unlink()
    folder.rmdir()
    assert sections.of(CCID, ["parcels"]).run == RunSettings(pids=5)


def test_the_node_makes_nothing_in_a_home_of_somebody_else(tmp_path, monkeypatch):
    """It may have been made after the settings were read."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    give_away(home, monkeypatch)
    with pytest.raises(ConfigInvalid, match="belongs to"):
        Home(home).prepare()
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("words", ["config show", "up", "up -d", "doctor"])
def test_every_command_that_reads_settings_says_so(home, words):
    home.chmod(0o770)
    words = words.replace("up", "up --backend none")  # in no case it starts
    done = CliRunner().invoke(root, ["--home", str(home), *words.split()])
    assert done.exit_code != 0
    assert f"chmod go-w {home}" in " ".join(done.output.split())
    assert [path.name for path in home.iterdir()] == ["core.yaml"]
