"""How many files the node may open, and when it asks for more."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING, Any

import pytest

from chaindock.node import serve as under_test

if TYPE_CHECKING:
    from pathlib import Path


def test_a_system_that_refuses_the_wanted_limit_is_asked_for_less(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """macOS says that any number may be open, and allows 10,240."""
    limits = [256, resource.RLIM_INFINITY]

    def change(_: int, wanted: tuple[int, int]) -> None:
        if wanted[0] > 10_240:
            raise ValueError("current limit exceeds maximum limit")
        limits[:] = wanted

    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(limits))
    monkeypatch.setattr(resource, "setrlimit", change)
    assert under_test.raise_limit() == 10_240
    assert limits == [10_240, resource.RLIM_INFINITY]


async def test_the_limit_is_raised_before_anything_listens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gRPC gets its number of connections from that limit when a listener starts."""

    class Stop(Exception):
        pass

    def stop(*_: Any) -> Any:
        raise Stop

    monkeypatch.setattr(under_test, "raise_limit", stop)
    monkeypatch.setattr(under_test, "Home", lambda _: pytest.fail("too late"))
    config: Any = type("Config", (), {"home": tmp_path})
    with pytest.raises(Stop):
        await under_test.serve(config, stop)
