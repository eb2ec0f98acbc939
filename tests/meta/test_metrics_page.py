"""The page about operations lists every metric and component, and no other."""

import re
from pathlib import Path

from chaindock.operations.health import STATES
from chaindock.telemetry.logs import FABRIC_NAMES
from support.nodes.scrape import METRICS, PROCESS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tasks" / "operations.md").read_text()
ROW = r"^\| `(\w+)` \| (counter|gauge|histogram) \| (.*?) \| (.*?) \|$"


def test_the_table_of_metrics_is_what_the_code_says():
    told = {
        name: (kind, tuple(re.findall(r"`(\w+)`", labels)), text)
        for name, kind, labels, text in re.findall(ROW, PAGE, re.MULTILINE)
    }
    assert told == {
        one.shown: (one.kind, one.labels, one.help) for one in METRICS.values()
    }


def test_metrics_of_the_process_are_named():
    assert set(re.findall(r"`(process_\w+)`", PAGE)) == set(PROCESS)


def test_components_are_named():
    told = set(re.findall(r"`([\w.]+)`", PAGE.partition("Components:")[2]))
    names = set()
    for path in (ROOT / "src").rglob("*.py"):
        names |= set(re.findall(r'get_logger\("(\w+)', path.read_text()))
    assert names - {"aio"} <= told
    assert {name for name in FABRIC_NAMES.values() if name not in names} <= told


def test_names_follow_the_rules_of_prometheus():
    for one in METRICS.values():
        assert re.fullmatch(r"[a-z]+(_[a-z]+)+", one.shown)
        assert one.shown.startswith("chaindock_") or not one.shown.endswith("_total")
        assert len(one.labels) == len(set(one.labels))
    assert len(set(STATES)) == len(STATES)
