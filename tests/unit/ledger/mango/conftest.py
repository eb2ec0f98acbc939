"""Documents that several tests query."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from support.mango.documents import Documents

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def colours() -> Iterator[Documents]:
    documents = {
        f"k{n}": {"colour": ["red", "Blue", "green"][n % 3], "size": n % 5, "n": n}
        for n in range(30)
    }
    with closing(Documents({**documents, "raw": b"\x00no json", "list": [1]})) as made:
        yield made
