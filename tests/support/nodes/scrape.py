"""What a scrape holds, as Prometheus' own parser reads it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.parser import text_string_to_metric_families

from chaindock.telemetry import metrics

PROCESS = (
    "process_virtual_memory_bytes",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "process_cpu_seconds_total",
    "process_open_fds",
    "process_max_fds",
)
"""Of the node's own process, on Linux; the client library's."""
DECLARED = {
    next(iter(metric.describe())).name: metric
    for metric in vars(metrics).values()
    if isinstance(metric, (Counter, Gauge, Histogram))
}
Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True)
class Named:
    """A metric as a scrape and the page about operations show it."""

    shown: str
    kind: str
    labels: tuple[str, ...]
    help: str


def _named(name: str) -> Named:
    metric = DECLARED[name]
    (told,) = metric.describe()
    ours = told.type == "counter" and name.startswith("chaindock_")
    shown = f"{name}_total" if ours else name
    return Named(shown, told.type, tuple(metric._labelnames), told.documentation)


METRICS = {name: _named(name) for name in DECLARED}


def reset_metrics() -> None:
    """Set everything that was counted in this process to nothing."""
    for metric in DECLARED.values():
        if isinstance(metric, Counter) and not metric._labelnames:
            metric.reset()
        metric.clear()
    metrics.packages.clear()
    metrics._names.clear()
    metrics.requests.cache_clear()
    metrics._answer.cache_clear()
    metrics.proposals.cache_clear()


class Scrape:
    """Samples by name and labels; wrong text is an error."""

    def __init__(self, text: str) -> None:
        self.kinds: dict[str, str] = {}
        self.samples: dict[str, dict[Labels, float]] = {}
        for family in text_string_to_metric_families(text):
            assert family.name not in self.kinds, f"{family.name} comes twice"
            self.kinds[family.name] = family.type
            assert family.documentation
        # Names as they stand in the text: the parser ends every counter with _total.
        for line in re.findall(r"^[a-z].*$", text, re.MULTILINE):
            (family,) = text_string_to_metric_families(line + "\n")
            (sample,) = family.samples
            found = self.samples.setdefault(sample.name, {})
            labels = frozenset(sample.labels.items())
            assert labels not in found, f"{line} comes twice"
            found[labels] = sample.value

    def value(self, name: str, **labels: str) -> float | None:
        """Return the only value whose labels include these; None = there is none."""
        wanted = set(labels.items())
        found = [
            value for one, value in self.samples.get(name, {}).items() if wanted <= one
        ]
        assert len(found) < 2, f"{name} {labels}: {len(found)} values"
        return found[0] if found else None

    def check(self) -> set[str]:
        """Check names, kinds and labels against the catalogue; return what there is."""
        there = set()
        for named in METRICS.values():
            histogram = named.kind == "histogram"
            suffixes = ("_bucket", "_sum", "_count") if histogram else ("",)
            names = [named.shown + suffix for suffix in suffixes]
            if names[0] not in self.samples:
                continue
            there.add(named.shown)
            family = named.shown.removesuffix("_total")
            assert self.kinds[family] == named.kind, named.shown
            for name in names:
                more = {"le"} if name.endswith("_bucket") else set()
                for labels in self.samples[name]:
                    assert {key for key, _ in labels} == {*named.labels, *more}, name
            if histogram:
                self._check_buckets(named.shown)
        known = {n.shown + s for n in METRICS.values() for s in ("", *_PARTS)}
        assert set(self.samples) <= known | set(PROCESS)
        return there

    def _check_buckets(self, name: str) -> None:
        for labels, count in self.samples[f"{name}_count"].items():
            buckets = {
                float(dict(one)["le"]): value
                for one, value in self.samples[f"{name}_bucket"].items()
                if labels <= one
            }
            ordered = [buckets[bound] for bound in sorted(buckets)]
            assert ordered == sorted(ordered)
            assert ordered[-1] == count
            assert max(buckets) == float("inf")


_PARTS = ("_bucket", "_sum", "_count")
