"""The admin socket: who can reach it, and where it is when the path is long."""

import os
import shutil
import socket
import stat
from pathlib import Path

import pytest

from chaindock.errors import NodeError
from chaindock.operations.address import close_socket, find_socket, fits, open_socket


def connect(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def listen(home: Path) -> socket.socket:
    opened = open_socket(home)
    opened.listen()
    return opened


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
    listen(tmp_path).close()
    with pytest.raises(ConnectionRefusedError):
        connect(find_socket(tmp_path))
    with listen(tmp_path):
        connect(find_socket(tmp_path))


def test_long_home_gets_a_short_socket_elsewhere(tmp_path):
    home = tmp_path / ("h" * 120)
    home.mkdir()
    with listen(home):
        path = find_socket(home)
        assert path.parent.parent != home
        assert fits(path)
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        connect(path)
    # A killed node leaves all that; the next one clears it away.
    with listen(home):
        assert not path.parent.exists()
        connect(find_socket(home))
    last = find_socket(home).parent
    close_socket(home)
    assert not last.exists()
    assert list(home.iterdir()) == []


def test_record_that_points_at_something_else_removes_nothing(tmp_path):
    precious = tmp_path / "chaindock-precious"
    precious.mkdir()
    (precious / "file").write_text("x")
    (tmp_path / "admin.path").write_text(f"{precious}/admin.sock\n")
    close_socket(tmp_path)
    assert (precious / "file").exists()
    assert not (tmp_path / "admin.path").exists()


def test_the_socket_of_a_home_that_was_made_anew_stays(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    with listen(home):
        former = find_socket(home).stat().st_ino
        shutil.rmtree(home)
        home.mkdir()
        with listen(home):
            own = find_socket(home).stat().st_ino
            close_socket(home, former)
            connect(find_socket(home))
            close_socket(home, own)
            assert not find_socket(home).exists()


def test_closing_twice_is_harmless(tmp_path):
    close_socket(tmp_path)
    close_socket(tmp_path)


def test_home_that_is_not_there_says_so(tmp_path):
    with pytest.raises(NodeError) as caught:
        open_socket(tmp_path / "gone")
    assert "gone" in caught.value.message
