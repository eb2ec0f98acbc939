"""The page of the admin API names every route of the node, and no other."""

import re
from pathlib import Path
from typing import Any, cast

from chaindock.node.admin import AdminServer
from support.doubles.fake_node import FakeNode

PAGE = Path(__file__).parents[2] / "docs" / "admin-api.md"


def test_every_route_is_on_the_page(tmp_path: Path) -> None:
    server = AdminServer(tmp_path, cast("Any", FakeNode(tmp_path)))
    served = {
        (
            one.method,
            re.sub(r"\{\w+\}", "NAME", str(one.resource and one.resource.canonical)),
        )
        for one in server._application().router.routes()
        if one.method != "HEAD"
    }
    listed = {
        (method, re.sub(r"\b(NUMBER|ID|PACKAGE_ID)\b", "NAME", path))
        for method, path in re.findall(
            r"^([A-Z]+) +(/[^ ?\n]*)", PAGE.read_text(), re.MULTILINE
        )
    }
    assert listed == served
