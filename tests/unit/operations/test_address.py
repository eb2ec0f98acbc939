"""The admin socket: who can reach it, and how when its path is long."""

import os
import shutil
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from chaindock.errors import NodeError
from chaindock.operations.address import find_socket, opened_socket, reachable


def connect(path: Path | str) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


@contextmanager
def listen(home: Path) -> Iterator[None]:
    with opened_socket(home) as opened:
        opened.listen()
        yield


def test_only_the_owner_can_connect(tmp_path):
    before = os.umask(0)
    try:
        with listen(tmp_path):
            path = find_socket(tmp_path)
            assert path == tmp_path / "admin.sock"
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            connect(path)
    finally:
        os.umask(before)


def test_dead_socket_is_replaced(tmp_path):
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(find_socket(tmp_path)))
    with pytest.raises(ConnectionRefusedError):
        connect(find_socket(tmp_path))
    with listen(tmp_path):
        connect(find_socket(tmp_path))


def test_a_long_home_is_reached_through_a_link_that_does_not_stay(
    tmp_path, monkeypatch
):
    home, links = tmp_path / ("h" * 120), tmp_path / "links"
    for folder in (home, links):
        folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(links))
    with listen(home):
        path = find_socket(home)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with reachable(path) as address:
            connect(address)
        assert list(links.iterdir()) == []
    assert not path.exists()


def test_the_socket_of_a_home_that_was_made_anew_stays(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    with ExitStack() as later:
        with listen(home):
            shutil.rmtree(home)
            home.mkdir()
            later.enter_context(listen(home))
        connect(find_socket(home))
    assert not find_socket(home).exists()


def test_home_that_is_not_there_says_so(tmp_path):
    with pytest.raises(NodeError) as caught, opened_socket(tmp_path / "gone"):
        pass
    assert "gone" in caught.value.message
