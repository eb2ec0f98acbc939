"""Images of scripts, which stay on an engine for the next test that runs an equal script."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from chaindock.controllers.docker.names import own_tags

if TYPE_CHECKING:
    from collections.abc import Mapping

SCRIPT_IMAGES, KEPT_S = "chaindock-test-scripts", 2 * 24 * 3600.0


def is_kept(image: Mapping[str, Any]) -> bool:
    """Whether a listed image is one of a script, and young."""
    names = (tag.partition(":")[0] for tag in own_tags(image))
    return SCRIPT_IMAGES in names and image["Created"] > time.time() - KEPT_S
