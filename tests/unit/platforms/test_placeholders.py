"""Plans name paths and programs through placeholders."""

from __future__ import annotations

import pytest

from chaindock.errors import SourceInvalid
from chaindock.platforms.base import Places


def test_placeholders_are_filled_wherever_they_stand():
    places = Places(
        {"output": "/o", "peer": "127.0.0.1:7052", "ccid": "cc:1"},
        tool="/bin/{}".format,
        cache="/c/{}".format,
    )
    argv = ["{tool:python3}", "-x={output}/a", "{peer}", "{cache:go-build}", "{ccid}"]
    assert places.fill_all(argv) == [
        "/bin/python3",
        "-x=/o/a",
        "127.0.0.1:7052",
        "/c/go-build",
        "cc:1",
    ]


def test_only_the_values_of_an_environment_are_filled():
    places = Places({"output": "/o"}, tool=str)
    assert places.fill_values({"{output}": "{output}/x"}) == {"{output}": "/o/x"}


@pytest.mark.parametrize(
    "text", ["${HOME} {a} {} {tool:}", "{cache:..}", "{tool:../../bin/sh}", "{other}"]
)
def test_other_braces_are_left_alone(text: str):
    assert Places({}, tool=str, cache=str).fill(text) == text


def test_a_filled_in_value_is_not_filled_again():
    places = Places({"ccid": "{output}", "output": "/o"}, tool=str)
    assert places.fill("{ccid}") == "{output}"


@pytest.mark.parametrize("text", ["{peer}", "{cache:npm}", "{input}"])
def test_a_placeholder_without_a_value_is_an_error(text: str):
    with pytest.raises(SourceInvalid, match=text):
        Places({"output": "/o"}, tool=str).fill(text)
