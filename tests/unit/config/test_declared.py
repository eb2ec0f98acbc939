"""What the packages declare as settings fits together."""

from pathlib import Path

import pytest

from chaindock.config.keys import look_up
from chaindock.config.sections import KEYS, KNOWN, VARIABLES, defaults
from chaindock.values import WrongValueError

PLAIN, _ = defaults(Path("/home"), {"HOME": "/user", "PATH": "/bin"})


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_a_key_has_a_help_text_and_its_default_can_be_given_again(key):
    """What `config show` prints can be written to core.yaml."""
    values = [look_up(PLAIN, target.path) for target in key.targets]
    assert key.help.endswith(".")
    if values[0] is None:
        return
    text = key.show(values[0])
    try:
        assert key.targets[0].read(text, Path("/")) == values[0]
    except WrongValueError:
        assert text == ""


SHARED = [key for key in KEYS if key.targets[1:]]


@pytest.mark.parametrize("key", SHARED, ids=lambda key: key.name)
def test_options_that_share_a_key_share_its_default(key):
    if key.name == "vm.endpoint":  # unset is not empty
        return
    assert len({look_up(PLAIN, target.path) for target in key.targets}) == 1


def test_names_and_variables_are_unique():
    assert len(KNOWN) == len(KEYS)
    assert len(VARIABLES) == sum(len(key.variables) for key in KEYS)


def test_options_are_frozen():
    with pytest.raises(AttributeError):
        PLAIN.node.channel = "x"  # type: ignore[misc]
