"""Where chaincode that serves is dialled: nobody else gets there."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from chaindock.container.attempt import Attempt
from chaindock.container.contracts import Dial
from chaindock.errors import StartFailed
from chaindock.processes.folders import PATH_BYTES, Sockets
from support.doubles.scripts import hang, serve
from support.eventually import eventually
from support.need import missing
from support.nodes.process_backend import ProcessBackend

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

AWKWARD = "a home with spaces, and a name that is too long for a socket" * 2


@pytest.fixture
def temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary directory that this test alone uses, with a short name."""
    del tmp_path  # made first: pytest makes its own where this one is
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


@pytest.fixture
async def backend(temp: Path, tmp_path: Path) -> AsyncIterator[ProcessBackend]:
    async with ProcessBackend(tmp_path / AWKWARD) as backend:
        yield backend


def path_of(address: str) -> Path:
    assert address.startswith("unix:/")
    return Path(address.removeprefix("unix:"))


def guarded(path: Path) -> bool:
    """Whether a directory above `path` lets nobody but its owner in."""
    return any(
        stat.S_IMODE(folder.stat().st_mode) & 0o077 == 0
        and folder.stat().st_uid == os.getuid()
        for folder in path.resolve().parents
    )


def test_a_short_path_is_taken_as_it_is(temp: Path):
    address = Sockets(temp, "n1").address_in(temp / "0123456789ab")
    assert address == f"unix:{temp}/0123456789ab/cc.sock"
    assert list(temp.iterdir()) == []


def test_a_long_path_is_reached_by_a_short_one(temp: Path, tmp_path: Path):
    runs = tmp_path / AWKWARD
    private = runs / "0123456789ab"
    private.mkdir(parents=True)
    sockets = Sockets(runs, "n1")
    path = path_of(sockets.address_in(private))
    assert len(os.fsencode(path)) <= PATH_BYTES
    assert path.parent.resolve() == private.resolve()
    assert path_of(sockets.address_in(runs / "other")).parents[2] == path.parents[2]
    assert stat.S_IMODE(path.parents[2].stat().st_mode) == 0o700
    sockets.close()
    assert list(temp.iterdir()) == []


def test_a_short_path_that_somebody_else_made_again_is_not_taken(
    temp: Path, tmp_path: Path
):
    """What cleans up temporary files makes room for anybody who watches it."""
    if os.geteuid() != 0:
        missing("root is needed to act as another user")
    runs, elsewhere = tmp_path / AWKWARD, tmp_path / "elsewhere"
    (runs / "one").mkdir(parents=True)
    sockets = Sockets(runs, "n1")
    link = path_of(sockets.address_in(runs / "one")).parents[1]
    link.unlink()
    link.symlink_to(elsewhere)
    os.chown(link.parent, 65534, 65534)
    path = path_of(sockets.address_in(runs / "one"))
    assert path.parent.resolve() == (runs / "one").resolve()
    assert path.parents[2] != link.parent
    sockets.close()


def test_what_a_killed_node_left_is_removed_and_nothing_else(
    temp: Path, tmp_path: Path
):
    runs = tmp_path / AWKWARD
    (runs / "one").mkdir(parents=True)
    Sockets(runs, "n1").address_in(runs / "one")
    other = path_of(Sockets(runs, "n2").address_in(runs / "one"))
    sockets = Sockets(runs, "n1")
    own = path_of(sockets.address_in(runs / "one"))
    sockets.reap()
    assert set(temp.iterdir()) == {own.parents[2], other.parents[2]}
    assert (runs / "one").is_dir()


def test_directories_of_another_user_stay_however_deep_they_are(
    temp: Path, tmp_path: Path
):
    """Anybody can make one with the name of the node: it must not stop a start."""
    if os.geteuid() != 0:
        missing("root is needed to act as another user")
    theirs = temp / "chaindock-run-n1-theirs"
    theirs.mkdir()
    os.chown(theirs, 65534, 65534)
    ours = temp / "chaindock-run-n1-ours"
    (ours / "inside").mkdir(parents=True)
    for _ in range(1500):  # more than a function may call itself
        (temp / "above").mkdir()
        (ours / "inside").rename(temp / "above" / "inside")
        (temp / "above").rename(ours / "inside")
    sockets = Sockets(tmp_path, "n1")
    sockets.reap()
    assert list(temp.iterdir()) == [theirs]


def test_no_usable_path_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    sockets = Sockets(long, "n1")
    with pytest.raises(StartFailed, match="no path for a socket") as caught:
        sockets.address_in(long / "one")
    assert "--home" in str(caught.value.hint)
    sockets.close()


def takes_connections(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as one:
        return not one.connect_ex(str(path))


async def test_a_chaincode_that_serves_is_reached_by_nobody_else(
    backend: ProcessBackend, temp: Path
):
    instance, package = await backend.built(serve(), serves=True)
    async with backend.within():
        answer = await instance.start(backend.peer, Attempt(package.ccid))
        assert isinstance(answer, Dial)
        path = path_of(answer.address)
        await eventually(lambda: takes_connections(path))  # later than it is there
        assert guarded(path)
        assert instance.describe()["stream"] == "unix socket of this run"
        await instance.stop(1)
        assert not path.exists()


async def test_leaving_the_controller_leaves_no_short_name(
    backend: ProcessBackend, temp: Path
):
    builder = await backend.open_builder(backend.node_id)
    instance, package = await backend.built(hang(), serves=True, builder=builder)
    async with backend.within():
        await instance.start(backend.peer, Attempt(package.ccid))
        assert any("chaindock-run" in path.name for path in temp.iterdir())
        await backend.close_builder(builder)
    assert [path for path in temp.iterdir() if "chaindock-run" in path.name] == []
