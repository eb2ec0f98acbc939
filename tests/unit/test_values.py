"""Durations and sizes as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaindock.values import (
    BOOLEAN,
    WrongValueError,
    read_duration,
    read_size,
    read_words,
    show_duration,
    show_size,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30),
        ("1m30s", 90),
        ("250ms", 0.25),
        ("1.5h", 5400),
        ("0", 0),
        (".5s", 0.5),
    ],
)
def test_durations_are_those_of_go(text, seconds):
    assert read_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "30",
        "",
        "s",
        "1 s",
        "-1s",
        "1s2",
        "1x",
        "1e3s",
        "1w",
        "nan",
        "inf",
        "infs",
        "106752d",
        "9" * 400 + "s",
        "9" * 5000 + "d",
    ],
)
def test_other_durations_are_refused(text):
    with pytest.raises(WrongValueError):
        read_duration(text)


@given(st.integers(1, 10_000_000))
def test_shown_durations_read_back(milliseconds):
    seconds = milliseconds / 1000
    assert read_duration(show_duration(seconds)) == pytest.approx(seconds, rel=1e-4)


@pytest.mark.parametrize(
    ("text", "size"), [("1", 1), ("64k", 65_536), ("2GiB", 2 << 30), ("5 mb", 5 << 20)]
)
def test_sizes_are_powers_of_two(text, size, tmp_path):
    assert read_size(text, tmp_path) == size


@pytest.mark.parametrize("text", ["nan", "inf", "1e3k", "8388608t", "9" * 5000])
def test_other_sizes_are_refused(text, tmp_path):
    with pytest.raises(WrongValueError):
        read_size(text, tmp_path)


@given(st.integers(0, 1 << 50))
def test_shown_sizes_read_back(size):
    assert read_size(show_size(size), None) == size  # type: ignore[arg-type]


def test_lists_come_from_yaml_or_commas(tmp_path):
    assert read_words(["a", "b"], tmp_path) == read_words("a, b,", tmp_path)


@pytest.mark.parametrize("word", ["true", "T", "1", "yes", "ON"])
def test_truth_has_many_words(word, tmp_path):
    assert BOOLEAN.parse(word, tmp_path) is True
